"""What each KV format costs in KL divergence, against fp32 keys and values.

Everything else runs unrounded (activations a32) on both sides, over the same windows of a text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.backends.base import WANT_LOGITS, KvFormat, RuntimeConfig, StepBatch
from octavo.backends.native.backend import load
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.hub import resolve_model
from octavo.io.tokenizer import load_tokenizer

F64 = npt.NDArray[np.float64]
FORMATS: tuple[KvFormat, ...] = ("bf16", "fp16", "int8", "int4")


def log_probabilities(
    model: OpenModel, kv_format: KvFormat, windows: list[list[int]]
) -> Iterator[F64]:
    """Natural logs [positions, vocab] of each window."""
    size = max(map(len, windows))
    config = RuntimeConfig(
        kv_format=kv_format, activations="a32", context=size, max_tokens=size, max_seqs=1
    )
    executor = load(model.spec, model.source, config)
    blocks = executor.kv_blocks[0]
    batch = StepBatch(executor.layout, size, 1, blocks)
    batch.n_seqs = 1
    batch.block_table[:, 0, :] = np.arange(blocks)
    for window in windows:
        n = len(window)
        batch.row_start[1] = n
        batch.token[:n], batch.position[:n] = window, np.arange(n)
        batch.want[:n] = WANT_LOGITS
        batch.logits = np.empty((n, model.spec.vocab), np.float32)
        executor.step(batch)
        wide = batch.logits.astype(np.float64)
        wide -= wide.max(1, keepdims=True)
        yield wide - np.log(np.exp(wide).sum(1, keepdims=True))
    executor.close()


def divergence(base: list[F64], other: Iterator[F64]) -> dict[str, float]:
    """Mean and 99 % quantile of KL(base || other) in nats, and the share of equal top tokens."""
    kl, same = [], []
    for p, q in zip(base, other, strict=True):
        kl.append((np.exp(p) * (p - q)).sum(1))
        same.append(p.argmax(1) == q.argmax(1))
    every = np.concatenate(kl)
    return {
        "kl": float(every.mean()),
        "kl_99": float(np.quantile(every, 0.99)),
        "top1": float(np.concatenate(same).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=2)
    arguments = parser.parse_args()
    with open_model(resolve_model(arguments.model)) as model:
        tokenizer = load_tokenizer(model.path, model.metadata if model.kind == "gguf" else None)
        tokens = tokenizer.encode(arguments.text.read_text(encoding="utf-8"))
        size = arguments.window
        windows = [tokens[i * size : (i + 1) * size] for i in range(arguments.windows)]
        base = list(log_probabilities(model, "fp32", windows))
        for kv_format in FORMATS:
            found = divergence(base, log_probabilities(model, kv_format, windows))
            print(json.dumps({"model": arguments.model, "kv": kv_format, **found}), flush=True)


if __name__ == "__main__":
    main()
