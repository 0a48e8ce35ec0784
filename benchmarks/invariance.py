"""Batch invariance on a real model: identical tokens and bit-identical logits, however they ran.

Eight prompts alone, one thread, whole prefill are the base. Against it: in a batch of eight, with
prefill in chunks of 7, and with 2 threads, and all of these together, for each format and each
instruction set that this machine runs; and for each format of keys and values, and each kind of
activations, with one weight format.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from octavo.backends.base import (
    WANT_LOGITS,
    WANT_NOTHING,
    WANT_TOKEN,
    ActivationFormat,
    KvFormat,
    RuntimeConfig,
    StepBatch,
)
from octavo.backends.native.backend import load
from octavo.backends.native.executor import NativeExecutor
from octavo.evals.kernel_check import runnable_isas
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.hub import resolve_model
from octavo.io.tokenizer import load_tokenizer

F32 = npt.NDArray[np.float32]
SENTENCES = (
    "The capital of France is",
    "def reverse(items):\n    ",
    "Water boils at a temperature that depends on",
    "Once upon a time, in a village by the sea, there lived a clockmaker who",
    "1, 1, 2, 3, 5, 8,",
    "A transformer decoder computes attention over all the tokens before it, which means that",
    "Dear Sir or Madam,",
    "In 1969 the first people walked on the",
)
FORMATS = ("source", "int4_g32", "int4_g64_asym", "int8_channel", "int3_g32", "nf4_g64", "bf16")
KV_FORMATS: tuple[KvFormat, ...] = ("fp32", "fp16", "int8", "int4")  # bf16 runs with every format
ACTIVATIONS: tuple[ActivationFormat, ...] = ("a16", "a8a16", "abf16", "a32")
SLOW_ISAS = ("generic",)  # there, two formats and two prompts show it
WAYS = ((1, 0, 0), (1, 0, 1), (1, 7, 0), (2, 0, 0), (2, 7, 1))  # threads, chunk (0 whole), together


@dataclass(slots=True)
class Sequence8:
    """One sequence as it runs: its tokens, how many are computed, and the logits of each choice."""

    tokens: list[int]
    computed: int = 0
    logits: list[F32] = field(default_factory=list)


def fill(batch: StepBatch, slots: Sequence[int], sequences: Sequence[Sequence8], chunk: int) -> int:
    """Rows of the next step: each sequence catches up by at most `chunk` tokens. Rows that want."""
    row = wanting = 0
    batch.n_seqs = len(sequences)
    for s, (slot, sequence) in enumerate(zip(slots, sequences, strict=True)):
        known = len(sequence.tokens)
        stop = min(known, sequence.computed + chunk) if chunk else known
        rows = slice(row, row + stop - sequence.computed)
        batch.token[rows] = sequence.tokens[sequence.computed : stop]
        batch.position[rows] = np.arange(sequence.computed, stop)
        batch.want[rows] = WANT_NOTHING
        row, sequence.computed = rows.stop, stop
        if stop == known:
            batch.want[row - 1] = WANT_TOKEN | WANT_LOGITS
            wanting += 1
        batch.row_start[s + 1] = row
        blocks = batch.max_blocks
        batch.block_table[:, s, :] = np.arange(slot * blocks, (slot + 1) * blocks)
    return wanting


def step(executor: NativeExecutor, batch: StepBatch, group: list[Sequence8], wanting: int) -> None:
    batch.logits = np.empty((max(1, wanting), executor.spec.vocab), np.float32)
    result = executor.step(batch)
    ready = [s for s in group if s.computed == len(s.tokens)]
    for i, sequence in enumerate(ready):
        sequence.logits.append(batch.logits[i].copy())
        sequence.tokens.append(int(result.token[i]))


def generate(
    executor: NativeExecutor, prompts: list[list[int]], new: int, chunk: int, together: bool
) -> list[Sequence8]:
    sequences = [Sequence8(list(p)) for p in prompts]
    blocks = executor.kv_blocks[0] // len(prompts)
    batch = StepBatch(executor.layout, executor.config.max_tokens, len(prompts), blocks)
    every = list(range(len(prompts)))
    for group in [every] if together else [[i] for i in every]:
        while any(len(sequences[i].logits) < new for i in group):
            live = [i for i in group if len(sequences[i].logits) < new]
            members = [sequences[i] for i in live]
            step(executor, batch, members, fill(batch, live, members, chunk))
    return sequences


def equal(a: Sequence8, b: Sequence8) -> bool:
    return a.tokens == b.tokens and all(
        x.tobytes() == y.tobytes() for x, y in zip(a.logits, b.logits, strict=True)
    )


def configs(isa: str) -> dict[str, RuntimeConfig]:
    """What is checked on an instruction set, by name."""
    base = RuntimeConfig(isa=isa, context=64, kv_tokens=64 * 8)
    formats = FORMATS[:2] if isa in SLOW_ISAS else FORMATS
    found = {name: replace(base, format=name) for name in formats}
    base = replace(base, format=FORMATS[1])
    found |= {f"KV {name}": replace(base, kv_format=name) for name in KV_FORMATS}
    if isa not in SLOW_ISAS:
        found |= {name: replace(base, activations=name) for name in ACTIVATIONS}
    return found


def check(model: OpenModel, prompts: list[list[int]], config: RuntimeConfig) -> list[bool]:
    base: list[Sequence8] | None = None
    results = []
    for threads, chunk, together in WAYS:
        executor = load(model.spec, model.source, replace(config, threads=threads))
        done = generate(executor, prompts, 8, chunk, bool(together))
        executor.close()
        base = base or done
        results.append(all(map(equal, base, done)))
    return results[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry: always JSON")
    arguments = parser.parse_args()
    cases: dict[str, list[bool]] = {}
    isas = runnable_isas()
    with open_model(resolve_model(arguments.model)) as model:
        tokenizer = load_tokenizer(model.path, model.metadata if model.kind == "gguf" else None)
        prompts = [tokenizer.encode(sentence) for sentence in SENTENCES]
        for isa in isas:
            for name, config in configs(isa).items():
                chosen = prompts[:2] if isa in SLOW_ISAS else prompts
                cases[f"{isa} {name}"] = check(model, chosen, config)
                print(isa, name, cases[f"{isa} {name}"], file=sys.stderr, flush=True)
    flat = [ok for ways in cases.values() for ok in ways]
    unequal = [name for name, ways in cases.items() if not all(ways)]
    print(
        json.dumps(
            {
                "cases": len(flat),
                "equal": sum(flat),
                "configurations": len(cases),
                "isas": len(isas),
                "unequal": unequal,
            }
        )
    )


if __name__ == "__main__":
    main()
