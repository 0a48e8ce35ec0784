"""Mean KL of two quantized models from one F16 source, on the same positions, paired.

The base is the F16 file run by llama.cpp, so that every difference of implementation counts
against us. Ours is the same F16 file in another number format.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.backends.base import RuntimeConfig
from octavo.evals.divergence import compare_rows
from octavo.evals.logprobs import check_finite, row_blocks
from octavo.evals.rivals import LlamaCpp
from octavo.evals.scorer import ExecutorScorer, Scorer, block_rows
from octavo.evals.statistics import Blocks
from octavo.evals.windows import Window, split

F64 = npt.NDArray[np.float64]
CONTEXT = 512


def main() -> None:
    arguments = _arguments()
    print(json.dumps(measure(arguments)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the F16 file")
    parser.add_argument("theirs", type=Path, help="llama.cpp's file")
    parser.add_argument("--format", default="int4_g32", help="ours")
    parser.add_argument("--keep", default="", help="PART=FORMAT of ours, such as head=int8_g32")
    parser.add_argument("--kv", default="bf16", help="format of our keys and values")
    parser.add_argument("--activations", default="auto", help="of ours")
    parser.add_argument("--tokens", type=int, default=4096, help="positions to score, about")
    parser.add_argument("--code", action="store_true", help="score code instead of prose")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Estimates of both mean KLs and of their paired difference, and of the same top token."""
    windows = _windows(arguments.source, arguments.tokens, arguments.code)
    ours = _ours(arguments)
    theirs, base = (LlamaCpp(path, CONTEXT) for path in (arguments.theirs, arguments.source))
    scored = [kl_by_token(ours, theirs, base, window) for window in windows]
    for scorer in (ours, theirs, base):
        scorer.close()
    mine, rival = (np.concatenate([pair[side] for pair in scored]) for side in (0, 1))
    blocks = Blocks(len(mine))
    return {
        "tokens": len(mine),
        "ours": dataclasses.asdict(blocks.mean(mine)),
        "theirs": dataclasses.asdict(blocks.mean(rival)),
        "difference": dataclasses.asdict(blocks.mean(mine - rival)),
    }


def _windows(source: Path, count: int, code: bool) -> Sequence[Window]:
    from octavo.io.checkpoint import open_model
    from octavo.io.corpora import stdlib_code, wikipedia
    from octavo.io.tokenizer import load_tokenizer

    with open_model(source) as model:
        tokenizer = load_tokenizer(model.path, model.metadata)
    text = stdlib_code("evaluation") if code else wikipedia("evaluation")
    tokens = tokenizer.encode(text[: 16 * count])[: count + -(-count // CONTEXT)]
    return split(tokens, CONTEXT)


def _ours(arguments: argparse.Namespace) -> Scorer:
    from octavo.backends.native.backend import load
    from octavo.io.checkpoint import open_model

    kept = tuple(tuple(item.split("=")) for item in arguments.keep.split(",") if item)
    config = RuntimeConfig(
        context=CONTEXT,
        max_seqs=1,
        format=arguments.format,
        keep=tuple((part, to) for part, to in kept),
        kv_format=arguments.kv,
        activations=arguments.activations,
    )
    with open_model(arguments.source) as model:
        return ExecutorScorer(load(model.spec, model.source, config), arguments.format)


def kl_by_token(ours: Scorer, theirs: Scorer, base: Scorer, window: Window) -> tuple[F64, F64]:
    """KL(base || ours) and KL(base || theirs) of every scored token of a window."""
    tokens, rows = window.tokens[:-1].tolist(), block_rows(ours.vocab)
    streams = [scorer.logits(tokens, window.first, rows) for scorer in (ours, theirs, base)]
    found: tuple[list[F64], list[F64]] = ([], [])
    for *models, truth in zip(*streams, strict=True):
        for scorer, logits in zip((ours, theirs, base), (*models, truth), strict=True):
            check_finite(logits, scorer.name)
        for part in row_blocks(*truth.shape):
            for side, logits in zip(found, models, strict=True):
                side.append(compare_rows(logits[part], truth[part], _any(truth[part])).kl)
    return np.concatenate(found[0]), np.concatenate(found[1])


def _any(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Losses of the true tokens are not asked for here: any token will do."""
    return np.zeros(len(rows), np.int32)


if __name__ == "__main__":
    main()
