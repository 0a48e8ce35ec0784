"""No object of an instruction set may export anything but its table.

An inline or template function that such a file emitted weakly, compiled with wide instructions,
could be the copy that the linker keeps for every machine. Takes the object files as arguments.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Data that names the personality routine of exceptions: no code.
ALLOWED = re.compile(r"octavo::table_\w+\(\)|DW\.ref\.__gxx_personality_v0")


def exported(path: Path) -> list[str]:
    """Defined symbols that other objects can see (strong or weak)."""
    listing = subprocess.run(
        ["nm", "--demangle", "--extern-only", "--defined-only", str(path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [line.split(maxsplit=2)[2] for line in listing.splitlines()]


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]]
    if not paths:
        sys.exit(
            "which object files? build/check/CMakeFiles/octavo_kernels.dir/native/kernels/isa_*.o"
        )
    faults = [
        f"{path.name}: {name}"
        for path in paths
        for name in exported(path)
        if not ALLOWED.fullmatch(name)
    ]
    print("\n".join(faults) or f"{len(paths)} objects export their tables alone")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
