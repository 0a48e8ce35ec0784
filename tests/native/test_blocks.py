"""Blocks of zeros left out: the layout, and products equal to the dense ones bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo._native import testing
from support.packed_weights import ISAS

KINDS = {"block_nibble": ("nibble", 8, "b4"), "block_byte": ("byte", 128, "b8")}
SHARES = (0.0, 0.3, 0.75, 1.0)  # of blocks that are there


def drawn(n: int, k: int, kind: str, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes [n, k], which blocks are there [n / 16, k / 32]); some of those are all zeros."""
    rng = np.random.default_rng(seed)
    zero = KINDS[kind][1]
    there = rng.random((n // 16, k // 32)) < share
    codes = rng.integers(0, 2 * zero, (n, k)).astype(np.uint8)
    codes[np.kron(there & (rng.random(there.shape) < 0.9), np.ones((16, 32))) == 0] = zero
    return codes, there


def both(
    n: int, k: int, kind: str, group: int, share: float, scaling: str = "f16", seed: int = 0
) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """(blocks, dense, codes, which blocks are there) of the same values; negative scales too."""
    codes, there = drawn(n, k, kind, share, seed)
    name, zero, _ = KINDS[kind]
    rng = np.random.default_rng(seed)
    groups = -(-k // group) if group else 1
    scales = rng.standard_normal((n, groups)).astype(np.float16).astype(np.float32)
    scales[rng.random(scales.shape) < 0.1] *= 0.0  # of either sign
    mask = np.packbits(there, axis=1, bitorder="little")
    made = []
    for code, blocks in ((kind, mask), (name, None)):
        packed = testing.packed(n, k, code, group or k, zero, scaling, blocks=blocks)
        packed.pack_affine(0, codes, scales)
        made.append(packed)
    return made[0], made[1], codes, there


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ["a8", "a16"])
@pytest.mark.parametrize("share", SHARES)
def test_the_product_equals_the_dense_one_bit_for_bit(
    isa: str, kind: str, act: str, share: float
) -> None:
    shapes = [(16, 32, 32), (48, 192, 64), (32, 96, 16), (96, 4224, 0), (48, 2176, 128)]
    for seed, (n, k, group) in enumerate(shapes):
        scaling = "f32" if seed % 2 else "f16"
        blocks, dense, _, _ = both(n, k, kind, group, share, scaling, seed)
        mine, theirs = testing.selected(isa, blocks, act), testing.selected(isa, dense, act)
        assert mine.startswith(f"linear_{act}_{KINDS[kind][2]}_")
        for m in (1, 2, 3, 7, 8, 13):
            x = np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)
            x[:, 32:64] = 0  # a group of inputs whose scale is 0
            a = testing.linear(isa, mine, blocks, x, 0, blocks.panels)
            b = testing.linear(isa, theirs, dense, x, 0, dense.panels)
            assert a.tobytes() == b.tobytes(), (mine, theirs, n, k, group, m)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_numbers_keep_the_sign_of_zero(isa: str, kind: str) -> None:
    """Products that underflow, of both signs: where the identity of +-0 could break."""
    blocks, dense, _, _ = both(32, 256, kind, 32, 0.5, "f32")
    x = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32) * np.float32(1e-34)
    mine, theirs = testing.selected(isa, blocks, "a8"), testing.selected(isa, dense, "a8")
    a = testing.linear(isa, mine, blocks, x, 0, 2)
    assert a.tobytes() == testing.linear(isa, theirs, dense, x, 0, 2).tobytes()
    assert not np.signbit(a[a == 0]).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_panels_and_some_rows(isa: str, kind: str) -> None:
    blocks, dense, _, _ = both(80, 320, kind, 64, 0.5)
    x = np.random.default_rng(0).standard_normal((6, 320)).astype(np.float32)
    rows = np.array([0, 2, 5], np.int32)
    mine, theirs = testing.selected(isa, blocks, "a8"), testing.selected(isa, dense, "a8")
    a = testing.linear(isa, mine, blocks, x, 1, 4, rows)
    assert a.tobytes() == testing.linear(isa, theirs, dense, x, 1, 4, rows).tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_unpacked_values_are_those_of_the_dense_weight(isa: str, kind: str) -> None:
    blocks, dense, _, _ = both(48, 2144, kind, 0, 0.4)
    assert blocks.unpack(isa).tobytes() == dense.unpack(isa).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_is_as_documented(kind: str) -> None:
    blocks, dense, _, there = both(48, 96, kind, 32, 0.5, seed=1)
    unit = 512 if kind == "block_byte" else 256
    front = 128  # scales of three groups, 96 bytes, and 8 bytes of bits, rounded up to 64
    raw, whole = np.frombuffer(blocks.raw(), np.uint8), np.frombuffer(dense.raw(), np.uint8)
    assert blocks.bytes == raw.size == 3 * front + unit * there.sum()
    at = 0
    for panel in range(3):
        mine = whole[panel * dense.panel_bytes :][: dense.panel_bytes]
        assert raw[at : at + 96].tobytes() == mine[:96].tobytes()
        [bits] = raw[at + front - 8 : at + front].view("<u8")
        assert bits == there[panel] @ (1 << np.arange(3))
        at += front
        for u in np.flatnonzero(there[panel]):
            assert raw[at : at + unit].tobytes() == mine[128 + unit * u :][:unit].tobytes()
            at += unit


