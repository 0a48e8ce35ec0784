"""Pages of keys and values that move into huge ones in the middle of a sequence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from octavo.backends.base import RuntimeConfig
from octavo.spec.decoder import DecoderSpec
from support.native_models import Chunk, llama_like, load_native, new_batch, step_logits

TOKENS = 1090  # the cache looks at its pages every 1,024
CONFIG = RuntimeConfig(
    max_tokens=64,
    max_seqs=2,
    context=TOKENS,
    kv_tokens=3 * TOKENS // 2,
    threads=2,
    kv_format="fp32",
)


def broad_llama() -> DecoderSpec:
    """Its cache of 4 KB a token fills whole pages of 2 MB."""
    spec = llama_like()
    attention = replace(spec.layers[0].attention, head_dim=128)
    layers = tuple(replace(block, attention=attention) for block in spec.layers)
    return replace(spec, layers=layers, max_positions=TOKENS)


def logits_behind(spec: DecoderSpec, tokens: list[int], others: int) -> np.ndarray:
    """Of the last tokens of a sequence, `others` tokens of another one coming first."""
    executor = load_native(spec, CONFIG)
    batch = new_batch(executor)
    first_block = -(-TOKENS // CONFIG.block_size)
    for sequence, block in ((tokens[:others], first_block), (tokens, 0)):
        rows = [
            step_logits(executor, batch, [Chunk(sequence[at : at + 64], at, block)])
            for at in range(0, len(sequence), 64)
        ]
    return np.concatenate(rows)[-128:]


def test_pages_that_move_leave_no_trace() -> None:
    """They move 66 tokens before the end, or 450."""
    spec = broad_llama()
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, spec.vocab, TOKENS)]
    late, early = logits_behind(spec, tokens, others=0), logits_behind(spec, tokens, others=384)
    np.testing.assert_array_equal(late, early)
