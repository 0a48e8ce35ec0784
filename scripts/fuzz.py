"""Structured mutations of small model files: readers may refuse them, and do nothing else.

    python scripts/fuzz.py --cases 100000 --seed 0          all of it, in workers
    python scripts/fuzz.py --case 4711 --seed 0             one case again, with its traceback

Every case runs in a worker with 512 MB of address space and one second. Only UserError may come
out: any other exception, a signal's death or a hang is a failure, printed with the command that
repeats it. Some cases run under a line tracer; a reader's line that no case reached is a failure
as well, since a branch nobody fuzzed is not known to hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_files

from octavo.core.errors import UserError
from octavo.formats.gguf_formats import GGUF_FORMATS
from octavo.io import gguf_reader, mapping, safetensors_file, stored
from octavo.io.checkpoint import open_model
from octavo.io.gguf_blocks import dequantize
from octavo.io.gguf_reader import open_gguf
from octavo.io.safetensors_file import open_directory, open_safetensors

MEMORY = 512 << 20
SECONDS = 1.0
TRACED = (gguf_reader, safetensors_file, mapping, stored)
# Not the readers': writing, and what no content of a file can cause.
NOT_READ = frozenset(
    ("write_safetensors", "_dtype_name", "replacing", "_map_file", "_check_kind", "drop", "close")
)


class HangError(BaseException):
    """The alarm rang. Not an Exception: no reader may swallow it."""


@dataclass(slots=True)
class Tally:
    """What a range of cases gave: outcomes by kind, failures by case, lines by file."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    lines: dict[str, set[int]] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.outcomes += other.outcomes
        self.failures += other.failures
        for name, lines in other.lines.items():
            self.lines.setdefault(name, set()).update(lines)


def run_case(seed: int, case: int, directory: Path) -> str:
    """Make case number `case`, read it, and say what came out: "read", or the refusal's kind."""
    rng = random.Random((seed << 40) + case)
    target = rng.choice(tuple(fuzz_files.TARGETS))
    for name, data in fuzz_files.TARGETS[target](rng).items():
        (directory / name).write_bytes(data)
    try:
        _READ[target](directory)
    except UserError as error:
        return f"{target}: {type(error).__name__}: {_kind(str(error), directory)}"
    return f"{target}: read"


def _kind(message: str, directory: Path) -> str:
    """A message without its particulars: what is counted as one kind."""
    text = message.replace(str(directory), "")
    return re.sub(r"'[^']*'|\"[^\"]*\"|b?\[[^\]]*\]|\d+", "*", text)[:60]


def read_gguf(directory: Path) -> None:
    file = open_gguf(directory / "a.gguf")
    try:
        for tensor in file.tensors.values():
            rows = tensor.rows()
            assert rows.shape[0] <= tensor.elements
            if tensor.type in GGUF_FORMATS:
                dequantize(tensor.type, rows[:2])
        for key in file.metadata:
            file.metadata.get(key)
    finally:
        file.mapping.close()


def read_model(directory: Path) -> None:
    with open_model(directory / "a.gguf") as model:
        model.source.describe()


def read_safetensors(directory: Path) -> None:
    file = open_safetensors(directory / "model.safetensors")
    try:
        for tensor in file.tensors.values():
            tensor.rows().sum()
    finally:
        file.mapping.close()


def read_shards(directory: Path) -> None:
    for file in open_directory(directory):
        for tensor in file.tensors.values():
            tensor.rows().sum()
        file.mapping.close()


_READ: dict[str, Callable[[Path], None]] = {
    "gguf": read_gguf,
    "model": read_model,
    "safetensors": read_safetensors,
    "shards": read_shards,
}


def _ring(number: int, frame: FrameType | None) -> None:
    raise HangError


def run_range(seed: int, start: int, stop: int, traced: int, progress: Path) -> Tally:
    """Cases [start, stop), the first `traced` of them under the line tracer."""
    tally = Tally()
    signal.signal(signal.SIGALRM, _ring)
    for case in range(start, stop):
        progress.write_text(str(case))
        tracing = case - start < traced
        with tempfile.TemporaryDirectory() as name:
            _guarded(tally, seed, case, Path(name), tracing)
    return tally


