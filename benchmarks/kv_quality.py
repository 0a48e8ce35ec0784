"""What each KV format costs in KL divergence, against fp32 keys and values.

Everything else runs unrounded (activations a32) on both sides, over the same windows of a text.
KIVI rounds what is more than 128 tokens old: "kl_old" is of the positions behind it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from octavo.backends.base import WANT_LOGITS, KvFormat, RuntimeConfig, StepBatch
from octavo.backends.native.backend import load
from octavo.backends.native.executor import NativeExecutor
from octavo.formats.kivi import WINDOW
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.hub import resolve_model
from octavo.io.tokenizer import load_tokenizer

F32, F64 = npt.NDArray[np.float32], npt.NDArray[np.float64]
FORMATS: tuple[KvFormat, ...] = (
    "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "int4", "kivi4", "kivi2"
)  # fmt: skip
ROWS = 64  # of logits that are compared at a time


def executor_of(model: OpenModel, kv_format: KvFormat, size: int, threads: int) -> NativeExecutor:
    config = RuntimeConfig(
        kv_format=kv_format, activations="a32", context=size, max_tokens=size, max_seqs=1,
        threads=threads,
    )  # fmt: skip
    return load(model.spec, model.source, config)


def logits_of(executor: NativeExecutor, window: list[int]) -> F32:
    """[positions, vocab] of a window in one step."""
    n, blocks = len(window), executor.kv_blocks[0]
    batch = StepBatch(executor.layout, n, 1, blocks)
    batch.n_seqs, batch.row_start[1] = 1, n
    batch.block_table[:, 0, :] = np.arange(blocks)
    batch.token[:n], batch.position[:n], batch.want[:n] = window, np.arange(n), WANT_LOGITS
    batch.logits = np.empty((n, executor.spec.vocab), np.float32)
    executor.step(batch)
    return batch.logits


def log_softmax(logits: F32) -> F64:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(1, keepdims=True)))


def compared(base: F32, other: F32) -> Iterator[tuple[F64, npt.NDArray[np.bool_]]]:
    """KL(base || other) in nats of each position, and whether the top tokens agree."""
    for start in range(0, len(base), ROWS):
        p, q = (log_softmax(x[start : start + ROWS]) for x in (base, other))
        yield (np.exp(p) * (p - q)).sum(1), p.argmax(1) == q.argmax(1)


def summary(found: list[tuple[F64, npt.NDArray[np.bool_]]], positions: int) -> dict[str, float]:
    """Over windows of `positions` each."""
    kl, same = (np.concatenate(part) for part in zip(*found, strict=True))
    old = kl.reshape(-1, positions)[:, WINDOW:]
    return {
        "kl": float(kl.mean()),
        "kl_99": float(np.quantile(kl, 0.99)),
        "top1": float(same.mean()),
        "kl_old": float(old.mean()) if old.size else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--formats", default=",".join(FORMATS))
    arguments = parser.parse_args()
    size = arguments.window
    chosen = cast(list[KvFormat], arguments.formats.split(","))
    with open_model(resolve_model(arguments.model)) as model:
        tokenizer = load_tokenizer(model.path, model.metadata if model.kind == "gguf" else None)
        tokens = tokenizer.encode(arguments.text.read_text(encoding="utf-8"))
        windows = [tokens[i * size : (i + 1) * size] for i in range(arguments.windows)]
        plain = executor_of(model, "fp32", size, arguments.threads)
        base = [logits_of(plain, window) for window in windows]
        plain.close()
        for kv_format in chosen:
            executor = executor_of(model, kv_format, size, arguments.threads)
            found = [
                pair
                for window, logits in zip(windows, base, strict=True)
                for pair in compared(logits, logits_of(executor, window))
            ]
            row = {
                "model": arguments.model,
                "kv": kv_format,
                "bytes_per_token": executor.receipt().kv_bytes_per_token,
                **summary(found, size),
            }
            executor.close()
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
