"""Attention over pages against a softmax in float64; equal bits whatever the company or the ISA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from octavo._native import testing
from octavo.formats.floats import round_float
from octavo.formats.kv import fake_quantize_kv, hadamard, kv_head_bytes, quantize_kv
from support.packed_weights import ISAS

U = 2.0**-24
INF = float("inf")
FLOATS = ("bf16", "f32", "f16")
FP8 = ("fp8_e4m3", "fp8_e5m2")
KINDS = (*FLOATS, *FP8, "int8", "int4")
Q_STEPS = 32512  # of half a query's range, in the integer formats


@dataclass(frozen=True, slots=True)
class Sequence:
    """Keys and values as stored (fp32 view), in shuffled pages."""

    kind: str
    pages: Any
    table: np.ndarray
    k: np.ndarray  # [keys, kv_heads, head_dim]
    v: np.ndarray
    block_size: int


def stored(x: np.ndarray, kind: str, key: bool) -> np.ndarray:
    if kind in ("int8", "int4"):
        return fake_quantize_kv(x, kind, key, np)
    if kind in FP8:
        return round_float(x, kind.removeprefix("fp8_"), np)
    narrow = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}[kind]
    return x.astype(narrow).astype(np.float32)


def fits(kind: str, dim: int) -> bool:
    return dim % {"int8": 16, "int4": 32, "fp8_e4m3": 16, "fp8_e5m2": 16}.get(kind, 2) == 0


def make_sequence(
    isa: str, keys: int, heads: int, dim: int, kind: str, block_size: int = 16
) -> Sequence:
    rng = np.random.default_rng(keys + dim)
    k = rng.standard_normal((keys, heads, dim)).astype(np.float32)
    v = rng.standard_normal((keys, heads, dim)).astype(np.float32)
    blocks = -(-keys // block_size)
    table = rng.permutation(blocks + 3)[:blocks].astype(np.int32)
    pages = testing.Pages(blocks + 3, block_size, heads, dim, kind)
    for j in range(keys):
        testing.kv_write(isa, pages, int(table[j // block_size]), j % block_size, k[j], v[j])
    return Sequence(kind, pages, table, stored(k, kind, True), stored(v, kind, False), block_size)


def visible(seq: Sequence, pos: int, key0: int, key1: int, window: int) -> np.ndarray:
    j = np.arange(key0, key1)
    seen = j <= pos
    if window:
        seen &= j > pos - window
    return j[seen & (seq.table[j // seq.block_size] >= 0)]


def exact(
    seq: Sequence, q: np.ndarray, head: int, keys: np.ndarray, scale: float, cap: float
) -> tuple[np.ndarray, np.ndarray]:
    """The output in float64, and a bound on the error of fp32 arithmetic in this order.

    A score errs by at most e = (dim + 3) u sum |q k| scale (+ 8 u cap of tanh); a weight p then by
    (2 e + 2 |s - m| u + 8 u) relative; sums of n terms add n u. Integer formats: half a step of the
    rotated query in every element of the rotated key more, and log2(dim) + 2 roundings for each
    rotation of query, key or output, of sums of at most dim terms.
    """
    k, v = seq.k[keys, head].astype(np.float64), seq.v[keys, head].astype(np.float64)
    s = k @ q.astype(np.float64) * scale
    e = (q.shape[0] + 3) * U * (np.abs(k) @ np.abs(q.astype(np.float64))) * scale
    rotations = 0.0
    if seq.kind in ("int8", "int4"):
        dim = q.shape[0]
        rotations = 3 * (np.log2(dim & -dim) + 2) * U
        turned = hadamard(q, np).astype(np.float64)
        spread = np.abs(hadamard(seq.k[keys, head], np) / (dim & -dim))
        step = np.abs(turned).max() / Q_STEPS
        e = e + (step / 2 + rotations * np.abs(turned).max()) * spread.sum(-1) * scale
    if cap:
        s = cap * np.tanh(s / cap)
        e = e + 8 * U * np.abs(s)
    p = np.exp(s - s.max())
    p /= p.sum()
    slip = 2 * e.max() + 2 * (s.max() - s.min()) * U + (8 + 2 * len(keys)) * U
    around = p @ np.abs(v)
    if rotations:  # an element of o, rotated back, takes its error from all the others
        around = np.full_like(around, around.sum())
    return p @ v, 2 * (slip + rotations) * around + 1e-30


def attend(
    isa: str, seq: Sequence, q: np.ndarray, pos: np.ndarray, spans: list[tuple[int, int]],
    head: int = 0, window: int = 0, scale: float = 0.125, cap: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """All splits, merged: [n_q, head_dim]."""
    parts = [
        testing.attention(isa, seq.pages, seq.table, q, pos, (head, a, b, window), scale, cap)
        for a, b in spans
    ]
    return np.stack(
        [
            testing.attention_merge(
                isa,
                np.stack([o[i] for o, _, _ in parts]),
                np.array([m[i] for _, m, _ in parts], np.float32),
                np.array([s[i] for _, _, s in parts], np.float32),
            )
            for i in range(len(q))
        ]
    )


def queries(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [64, 16, 80, 96, 256, 10])
def test_equals_softmax_in_float64(isa: str, kind: str, dim: int) -> None:
    if not fits(kind, dim):
        pytest.skip("no such format of this head_dim")
    seq = make_sequence(isa, 75, 2, dim, kind)
    pos = np.array([74, 74, 74, 40, 16, 15, 0], np.int32)
    q = queries(len(pos), dim)
    for window in (0, 9, 40):
        for cap in (0.0, 5.0):
            got = attend(isa, seq, q, pos, [(0, 75)], head=1, window=window, cap=cap)
            for i, p in enumerate(pos):
                keys = visible(seq, int(p), 0, 75, window)
                want, bound = exact(seq, q[i], 1, keys, 0.125, cap)
                assert (np.abs(got[i] - want) <= bound).all(), (window, cap, p)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_merges_to_the_softmax(isa: str, kind: str) -> None:
    seq = make_sequence(isa, 100, 1, 32, kind)
    pos = np.array([99, 50], np.int32)
    q = queries(2, 32)
    for cut in range(16, 112, 16):
        got = attend(isa, seq, q, pos, [(0, min(cut, 100))] + [(cut, 100)] * (cut < 100))
        for i, p in enumerate(pos):
            want, bound = exact(seq, q[i], 0, visible(seq, int(p), 0, 100, 0), 0.125, 0.0)
            assert (np.abs(got[i] - want) <= bound).all(), cut


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_absent_blocks_are_never_read(isa: str, kind: str, block_size: int) -> None:
    """Unwritten pages hold NaN: one read of them would show."""
    seq = make_sequence(isa, 130, 1, 32, kind, block_size)
    seq.table[0] = -1
    q, pos = queries(3, 32), np.array([129, 100, 5], np.int32)
    got = attend(isa, seq, q, pos, [(0, 130)])
    assert np.isfinite(got).all()
    for i, p in enumerate(pos):
        keys = visible(seq, int(p), 0, 130, 0)
        if len(keys) == 0:
            assert not got[i].any()
            continue
        want, bound = exact(seq, q[i], 0, keys, 0.125, 0.0)
        assert (np.abs(got[i] - want) <= bound).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_split_without_a_visible_key_says_so(isa: str) -> None:
    seq = make_sequence(isa, 64, 1, 32, "bf16")
    q, pos = queries(1, 32), np.array([10], np.int32)
    o, m, total = testing.attention(isa, seq.pages, seq.table, q, pos, (0, 16, 64, 0), 0.1, 0.0)
    assert not o.any()
    assert m[0] == -INF
    assert total[0] == 0
    assert not testing.attention_merge(isa, o, m, total).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_neither_company_nor_later_keys_change_a_bit(isa: str, kind: str) -> None:
    """n_q, the order of queries, absent splits and the end of the range leave no trace."""
    seq = make_sequence(isa, 90, 1, 64, kind)
    pos = np.array([89, 60, 33, 31, 8, 70, 71, 72, 89], np.int32)
    q = queries(len(pos), 64)
    together = attend(isa, seq, q, pos, [(0, 64), (64, 90)])
    for i, p in enumerate(pos):
        end = int(p) + 1
        spans = [(0, min(64, end))] + ([(64, end)] if end > 64 else [])
        alone = attend(isa, seq, q[i : i + 1], pos[i : i + 1], spans)
        assert alone.tobytes() == together[i : i + 1].tobytes()


@pytest.mark.parametrize("isa", [i for i in ISAS if i != "generic"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 12])
def test_every_isa_gives_the_generic_bits(isa: str, kind: str, rows: int) -> None:
    dim = 96 if kind == "int4" else 80
    seq, plain = (make_sequence(one, 75, 2, dim, kind) for one in (isa, "generic"))
    assert seq.pages.raw() == plain.pages.raw()
    pos = np.array([74, 3, 20, 74, 60, 1, 33, 74, 40, 41, 42, 0][:rows], np.int32)
    q = queries(len(pos), dim)
    for window, cap in [(0, 0.0), (30, 20.0)]:
        a, b = (
            attend(one, s, q, pos, [(0, 32), (32, 75)], head=1, window=window, cap=cap)
            for one, s in ((isa, seq), ("generic", plain))
        )
        assert a.tobytes() == b.tobytes()


def codes_of(
    raw: bytes, kind: str, dim: int, key: bool, slot: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [dim] and scales of one token in one block of 16 tokens with one head."""
    half = 16 * kv_head_bytes(kind, dim)
    page = np.frombuffer(raw, np.uint8)[0 if key else half :][:half]
    codes, scales = np.split(page, [16 * dim // (1 if kind == "int8" else 2)])
    found = scales.view(ml_dtypes.bfloat16).astype(np.float32).reshape(-1, 16)[:, slot]
    if kind == "int8" and key:
        return codes.reshape(-1, 16, 4)[:, slot].ravel() - np.uint8(128), found
    if kind == "int8":
        return codes.reshape(16, dim)[slot], found
    if key:
        packed = codes.reshape(-1, 16, 4)[:, slot]
        pair = np.stack([packed & 15, packed >> 4], 1)
    else:
        packed = codes.reshape(16, -1, 16)[slot]
        pair = np.stack([packed & 15, packed >> 4], 1)
    return pair.ravel() - np.uint8(8), found


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_codes_and_scales_are_those_of_the_formats_module(isa: str, kind: str, dim: int) -> None:
    """Bit for bit, for zeros, tiny, huge, lopsided and tied values too."""
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((10, dim)).astype(np.float32)
    rows[0] = 0
    rows[1] *= np.float32(1e-36)
    rows[2] *= np.float32(1e30)
    rows[3, 5] = 1000
    rows[4] = np.abs(rows[4])
    rows[5] = np.where(np.arange(dim) % 2, 1, -1)
    pages = testing.Pages(1, 16, 1, dim, kind)
    for slot, row in enumerate(rows):
        assert testing.kv_write(isa, pages, 0, slot, row[None], row[None] * 3) == 0
    for slot, row in enumerate(rows):
        for key, x in ((True, row), (False, row * 3)):
            codes, scales = codes_of(pages.raw(), kind, dim, key, slot)
            want, scale = quantize_kv(x, kind, key, np)
            assert (codes.view(np.int8) == want).all()
            assert scales.tobytes() == scale.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FP8)
def test_every_code_of_fp8_and_what_lies_between_is_rounded_as_numbers_are(
    isa: str, kind: str
) -> None:
    """All finite codes, all middles of neighbours, and what is just beside them, as one token's
    values: attended alone, a token gives them back."""
    narrow = {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}[kind]
    every = np.arange(256, dtype=np.uint8).view(narrow).astype(np.float32)
    exact = np.sort(every[np.isfinite(every)])
    middle = (exact[1:] + exact[:-1]) / 2
    beside = [np.nextafter(middle, np.float32(side * INF)) for side in (1, -1)]
    x = np.concatenate([exact, middle, *beside]).astype(np.float32)
    x = np.concatenate([x, np.zeros(-len(x) % 16, np.float32)]).reshape(-1, 16)
    for row in x:
        pages = testing.Pages(1, 16, 1, 16, kind)
        assert testing.kv_write(isa, pages, 0, 0, row[None], row[None]) == 0
        q, pos = queries(1, 16), np.zeros(1, np.int32)
        table, where = np.zeros(1, np.int32), (0, 0, 1, 0)
        got, _, _ = testing.attention(isa, pages, table, q, pos, where, 0.0, 0.0)
        np.testing.assert_array_equal(got[0], round_float(row, kind.removeprefix("fp8_"), np))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("kind", "value", "lost"),
    [("f16", 65519, 0), ("f16", 65520, 1), ("f16", -1e6, 1), ("f16", INF, 1), ("f16", np.nan, 1),
     ("bf16", 1e30, 0), ("int8", 1e30, 0), ("int8", INF, 1), ("int8", np.nan, 1),
     ("int4", -INF, 1), ("int4", np.nan, 1), ("f32", INF, 0), ("fp8_e4m3", -448, 0),
     ("fp8_e4m3", 448.0001, 1), ("fp8_e4m3", np.nan, 1), ("fp8_e5m2", 57344, 0),
     ("fp8_e5m2", -57345, 1), ("fp8_e5m2", INF, 1)],
)  # fmt: skip
def test_values_that_a_format_cannot_hold_are_counted(
    isa: str, kind: str, value: float, lost: int
) -> None:
    k = np.ones((1, 32), np.float32)
    bad = k.copy()
    bad[0, 7] = value
    pages = testing.Pages(1, 16, 1, 32, kind)
    assert testing.kv_write(isa, pages, 0, 3, k, k) == 0
    assert testing.kv_write(isa, pages, 0, 3, bad, k) == lost
    assert testing.kv_write(isa, pages, 0, 3, k, bad) == lost
