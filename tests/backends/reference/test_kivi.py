"""A KIVI cache: which rounding each query reads, by chunks and pages; what refuses it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo.backends.base import WANT_LOGITS, RuntimeConfig, StepBatch
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.formats.kivi import KIVI_GROUP, WINDOW, old_key, old_value
from octavo.spec.decoder import AttentionSpec, RopeSpec

torch = pytest.importorskip("torch")
kivi = pytest.importorskip("octavo.backends.reference.kivi")
stores = pytest.importorskip("octavo.backends.reference.kv")
executors = pytest.importorskip("octavo.backends.reference.executor")
rounding = pytest.importorskip("octavo.backends.reference.rounding")

DIM, LENGTH = 32, WINDOW + 3 * KIVI_GROUP + 5
SPEC = AttentionSpec(
    heads=4, kv_heads=2, head_dim=DIM, rope=RopeSpec(dim=DIM, theta=1e4), scale=DIM**-0.5
)


def rows(seed: int, heads: int) -> Any:
    x = np.random.default_rng(seed).standard_normal((LENGTH, heads, DIM))
    return torch.from_numpy(x.astype(np.float32))


def dense(format: str, chunks: tuple[int, ...], spec: AttentionSpec = SPEC) -> Any:
    kv, start, found = stores.DenseKv(1, format), 0, []
    q, k, v = rows(1, 4), rows(2, 2), rows(3, 2)
    for size in chunks:
        part = slice(start, start + size)
        found.append(kv.attend(0, spec, q[part], k[part], v[part]))
        start += size
    return torch.cat(found)


@pytest.mark.parametrize("window", [None, 40])
def test_each_query_reads_what_its_distance_says(window: int | None) -> None:
    """Against one query at a time over keys and values chosen one by one, in fp64."""
    spec = replace(SPEC, window=window)
    q = rows(1, 4).double()
    k, v = (rows(seed, 2).bfloat16().float() for seed in (2, 3))
    old_k, old_v = kivi.rounded(stores.whole_groups(k), stores.whole_groups(v), 2)
    found = dense("kivi2", (LENGTH,), spec)
    for i in (0, WINDOW - 1, WINDOW + KIVI_GROUP, LENGTH - 1):
        pick_k = torch.tensor([bool(old_key(i, j)) for j in range(i + 1)])[:, None, None]
        pick_v = torch.tensor([bool(old_value(i, j)) for j in range(i + 1)])[:, None, None]
        keys = torch.where(pick_k, old_k[: i + 1], k[: i + 1]).double()
        values = torch.where(pick_v, old_v[: i + 1], v[: i + 1]).double()
        first = 0 if window is None else max(0, i + 1 - window)
        for head in range(4):
            share = torch.softmax(keys[first:, head // 2] @ q[i, head] * spec.scale, 0)
            wanted = share @ values[first:, head // 2]
            torch.testing.assert_close(found[i, head].double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunks", [(1,) * LENGTH, (130, 1, LENGTH - 131), (33, LENGTH - 33)])
def test_chunks_leave_no_trace(chunks: tuple[int, ...]) -> None:
    """Only the order of torch's sums differs: another precision of one key would show as 1e-2."""
    whole, parts = dense("kivi2", (LENGTH,)), dense("kivi2", chunks)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_within_the_window_it_is_bf16_to_the_bit() -> None:
    assert torch.equal(dense("kivi2", (WINDOW,)), dense("bf16", (WINDOW,)))
    found, plain = dense("kivi2", (WINDOW + 1,)), dense("bf16", (WINDOW + 1,))
    assert float((found - plain)[WINDOW].abs().max()) > 1e-3  # its first value is old


def test_more_bits_are_closer_to_bf16() -> None:
    plain = dense("bf16", (LENGTH,))
    far = {n: float((dense(n, (LENGTH,)) - plain).square().mean()) for n in ("kivi2", "kivi4")}
    assert far["kivi4"] < far["kivi2"] / 10


class Batch:
    """Steps of one sequence over the paged store; `order` is its block table."""

    def __init__(self, spec: Any, order: list[int]) -> None:
        config = RuntimeConfig(kv_format="kivi2", context=256, kv_tokens=512, max_seqs=1)
        config = executors.resolve(spec, config)
        layout = executors.kv_layout(spec, config)
        assert layout.block_size == KIVI_GROUP
        self.kv = stores.PagedKv(layout, (16,) * len(layout.groups), torch.float32, "cpu")
        self.batch = StepBatch(layout, LENGTH, 1, 16)
        self.batch.n_seqs = 1
        self.batch.block_table[:, 0, : len(order)] = order

    def step(self, start: int, stop: int) -> Any:
        n = stop - start
        self.batch.row_start[1] = n
        self.batch.position[:n] = np.arange(start, stop)
        self.batch.want[:n] = WANT_LOGITS
        self.kv.bind(self.batch)
        q, k, v = rows(1, 4), rows(2, 2), rows(3, 2)
        part = slice(start, stop)
        return self.kv.attend(0, SPEC, q[part], k[part], v[part])


def test_pages_give_what_one_text_gives(tiny_spec: Any) -> None:
    batch = Batch(tiny_spec, [5, 1, 7, 0, 2, 9, 11, 12])
    found = torch.cat([batch.step(0, 100), batch.step(100, 101), batch.step(101, LENGTH)])
    torch.testing.assert_close(found, dense("kivi2", (LENGTH,)), rtol=0, atol=1e-5)


@pytest.fixture
def tiny_spec() -> Any:
    from octavo.spec.config_reader import ConfigReader
    from octavo.spec.table import family_for_hf
    from support.tiny_models import tiny_values

    values = {**tiny_values("llama"), "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": DIM, "max_position_embeddings": 256}  # fmt: skip
    return family_for_hf(values["architectures"][0]).from_hf(ConfigReader(values, "config.json"))


def test_what_does_not_know_ages_refuses() -> None:
    from octavo.compress.methods.qat import Qat

    with pytest.raises(UnsupportedError, match="use int4 or int8"):
        rounding.round_kv(rows(1, 2), rows(2, 2), "kivi2")
    with pytest.raises(ConfigError, match="qat: kv_format kivi4"):
        Qat(kv_format="kivi4")


def test_a_key_beyond_fp16_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match=r"65504.* bf16"):
        kivi.rounded(rows(1, 2)[:KIVI_GROUP] * 1e5, rows(2, 2)[:KIVI_GROUP], 2)


def test_heads_that_groups_do_not_divide_are_refused(tiny_spec: Any) -> None:
    layer = tiny_spec.layers[0]
    narrow = replace(layer, attention=replace(layer.attention, head_dim=16))
    spec = replace(tiny_spec, layers=(narrow, *tiny_spec.layers[1:]))
    with pytest.raises(UnsupportedError, match="kivi2 needs a head_dim that 32 divides"):
        executors.resolve(spec, RuntimeConfig(kv_format="kivi2"))
