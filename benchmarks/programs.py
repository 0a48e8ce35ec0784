"""llama-bench and llama-batched-bench, built elsewhere, as runners: one process for every task.

ik_llama.cpp has the same two programs with nearly the same options; `ik` says which.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import TOGETHER_CONTEXT, TOGETHER_PROMPT, Task

TIMEOUT = 600  # seconds


@dataclass(frozen=True, slots=True)
class ProgramSettings:
    """`repack`: -rtr 1 for ik_llama.cpp; llama.cpp always repacks what it can."""

    threads: int
    flash_attention: bool = True
    repack: bool = True


class BenchProgram:
    """A directory with the two programs, and one file. Raises RuntimeError when one fails."""

    def __init__(self, name: str, programs: Path, model: Path, settings: ProgramSettings) -> None:
        self.name, self.programs, self.model, self.settings = name, programs, model, settings
        self.ik = name.startswith("ik")
        self.facts: dict[str, Any] = {}
        self.command: list[str] = []

    def measure(self, task: Task) -> float:
        """Seconds of a task, from the program's own clock. A prompt is shared by a batch."""
        self.command = self._batched(task) if task.batch > 1 else self._single(task)
        output = _run(self.command)
        if task.batch > 1:
            return task.work / parse_batched(output)[task.batch]
        row = parse_bench(output, task)
        self.facts = {"build": row["build_commit"], "type": row.get("model_type", "")}
        return task.work / row["avg_ts"]

    def _single(self, task: Task) -> list[str]:
        if task.kind == "prefill":
            what = ["-p", str(task.tokens), "-n", "0"]
        elif not task.depth:
            what = ["-p", "0", "-n", str(task.tokens)]
        elif self.ik:
            what = ["-p", "0", "-n", "0", "-gp", f"{task.depth},{task.tokens}"]
        else:
            what = ["-p", "0", "-n", str(task.tokens), "-d", str(task.depth)]
        return [*self._program("llama-bench"), *what, "-r", "1", "-o", "json"]

    def _batched(self, task: Task) -> list[str]:
        sizes = ["-npp", str(TOGETHER_PROMPT), "-ntg", str(task.tokens), "-npl", str(task.batch)]
        context = ["-c", str(task.batch * TOGETHER_CONTEXT), "-pps"]
        return [*self._program("llama-batched-bench"), *sizes, *context]

    def _program(self, program: str) -> list[str]:
        given = self.settings
        command = [str(self.programs / program), "-m", str(self.model), "-t", str(given.threads)]
        if program == "llama-bench":
            flash = ["-fa", str(int(given.flash_attention))]
            return command + flash + (["-rtr", str(int(given.repack))] if self.ik else [])
        if self.ik:  # on by default there
            flash = [] if given.flash_attention else ["-no-fa"]
            return command + flash + (["-rtr"] if given.repack else [])
        return [*command, "-fa", "on" if given.flash_attention else "off"]

    def ask(self, what: str) -> Any:
        """A program answers nothing but its table."""
        raise NotImplementedError(f"{self.name} has no {what}")

    def close(self) -> None:
        """Nothing runs between tasks."""


def _run(command: Sequence[str]) -> str:
    library = str(Path(command[0]).parent)
    environment = {**os.environ, "LD_LIBRARY_PATH": library}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=TIMEOUT, env=environment
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-300:]
        raise RuntimeError(f"{Path(command[0]).name} ended with status {done.returncode}: {words}")
    return done.stdout + (
        done.stderr if "batched" in command[0] else ""
    )  # ik: its table goes there


def parse_bench(text: str, task: Task) -> Mapping[str, Any]:
    """The row of llama-bench's JSON that is this task. Raises RuntimeError when it isn't there."""
    begin, end = text.find("["), text.rfind("]")
    try:
        rows = json.loads(text[begin : end + 1])
    except json.JSONDecodeError as error:
        raise RuntimeError(f"llama-bench printed no JSON: {text.strip()[-200:]!r}") from error
    prompt = task.tokens if task.kind == "prefill" else 0
    for row in rows:
        found: dict[str, Any] = row
        generated = found["n_gen"] == (0 if prompt else task.tokens)
        if generated and (not prompt or found["n_prompt"] == prompt) and found["avg_ts"] > 0:
            return found
    raise RuntimeError(f"llama-bench did not measure {task.name}")


def parse_batched(text: str) -> dict[int, float]:
    """Batch -> tokens per second of decoding, from llama-batched-bench's table.

    Raises RuntimeError when there is no such row.
    """
    rates = {}
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "S_TG t/s" in cells:
            header = cells
        elif header and len(cells) == len(header) and cells[0].isdigit():
            row = dict(zip(header, cells, strict=True))
            rates[int(row["B"])] = float(row["S_TG t/s"])
    if not rates:
        raise RuntimeError(f"llama-batched-bench measured nothing: {text.strip()[-200:]!r}")
    return rates