def _guarded(tally: Tally, seed: int, case: int, directory: Path, tracing: bool) -> None:
    # A tracer makes every line slow; the alarm is then only there to end a true hang.
    signal.setitimer(signal.ITIMER_REAL, SECONDS * (10 if tracing else 1))
    if tracing:
        sys.settrace(_tracer(tally.lines))
    try:
        tally.outcomes[run_case(seed, case, directory)] += 1
    except HangError:
        tally.failures.append((case, f"ran for more than {SECONDS} s"))
    except Exception:
        tally.failures.append((case, traceback.format_exc()))
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _tracer(lines: dict[str, set[int]]) -> Any:
    files = {module.__file__: lines.setdefault(_short(module), set()) for module in TRACED}

    def local(frame: FrameType, event: str, _: object) -> Any:
        files[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    return lambda frame, event, _: local if frame.f_code.co_filename in files else None


def _short(module: Any) -> str:
    return Path(module.__file__).name


def reader_lines(path: Path) -> set[int]:
    """Lines of function bodies that reading a file can execute."""
    found: set[int] = set()

    def walk(code: CodeType) -> None:
        is_function = code.co_flags & 1  # class bodies and modules run at import
        if code.co_name in NOT_READ:
            return
        if is_function:
            lines = {line for _, _, line in code.co_lines() if line}
            found.update(lines - {code.co_firstlineno})
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                walk(constant)

    walk(compile(path.read_text(encoding="utf-8"), str(path), "exec"))
    return found


def uncovered(lines: dict[str, set[int]]) -> list[str]:
    """`file:line: text` of every reader line that no traced case reached."""
    missing = []
    for module in TRACED:
        path = Path(str(module.__file__))
        text = path.read_text(encoding="utf-8").splitlines()
        for line in sorted(reader_lines(path) - lines.get(path.name, set())):
            # An InternalError is a bug of ours: no file may lead there.
            if "raise InternalError" not in text[line - 1]:
                missing.append(f"{path.name}:{line}: {text[line - 1].strip()}")
    return missing


def work(arguments: argparse.Namespace) -> None:
    """A worker's whole life: limit itself, run its cases, print its tally as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    progress = Path(arguments.progress)
    start, stop = arguments.worker
    tally = run_range(arguments.seed, start, stop, arguments.traced, progress)
    lines = {name: sorted(found) for name, found in tally.lines.items()}
    json.dump([dict(tally.outcomes), tally.failures, lines], sys.stdout)


def run_workers(seed: int, cases: int, traced: int, workers: int) -> Tally:
    """All cases, in `workers` processes at a time. A worker that dies is a failure of its case."""
    total = Tally()
    size = max(1, min(5000, -(-cases // workers)))
    waiting = [(start, min(start + size, cases)) for start in range(0, cases, size)]
    running: list[tuple[subprocess.Popen[str], int, int, Path]] = []
    with tempfile.TemporaryDirectory() as directory:
        while waiting or running:
            while waiting and len(running) < workers:
                start, stop = waiting.pop(0)
                progress = Path(directory) / f"{start}"
                share = -(-traced * (stop - start) // cases)
                running.append((_start(seed, start, stop, share, progress), start, stop, progress))
            process, start, stop, progress = running.pop(0)
            output, errors = process.communicate()
            if process.returncode == 0:
                total.add(_parse(output))
                continue
            died = int(progress.read_text()) if progress.exists() else start
            problem = f"the worker died ({process.returncode}): {errors[-2000:]}"
            total.failures.append((died, problem))
            if died + 1 < stop:
                waiting.append((died + 1, stop))
    return total


def _start(seed: int, start: int, stop: int, traced: int, progress: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--seed", str(seed), "--traced", str(traced)]
    command += ["--worker", str(start), str(stop), "--progress", str(progress)]
    # BLAS would reserve address space for threads that nothing here uses.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _parse(output: str) -> Tally:
    outcomes, failures, lines = json.loads(output)
    covered = {name: set(found) for name, found in lines.items()}
    return Tally(Counter(outcomes), [(case, text) for case, text in failures], covered)


def summary(tally: Tally, missing: list[str]) -> dict[str, object]:
    return {
        "cases": tally.outcomes.total() + len(tally.failures),
        "read": sum(n for kind, n in tally.outcomes.items() if kind.endswith(": read")),
        "kinds": len(tally.outcomes),
        "failures": tally.failures,
        "unreached": missing,
    }


def report(tally: Tally, missing: list[str], seed: int, seconds: float) -> Iterator[str]:
    read = sum(n for kind, n in tally.outcomes.items() if kind.endswith(": read"))
    cases = tally.outcomes.total()
    yield f"{cases} cases in {seconds:.0f} s (seed {seed}): {read} read, {cases - read} refused"
    yield f"{len(tally.outcomes)} kinds of outcome; the most frequent:"
    yield from (f"  {n:7d}  {kind}" for kind, n in tally.outcomes.most_common(20))
    yield f"{len(missing)} reader lines that no case reached"
    yield from (f"  {line}" for line in missing)
    yield f"{len(tally.failures)} failures"
    for case, problem in tally.failures[:20]:
        yield f"  case {case}: python scripts/fuzz.py --seed {seed} --case {case}"
        yield "    " + problem.strip().replace("\n", "\n    ")


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutate model files; readers may only refuse.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--traced", type=int, default=20_000, help="cases under the line tracer")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--case", type=int, help="run this one case here and show what it raises")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--progress", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return 0
    if arguments.case is not None:
        with tempfile.TemporaryDirectory() as name:
            print(run_case(arguments.seed, arguments.case, Path(name)))
        return 0
    start = time.monotonic()
    tally = run_workers(arguments.seed, arguments.cases, arguments.traced, arguments.workers)
    missing = uncovered(tally.lines)
    if arguments.json:
        print(json.dumps(summary(tally, missing)))
    else:
        print("\n".join(report(tally, missing, arguments.seed, time.monotonic() - start)))
    return 1 if tally.failures or missing else 0


if __name__ == "__main__":
    sys.exit(main())
