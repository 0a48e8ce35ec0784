"""Builds with ASan and UBSan, then with TSan, and runs the native tests: any report is a failure.

`octavo_check` runs every kernel as a program. The extension, loaded into a Python that is not
instrumented, needs the sanitizer's library preloaded; leaks at exit are not looked for there,
because Python keeps what it allocates, and reports inside other libraries are none of ours: their
code is not instrumented, so the sanitizer sees half of what they do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Sanitizer:
    """One instrumented build and what runs under it."""

    name: str  # as -fsanitize= wants it
    library: str
    options: dict[str, str]
    tests: tuple[str, ...]


SANITIZERS = (
    Sanitizer(
        "address,undefined",
        "libasan.so",
        {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
        ("tests/native", "tests/backends/native/test_executor.py"),
    ),
    Sanitizer(
        "thread",
        "libtsan.so",
        {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1 exitcode=66"},
        # TSan ends a forked child that starts threads, as one test makes it do.
        (
            "tests/backends/native/test_executor.py",
            "tests/backends/native/test_sampling.py",
            "--deselect=tests/backends/native/test_executor.py"
            "::test_a_forked_child_gets_one_clear_error",
        ),
    ),
)


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=env)


def library(name: str) -> str:
    """The compiler's own copy of a sanitizer's library."""
    found = subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if found == name:
        sys.exit(f"g++ has no {name}: install the compiler's sanitizer libraries")
    return found


def build(sanitizer: Sanitizer, where: Path) -> None:
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    define = {
        "Python_EXECUTABLE": sys.executable,
        "CMAKE_BUILD_TYPE": "None",
        "OCTAVO_SANITIZE": sanitizer.name,
    }
    defines = [f"-D{key}={value}" for key, value in define.items()]
    run("cmake", "-S", ".", "-B", where, "-G", "Ninja", *defines, env=tools)
    run("cmake", "--build", where, "--target", "_native", "octavo_check", env=tools)


def package_with(extension: Path, place: Path) -> None:
    """The package as links, beside the instrumented extension."""
    target = place / "octavo"
    target.mkdir()
    for part in (ROOT / "src" / "octavo").iterdir():
        if part.suffix != ".so":
            (target / part.name).symlink_to(part)
    (target / extension.name).symlink_to(extension)


def test(sanitizer: Sanitizer, where: Path) -> None:
    run(where / "octavo_check", env={**os.environ, **sanitizer.options})
    (extension,) = where.glob("_native*.so")
    with tempfile.TemporaryDirectory() as name:
        package_with(extension, Path(name))
        env = {
            **os.environ,
            **sanitizer.options,
            # The C++ library too: what it throws must be found before the extension brings it.
            "LD_PRELOAD": f"{library(sanitizer.library)} {library('libstdc++.so.6')}",
            "PYTHONPATH": name,
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        options = ("-q", "-p", "no:cacheprovider", "-m", "not slow")
        run(sys.executable, "-m", "pytest", *options, *sanitizer.tests, env=env)


def main() -> None:
    for sanitizer in SANITIZERS:
        where = ROOT / "build" / f"sanitize-{sanitizer.name.split(',')[0]}"
        build(sanitizer, where)
        test(sanitizer, where)
    print("clean: " + "; ".join(one.name for one in SANITIZERS))


if __name__ == "__main__":
    main()
