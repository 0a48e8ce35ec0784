"""How long until something is there: `octavo --help` over a bare Python, and the first token."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from octavo.cli.output import emit_json, fields

OCTAVO = (sys.executable, "-m", "octavo.cli.main")
# 20 tokens of SmolLM2's vocabulary
PROMPT = (
    "The history of the printing press begins in the city of Mainz, where a young goldsmith named"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.repetitions)
    if arguments.json:
        emit_json(result)
        return
    help_time, first = result["help_over_bare_python_ms"], result["first_token_s"]
    print(
        fields({"--help over bare python": f"{help_time:.0f} ms", "first token": f"{first:.2f} s"})
    )


def measure(model: str, repetitions: int) -> dict[str, Any]:
    """Medians; bare Python and `--help` alternate. One run before warms the page cache."""
    bare, helped, first = [], [], []
    run = (*OCTAVO, "run", model, PROMPT, "--raw", "--max-tokens", "4")
    first_byte(run)
    for _ in range(repetitions):
        bare.append(whole((sys.executable, "-c", "pass")))
        helped.append(whole((*OCTAVO, "--help")))
    first = [first_byte(run) for _ in range(repetitions)]
    return {
        "model": model,
        "bare_python_ms": 1e3 * statistics.median(bare),
        "help_ms": 1e3 * statistics.median(helped),
        "help_over_bare_python_ms": 1e3 * (statistics.median(helped) - statistics.median(bare)),
        "first_token_s": statistics.median(first),
        "samples": {"bare_s": bare, "help_s": helped, "first_token_s": first},
    }


def whole(command: Sequence[str]) -> float:
    """Seconds until a command has ended."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def first_byte(command: Sequence[str]) -> float:
    """Seconds until a command has written its first byte."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        spent = time.perf_counter() - begin
        child.stdout.read()
    if child.returncode or not first:
        raise SystemExit(f"{' '.join(command)} failed with status {child.returncode}")
    return spent


if __name__ == "__main__":
    main()
