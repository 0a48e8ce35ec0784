"""Attention of integers: exact sums, whatever the chunks; what refuses it."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.errors import ConfigError, UnsupportedError
from octavo.formats.kv import hadamard, quantize_kv

torch = pytest.importorskip("torch")
integer = pytest.importorskip("octavo.backends.reference.integer")
attention = pytest.importorskip("octavo.backends.reference.attention")
stores = pytest.importorskip("octavo.backends.reference.kv")
rounding = pytest.importorskip("octavo.backends.reference.rounding")

from octavo.compress.methods.qat import Qat  # noqa: E402
from octavo.spec.decoder import AttentionSpec  # noqa: E402
from support.native_models import llama_like  # noqa: E402

SPEC: AttentionSpec = llama_like().layers[0].attention
LENGTH = integer.SPLIT + 40


def rows(seed: int, heads: int, n: int = LENGTH) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, heads, SPEC.head_dim, generator=draw)


def dense(chunks: tuple[int, ...], format: str = "int8_dot") -> torch.Tensor:
    q, k, v = rows(1, SPEC.heads), rows(2, SPEC.kv_heads), rows(3, SPEC.kv_heads)
    store, at, answers = stores.DenseKv(1, format), 0, []
    for n in chunks:
        part = slice(at, at + n)
        answers.append(store.attend(0, SPEC, q[part], k[part], v[part]))
        at += n
    return torch.cat(answers)


def test_products_are_those_of_integers() -> None:
    """One query by hand in int64: its scores, and the weighted sum of each split of values."""
    q, k, v = rows(1, SPEC.heads)[-1:], rows(2, SPEC.kv_heads), rows(3, SPEC.kv_heads)
    at = torch.arange(LENGTH)
    found = integer.attend_int8(SPEC, (q, at[-1:]), (k, v), at)[0]
    head, group = SPEC.heads - 1, SPEC.heads // SPEC.kv_heads
    turned = hadamard(q[0, head].numpy(), np)
    step = np.float32(np.abs(turned).max() / np.float32(127))
    query = np.rint(turned * (np.float32(127) / np.abs(turned).max())).astype(np.int64)
    keys, key_scale = quantize_kv(k[:, head // group].numpy(), "int8", True, np)
    values, value_scale = quantize_kv(v[:, head // group].numpy(), "int8", False, np)
    s = (keys.astype(np.int64) @ query) * key_scale[:, 0].astype(np.float64) * step * SPEC.scale
    p = np.exp(s - s.max())
    w, mixed = p * value_scale[:, 0], np.zeros(SPEC.head_dim)
    for start in range(0, LENGTH, integer.SPLIT):
        part = slice(start, start + integer.SPLIT)
        top = w[part].max()
        codes = np.rint(w[part] * 255 / top).astype(np.int64)
        assert 0 <= codes.min() <= codes.max() == 255
        mixed += (codes @ values[part].astype(np.int64)) * top / 255
    # fp32's exp and sums; a weight on the edge of two codes moves a sum by one value's step
    np.testing.assert_allclose(found[head].numpy(), mixed / p.sum(), atol=2e-4)


@pytest.mark.parametrize("chunks", [(LENGTH - 1, 1), (100, 100, LENGTH - 200)])
def test_chunks_change_no_more_than_the_order_of_sums(chunks: tuple[int, ...]) -> None:
    """The codes are functions of query and key alone; torch's exp may differ by shape in the last
    place, which moves a code on an edge by one of 255."""
    torch.testing.assert_close(dense(chunks), dense((LENGTH,)), rtol=0, atol=2e-3)


def test_the_cost_is_above_that_of_the_cache_and_small() -> None:
    plain, cache, found = dense((LENGTH,), "fp32"), dense((LENGTH,), "int8"), dense((LENGTH,))
    lost = [float((x - plain).square().mean()) for x in (cache, found)]
    assert lost[0] < lost[1] < 0.01 * float(plain.square().mean())


def test_training_is_refused_it() -> None:
    with pytest.raises(UnsupportedError, match="int8_dot rounds queries and the softmax"):
        rounding.round_kv(rows(1, 2), rows(2, 2), "int8_dot")
    with pytest.raises(ConfigError, match="qat: kv_format int8_dot"):
        Qat(kv_format="int8_dot")
