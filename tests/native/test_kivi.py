"""KIVI's cache: codes as the formats module has them; each query reads what it should, in equal
bits whatever the company, the chunks or the ISA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from octavo._native import testing
from octavo.formats.kivi import (
    KIVI_BITS,
    KIVI_GROUP,
    RECENT,
    WINDOW,
    old_key,
    old_value,
    round_keys,
    round_values,
)
from octavo.formats.kv import kv_head_bytes
from support.packed_weights import ISAS

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U = 2.0**-24
KINDS = tuple(KIVI_BITS)
TOKENS = 300
EDGES = (0, 31, 126, 127, 128, 129, 143, 144, 158, 159, 160, 190, 191, 255, 256, 287, 299)


def bf16(x: F32) -> F32:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Sequence:
    """Pages of codes and of bf16, and what was written: [tokens, kv_heads, head_dim]."""

    kind: str
    codes: Any
    recent: Any
    table: I32
    recent_table: I32
    k: F32
    v: F32
    block_size: int


def make_sequence(isa: str, kind: str, dim: int, heads: int = 1, block_size: int = 32) -> Sequence:
    rng = np.random.default_rng(dim)
    k, v = (bf16(rng.standard_normal((TOKENS, heads, dim)).astype(np.float32)) for _ in range(2))
    k[:, :, 3] *= 16  # the large channel that KIVI is for
    blocks = -(-TOKENS // block_size)
    table, recent_table = (rng.permutation(blocks + 3)[:blocks].astype(np.int32) for _ in range(2))
    codes, recent = (
        testing.Pages(blocks + 3, block_size, heads, dim, format) for format in (kind, "bf16")
    )
    for j in range(TOKENS):
        at, slot = j // block_size, j % block_size
        assert testing.kv_write(isa, recent, int(recent_table[at]), slot, k[j], v[j]) == 0
        assert testing.kv_write(isa, codes, int(table[at]), slot, k[j], v[j]) == 0
        if j % KIVI_GROUP == KIVI_GROUP - 1:
            first = slot - KIVI_GROUP + 1
            testing.kivi_keys(isa, codes, int(table[at]), recent, int(recent_table[at]), first)
    return Sequence(kind, codes, recent, table, recent_table, k, v, block_size)


def queries(n: int, dim: int) -> F32:
    return np.random.default_rng(1).standard_normal((n, dim)).astype(np.float32)


def attend(
    isa: str, seq: Sequence, q: F32, pos: I32, span: tuple[int, int], head: int = 0, window: int = 0
) -> F32:
    """One split, [n_q, head_dim], divided by its sum."""
    where = (head, *span, window)
    o, m, total = testing.attention(
        isa, seq.codes, seq.table, q, pos, where, 0.125, 0.0, seq.recent, seq.recent_table
    )
    return np.stack(
        [testing.attention_merge(isa, o[i][None], m[i : i + 1], total[i : i + 1])
         for i in range(len(q))]
    )  # fmt: skip


def read_by(seq: Sequence, pos: int, head: int) -> tuple[F32, F32]:
    """Keys and values [pos + 1, head_dim] as the query at `pos` reads them."""
    bits, whole = KIVI_BITS[seq.kind], TOKENS // KIVI_GROUP * KIVI_GROUP
    k, v, j = seq.k[:, head].copy(), seq.v[:, head].copy(), np.arange(TOKENS)
    rounded = round_keys(seq.k[:whole], bits, np)[:, head]
    k[:whole] = np.where(old_key(pos, j[:whole])[:, None], rounded, k[:whole])
    v = np.where(old_value(pos, j)[:, None], round_values(seq.v, bits, np)[:, head], v)
    return k[: pos + 1], v[: pos + 1]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "block_size"), [(64, 32), (32, 64), (96, 32), (128, 32)])
def test_equals_softmax_of_what_each_query_reads(
    isa: str, kind: str, dim: int, block_size: int
) -> None:
    """Bound: a score errs by (dim + 3) u sum |q k| scale, a weight by twice that and the rounding
    of exp and of the sums; as tests/native/test_attention.py has it."""
    seq = make_sequence(isa, kind, dim, heads=2, block_size=block_size)
    pos = np.array(EDGES, np.int32)
    q = queries(len(pos), dim)
    got = attend(isa, seq, q, pos, (0, TOKENS), head=1)
    for i, p in enumerate(EDGES):
        k, v = (x.astype(np.float64) for x in read_by(seq, p, 1))
        s = k @ q[i].astype(np.float64) * 0.125
        e = (dim + 3) * U * (np.abs(k) @ np.abs(q[i].astype(np.float64))) * 0.125
        share = np.exp(s - s.max())
        share /= share.sum()
        slip = 2 * e.max() + 2 * (s.max() - s.min()) * U + (8 + 2 * len(k)) * U
        assert (np.abs(got[i] - share @ v) <= 2 * slip * (share @ np.abs(v)) + 1e-30).all(), p


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_company_leaves_no_trace(isa: str, kind: str) -> None:
    seq = make_sequence(isa, kind, 64)
    pos = np.array([*EDGES, 299, 128, 0], np.int32)
    q = queries(len(pos), 64)
    together = attend(isa, seq, q, pos, (0, TOKENS))
    for i, p in enumerate(pos):
        alone = attend(isa, seq, q[i : i + 1], pos[i : i + 1], (0, int(p) + 1))
        assert alone.tobytes() == together[i : i + 1].tobytes()


@pytest.mark.parametrize("isa", [i for i in ISAS if i != "generic"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [96, 128])
def test_every_isa_gives_the_generic_bits(isa: str, kind: str, dim: int) -> None:
    seq, plain = (make_sequence(one, kind, dim) for one in (isa, "generic"))
    assert seq.codes.raw() == plain.codes.raw()
    pos = np.array(EDGES, np.int32)
    q = queries(len(pos), dim)
    for window in (0, 50, 200):
        a, b = (
            attend(one, s, q, pos, (0, TOKENS), window=window)
            for one, s in ((isa, seq), ("generic", plain))
        )
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_slid_out_of_bf16_are_not_read(isa: str, kind: str) -> None:
    """Nothing of them but the last RECENT tokens is there; what is absent would be hidden."""
    seq = make_sequence(isa, kind, 64)
    for last in (TOKENS - 1, 287, 286):
        q, pos = queries(1, 64), np.array([last], np.int32)
        want = attend(isa, seq, q, pos, (0, last + 1))
        gone = seq.recent_table.copy()
        gone[: (last - RECENT + 1) // seq.block_size] = -1
        assert (gone == -1).any()
        slid = Sequence(seq.kind, seq.codes, seq.recent, seq.table, gone, seq.k, seq.v, 32)
        assert attend(isa, slid, q, pos, (0, last + 1)).tobytes() == want.tobytes()
        gone[(last - RECENT + 1) // seq.block_size + 1] = -1
        assert attend(isa, slid, q, pos, (0, last + 1)).tobytes() != want.tobytes()


def read_codes(raw: bytes, kind: str, dim: int) -> tuple[F32, F32]:
    """Keys and values [32, dim] of one block of 32 tokens with one head, by the layout of
    native/core/types.h."""
    bits, size = KIVI_BITS[kind], KIVI_GROUP * kv_head_bytes(kind, dim)
    n, groups = KIVI_GROUP * dim * bits // 8, dim // KIVI_GROUP
    pages = [np.frombuffer(raw, np.uint8)[start : start + size] for start in (0, size)]
    words = pages[0][:n].view(np.uint32).reshape(2, dim * bits // 32, 16)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = words[:, :, None, :] >> shifts[:, None] & np.uint32(2**bits - 1)
    keys = codes.reshape(2, dim, 16).swapaxes(1, 2).reshape(KIVI_GROUP, dim)
    step, least = pages[0][n:].view(np.float16).astype(np.float32).reshape(2, dim)
    k = least + step * keys.astype(np.float32)
    rows = pages[1][:n].reshape(KIVI_GROUP, -1)
    if bits == 4:
        pairs = rows.reshape(KIVI_GROUP, groups, 16)
        values = np.stack([pairs & 15, pairs >> 4], 2).reshape(KIVI_GROUP, groups, 32)
    else:
        narrow = rows.copy().view(np.uint32)[:, :, None] >> shifts & np.uint32(3)
        values = narrow.reshape(KIVI_GROUP, groups, 32)
    grids = pages[1][n:].view(np.float16).astype(np.float32).reshape(groups, 2, KIVI_GROUP)
    step, least = (grids[:, i].T[:, :, None] for i in (0, 1))
    return k, (least + step * values.astype(np.float32)).reshape(KIVI_GROUP, dim)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [32, 64, 96])
def test_codes_are_those_of_the_formats_module(isa: str, kind: str, dim: int) -> None:
    """Bit for bit; for constant, tiny, huge and lopsided values too."""
    rng = np.random.default_rng(dim)
    x = rng.standard_normal((KIVI_GROUP, 1, dim)).astype(np.float32)
    x[:, 0, 0], x[:, 0, 1] = 0, 1.5
    x[:, 0, 2] *= np.float32(1e-7)
    x[:, 0, 3] *= np.float32(1e3)
    x[3, 0] *= np.float32(10)
    x[4, 0] = np.abs(x[4, 0]) + 100
    codes, recent = (testing.Pages(1, 32, 1, dim, format) for format in (kind, "bf16"))
    for slot, row in enumerate(x):
        testing.kv_write(isa, recent, 0, slot, row, row * 3)
        testing.kv_write(isa, codes, 0, slot, row, row * 3)
    testing.kivi_keys(isa, codes, 0, recent, 0, 0)
    k, v = read_codes(codes.raw(), kind, dim)
    bits = KIVI_BITS[kind]
    np.testing.assert_array_equal(k, round_keys(bf16(x), bits, np)[:, 0])
    np.testing.assert_array_equal(v, round_values(bf16(x * 3), bits, np)[:, 0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("value", "lost"), [(65279, 0), (65535, 1), (-1e6, 1), (np.nan, 1)])
def test_values_beyond_fp16_are_counted(isa: str, value: float, lost: int) -> None:
    plain = np.ones((1, 32), np.float32)
    bad = plain.copy()
    bad[0, 7] = value
    pages = testing.Pages(1, 32, 1, 32, "kivi4")
    assert testing.kv_write(isa, pages, 0, 3, plain, plain) == 0
    assert testing.kv_write(isa, pages, 0, 3, bad, plain) == lost
    assert testing.kv_write(isa, pages, 0, 3, plain, bad) == lost


def test_the_window_is_that_of_the_formats_module() -> None:
    """The first key and value that the last query reads as codes, by a value that would show."""
    assert RECENT == WINDOW + KIVI_GROUP - 1
    for i in range(RECENT, 2 * RECENT):
        j = np.arange(i + 1)
        fresh = j[~(old_key(i, j) & old_value(i, j))]
        assert fresh[0] > i - RECENT
