"""Two stored codes of every four: the layout, and products equal to the dense ones bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo._native import testing
from support.packed_weights import ISAS

KINDS = {"sparse_nibble": ("nibble", 8), "sparse_byte": ("byte", 128)}


def codes_2of4(n: int, k: int, kind: str, seed: int) -> np.ndarray:
    """At most two codes in every aligned four differ from the zero; some fours hold fewer."""
    rng = np.random.default_rng(seed)
    zero = KINDS[kind][1]
    codes = rng.integers(0, 2 * zero, (n, k)).astype(np.uint8)
    place = rng.random((n, -(-k // 4), 4)).argsort(-1).reshape(n, -1)[:, :k]
    codes[place >= rng.integers(0, 3, (n, 1))] = zero
    return codes


def both(
    n: int, k: int, kind: str, group: int, extra: str = "", seed: int = 0
) -> tuple[Any, Any, np.ndarray]:
    """(sparse, dense, codes) of the same values."""
    rng = np.random.default_rng(seed)
    codes = codes_2of4(n, k, kind, seed)
    name, zero = KINDS[kind]
    groups = -(-k // group) if group else 1
    scales = rng.standard_normal((n, groups)).astype(np.float16).astype(np.float32)
    offsets = scales[:, ::-1].copy() if extra == "offset" else None
    zeros = None
    if extra == "zero":
        zeros = rng.integers(0, 2 * zero, (n, groups)).astype(np.uint8)
    made = []
    for code in (kind, name):
        points = 0 if extra == "zero" else zero
        packed = testing.packed(n, k, code, group or k, points, "f16", extra)
        packed.pack_affine(0, codes, scales, offsets, zeros)
        made.append(packed)
    return made[0], made[1], codes


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", ["", "offset", "zero"])
@pytest.mark.parametrize("act", ["a8", "a16"])
def test_the_product_equals_the_dense_one_bit_for_bit(
    isa: str, kind: str, extra: str, act: str
) -> None:
    shapes = [(16, 32, 32), (40, 192, 64), (33, 96, 16), (97, 40, 0), (48, 256, 128)]
    for seed, (n, k, group) in enumerate(shapes):
        sparse, dense, _ = both(n, k, kind, group, extra, seed)
        mine = testing.selected(isa, sparse, act)
        theirs = testing.selected(isa, dense, act)
        assert mine.startswith(f"linear_{act}_{'s4' if kind == 'sparse_nibble' else 's8'}_")
        for m in (1, 2, 3, 7, 8, 9, 17):
            x = np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)
            a = testing.linear(isa, mine, sparse, x, 0, sparse.panels)
            b = testing.linear(isa, theirs, dense, x, 0, dense.panels)
            assert a.tobytes() == b.tobytes(), (mine, theirs, n, k, group, m)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_unpacked_values_are_those_of_the_dense_weight(isa: str, kind: str) -> None:
    sparse, dense, _ = both(37, 72, kind, 0)
    assert sparse.unpack(isa).tobytes() == dense.unpack(isa).tobytes()


@pytest.mark.parametrize(("kind", "lines"), [("sparse_nibble", 2), ("sparse_byte", 4)])
def test_the_layout_is_as_documented(kind: str, lines: int) -> None:
    sparse, _, codes = both(20, 64, kind, 32)
    zero = KINDS[kind][1]
    panels = np.frombuffer(sparse.raw(), np.uint8).reshape(2, sparse.panel_bytes)
    assert sparse.panel_bytes == 2 * 64 * (lines + 1) + 2 * 32
    units = panels[:, 64:].reshape(2, 2, lines + 1, 16, 4)
    for row in range(20):
        for unit in range(2):
            mine = units[row // 16, unit, :, row % 16]
            masks = np.unpackbits(mine[lines], bitorder="little").reshape(8, 4)
            assert (masks.sum(1) == 2).all()
            if lines == 2:
                stored = np.stack([mine[:2] & 15, mine[:2] >> 4]).reshape(8, 2)
            else:
                stored = mine[:4].reshape(8, 2)
            expanded = np.full((8, 4), zero, np.uint8)
            expanded[masks == 1] = stored.reshape(-1) ^ zero
            want = codes[row, 32 * unit : 32 * unit + 32].reshape(8, 4)
            np.testing.assert_array_equal(expanded, want)


@pytest.mark.parametrize("kind", KINDS)
def test_three_codes_of_a_four_are_refused(kind: str) -> None:
    zero = KINDS[kind][1]
    codes = np.full((16, 32), zero, np.uint8)
    codes[3, 4:7] = 1
    packed = testing.packed(16, 32, kind, 32, zero)
    with pytest.raises(ValueError, match="more than two of four"):
        packed.pack_affine(0, codes, np.ones((16, 1), np.float32))


def test_a_hand_written_row_serves_vnni() -> None:
    fast = {name: fast for isa in ISAS for name, _, _, _, fast, _ in testing.rows(isa)}
    for name in ("linear_a8_s4_avx512vnni", "linear_a8_s8_avx512vnni", "linear_a16_s4_avx512vnni"):
        assert fast.get(name, True)
    assert not fast["linear_a8_s4_generic"]
