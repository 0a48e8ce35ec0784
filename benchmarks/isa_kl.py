"""Do all instruction sets of this machine agree? Logits of one text, each against generic.

KL(generic || isa) in nats a token, the largest difference of a logit, and whether all bits agree.
Instruction sets without rows that round in their own way must agree in every bit (exit status 1
otherwise). `--save` keeps the generic logits, `--against` compares with those of another machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo._native import testing
from octavo.backends.base import RuntimeConfig
from octavo.backends.native.backend import load
from octavo.evals.logprobs import log_softmax
from octavo.evals.scorer import ExecutorScorer
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.hub import resolve_model
from octavo.io.tokenizer import load_tokenizer

F32 = npt.NDArray[np.float32]
TEXT = (
    "The lighthouse keeper counted the ships that passed in the night, wrote their number into a "
    "book, and went to sleep when the sun rose. In the village people said that he had never been "
    "wrong: not in the storm of the first winter, nor when the fog lay on the water for nine days. "
    "Once a captain came ashore to see the book, read it until evening, and asked for a copy."
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One instruction set against the base; KL in nats per token."""

    isa: str
    kl_mean: float
    kl_max: float
    logit_max: float
    equal_bits: bool
    rounds_itself: bool  # a row of this plan rounds in the instruction's own way


def logits_of(model: OpenModel, isa: str, weights: str) -> tuple[F32, frozenset[str]]:
    """Logits of the text [tokens, vocab], and the names of the kernels that made them."""
    tokenizer = load_tokenizer(model.path, model.metadata if model.kind == "gguf" else None)
    tokens = tokenizer.encode(TEXT)
    config = RuntimeConfig(max_tokens=64, max_seqs=1, context=512, isa=isa, format=weights)
    executor = load(model.spec, model.source, config)
    kernels = frozenset(use.kernel for use in executor.receipt().kernels)
    scorer = ExecutorScorer(executor, isa)
    try:
        blocks = [block.copy() for block in scorer.logits(tokens, 0, 64)]
    finally:
        scorer.close()
    return np.concatenate(blocks), kernels


def compare(isa: str, base: F32, own: F32, kernels: frozenset[str]) -> Difference:
    p, q = log_softmax(base), log_softmax(own)
    kl = (np.exp(p) * (p - q)).sum(1)
    rounding = {name for name, *_, rounds in testing.rows(isa) if rounds}
    return Difference(
        isa,
        float(kl.mean()),
        float(kl.max()),
        float(np.abs(base - own).max()),
        base.tobytes() == own.tobytes(),
        any(name in kernel for name in rounding for kernel in kernels),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--format", default="source", help="as for `octavo run`")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--json", action="store_true", help="accepted for symmetry: always JSON")
    arguments = parser.parse_args()
    with open_model(resolve_model(arguments.model)) as model:
        if arguments.against:
            base = np.load(arguments.against)
        else:
            base = logits_of(model, "generic", arguments.format)[0]
        if arguments.save:
            np.save(arguments.save, base)
        found = [
            compare(isa, base, *logits_of(model, isa, arguments.format)) for isa in testing.isas()
        ]
    print(json.dumps([asdict(one) for one in found], indent=1))
    sys.exit(0 if all(one.equal_bits or one.rounds_itself for one in found) else 1)


if __name__ == "__main__":
    main()
