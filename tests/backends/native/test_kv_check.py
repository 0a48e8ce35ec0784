from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octavo.backends.base import RuntimeConfig
from octavo.backends.native.kv_check import TOKENS, KvCost, log_softmax
from support.native_models import gemma_like, llama_like, load_native

CONFIG = RuntimeConfig(context=128, threads=1, max_tokens=32, max_seqs=2)


@pytest.mark.parametrize(
    ("format", "same_top", "begins", "ends"),
    [
        ("int8", 0.97, "KV int8: mean KL 0.02 from", "of its own)"),
        ("int4", 0.9, "KV int4: mean", "of its own)"),
        ("int4", 0.89, "WARNING: KV int4 costs this model visibly: ", "try int8 or bf16"),
        ("int8", 0.7, "WARNING: KV int8 costs this model visibly: ", "; try bf16"),
        ("int4", 0.49, "WARNING: KV int4 collapses this model: ", "; use bf16"),
    ],
)
def test_the_note_says_what_it_means(format, same_top, begins, ends):
    note = KvCost(format, 48, 0.02, same_top).note
    assert note.startswith(begins)
    assert note.endswith(ends)


def kv_notes(spec, **fields) -> list[str]:
    executor = load_native(spec, replace(CONFIG, **fields))
    notes = [note for note in executor.receipt().notes if "KV" in note]
    executor.close()
    return notes


@pytest.mark.parametrize("spec", [llama_like(), gemma_like()], ids=["llama", "gemma"])
def test_integer_formats_are_measured_at_load(spec):
    (note,) = kv_notes(spec, kv_format="int8")
    assert f"{TOKENS} tokens" in note
    assert kv_notes(spec, kv_format="bf16") == []
    assert kv_notes(spec, kv_format="int8", context=TOKENS - 1) == []


def test_the_figure_is_the_same_each_time():
    assert kv_notes(llama_like(), kv_format="int8") == kv_notes(llama_like(), kv_format="int8")


def test_fewer_bits_cost_more():
    spec = gemma_like()
    figures = [
        float(kv_notes(spec, kv_format=kv)[0].split("mean KL ")[1].split(" ")[0])
        for kv in ("int8", "int4")
    ]
    assert 0 < 10 * figures[0] < figures[1]


def test_log_softmax_takes_large_logits():
    rows = log_softmax(np.array([[1000.0, 1000.0], [0.0, -1000.0]], np.float32))
    np.testing.assert_allclose(np.exp(rows), [[0.5, 0.5], [1.0, 0.0]], atol=1e-15)