def test_bits_beyond_the_last_block_are_ignored() -> None:
    mask = np.full((2, 1), 0xFF, np.uint8)
    packed = testing.packed(32, 96, "block_nibble", 32, 8, blocks=mask)
    assert packed.bytes == testing.packed(
        32, 96, "block_nibble", 32, 8, blocks=np.full((2, 1), 0x07, np.uint8)
    ).bytes  # fmt: skip
    packed.pack_affine(0, np.full((32, 96), 9, np.uint8), np.ones((32, 3), np.float32))
    x = np.ones((1, 96), np.float32)
    for isa in ISAS:
        got = testing.linear(isa, testing.selected(isa, packed, "a8"), packed, x, 0, 2)
        np.testing.assert_allclose(got, 96, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_without_a_place_is_refused(kind: str) -> None:
    zero = KINDS[kind][1]
    packed = testing.packed(16, 64, kind, 32, zero, blocks=np.array([[1]], np.uint8))
    codes = np.full((16, 64), zero, np.uint8)
    packed.pack_affine(0, codes, np.ones((16, 2), np.float32))
    codes[3, 40] = 1
    with pytest.raises(ValueError, match="isn't zero in a block that isn't there"):
        packed.pack_affine(0, codes, np.ones((16, 2), np.float32))


@pytest.mark.parametrize(
    ("n", "k", "zero", "extra", "size", "message"),
    [
        (24, 64, 8, "", 2, "whole number of blocks"),
        (32, 48, 8, "", 2, "whole number of blocks"),
        (32, 64, 7, "", 2, "symmetric"),
        (32, 64, 8, "offset", 2, "symmetric"),
        (32, 64, 0, "zero", 2, "symmetric"),
        (32, 64, 8, "", 3, "a bit for each block"),
    ],
)
def test_what_no_blocks_can_hold_is_refused(
    n: int, k: int, zero: int, extra: str, size: int, message: str
) -> None:
    mask = np.zeros(size, np.uint8)
    with pytest.raises(ValueError, match=message):
        testing.packed(n, k, "block_nibble", 32, zero, "f16", extra, blocks=mask)
    with pytest.raises(ValueError, match="set_blocks comes first"):
        testing.packed(32, 64, "block_nibble", 32, 8)


def test_every_hand_written_instruction_set_has_rows() -> None:
    for isa in ISAS:
        fast = {name: fast for name, _, _, _, fast, _ in testing.rows(isa)}
        mine = {name: quick for name, quick in fast.items() if "_b4_" in name or "_b8_" in name}
        assert len(mine) == 4
        assert set(mine.values()) == {isa != "generic"}
