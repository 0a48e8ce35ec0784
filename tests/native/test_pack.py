"""Panels: where each value lies, that packing loses nothing, and rounding equal to numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from octavo._native import testing
from octavo.formats.granularity import PerGroup
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import encode
from support.packed_weights import BITS, FORMS, ISAS, Form, bf16, make_case

SHAPES = [(1, 32), (16, 64), (17, 48), (40, 96), (5, 33)]


def fits(form: Form, k: int) -> bool:
    if form.code == "trellis" and k % 32:
        return False
    return form.group in (0, 16) or form.group >= k or (k % 32 == 0 and k % form.group == 0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_unpack_is_the_inverse_of_pack(isa: str, form: Form) -> None:
    for n, k in SHAPES:
        if fits(form, k):
            case = make_case(form, n, k, seed=n)
            got = case.packed.unpack(isa)
            np.testing.assert_array_equal(got.view(np.uint32), case.dense.view(np.uint32))
            case.packed.raw()  # checks the sentinels


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", sorted(BITS.keys() - {"trellis"}))
def test_every_code_has_its_value(isa: str, code: str) -> None:
    count = 1 << BITS[code]
    for zero in (0, count // 2, count - 1):
        codes = np.stack([np.roll(np.arange(256) % count, r) for r in range(16)]).astype(np.uint8)
        packed = testing.packed(16, 256, code, 32, zero)
        packed.pack_affine(0, codes, np.ones((16, 8), np.float32))
        np.testing.assert_array_equal(packed.unpack(isa), codes.astype(np.float32) - zero)


def test_layout_of_nibbles_is_as_documented() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (20, 64)).astype(np.uint8)
    packed = testing.packed(20, 64, "nibble", 32, 8)
    packed.pack_affine(0, codes, np.ones((20, 2), np.float32))
    panels = np.frombuffer(packed.raw(), np.uint8).reshape(2, packed.panel_bytes)
    assert packed.panel_bytes == 2 * 256 + 2 * 32
    for row in range(20):
        lines = panels[row // 16, 64:].reshape(2, 4, 16, 4)[:, :, row % 16]
        np.testing.assert_array_equal(lines & 15, codes[row].reshape(2, 2, 4, 4)[:, 0])
        np.testing.assert_array_equal(lines >> 4, codes[row].reshape(2, 2, 4, 4)[:, 1])
    scales = panels[:, :64].reshape(2, -1).view(np.float16).reshape(2, 2, 16)
    assert (scales[0] == 1).all()
    assert (scales[1, :, :4] == 1).all()
    assert (scales[1, :, 4:] == 0).all()
    assert (panels[1, 64:].reshape(2, 4, 16, 4)[:, :, 4:] == 0x88).all()


def fields(line: np.ndarray, bits: int) -> np.ndarray:
    """The `bits` wide fields of bytes [..., 4], as [..., 8 / bits, 4]."""
    shifts = np.arange(0, 8, bits)[:, None]
    return (line[..., None, :] >> shifts) & ((1 << bits) - 1)


@pytest.mark.parametrize("code", ["two", "three", "five", "six"])
def test_layout_of_planes_is_as_documented(code: str) -> None:
    bits = BITS[code]
    codes = np.random.default_rng(0).integers(0, 1 << bits, (20, 64)).astype(np.uint8)
    packed = testing.packed(20, 64, code, 32, 1)
    packed.pack_affine(0, codes, np.ones((20, 2), np.float32))
    panels = np.frombuffer(packed.raw(), np.uint8).reshape(2, packed.panel_bytes)
    assert packed.panel_bytes == 2 * 64 * bits + 2 * 32
    units = panels[:, 64:].reshape(2, 2, bits, 16, 4)
    quads = codes.reshape(20, 2, 8, 4)
    for row in range(20):
        lines = units[row // 16, :, :, row % 16]
        if bits < 4:  # planes of two bits, and of one
            low = fields(lines[:, :2], 2).reshape(2, 8, 4)
            rest = fields(lines[:, 2:], 1).reshape(2, -1, 4)
        else:  # nibbles, whose fields are four quads apart; the rest
            low = fields(lines[:, :4], 4).transpose(0, 2, 1, 3).reshape(2, 8, 4)
            rest = fields(lines[:, 4:], bits - 4).reshape(2, 8, 4)
        high = rest << min(bits, 4) if bits > 4 else rest << 2
        np.testing.assert_array_equal(low | high if bits != 2 else low, quads[row])
    assert (panels[:, :64].reshape(2, -1).view(np.float16).reshape(2, 2, 16)[0] == 1).all()


def test_bf16_rows_are_rounded_half_to_even() -> None:
    w = np.random.default_rng(1).standard_normal((3, 70)).astype(np.float32)
    packed = testing.packed(3, 70, "bf16")
    packed.pack_f32(0, w)
    np.testing.assert_array_equal(packed.unpack(), bf16(w))


def test_half_conversion_is_exact_or_half_to_even() -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    values = every[np.isfinite(every)].astype(np.float32)
    middle = np.sort(values)
    middle = (middle[1:] + middle[:-1]) / 2
    near = np.concatenate([values, middle, np.nextafter(middle, 0), np.nextafter(middle, 1e9)])
    extra = np.array([65519.996, 65520, 1e30, -1e30, 1e-30, 2.0**-25, 2.0**-24], np.float32)
    x = np.concatenate([near, extra]).astype(np.float32)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(testing.half_round_trip(x), want)


STEPS = {
    "absmax": lambda lo, hi, half: np.maximum(-lo, hi) / (half - 1),
    "full": lambda lo, hi, half: np.maximum(-lo, hi) * 2 / (2 * half - 1),
    "signed": lambda lo, hi, half: np.where(-lo >= hi, lo, hi) / -half,
    "no_clip": lambda lo, hi, half: np.maximum(
        -np.minimum(lo, 0) / half, np.maximum(hi, 0) / (half - 1)
    ),
    "minmax": lambda lo, hi, half: (np.maximum(hi, 0) - np.minimum(lo, 0)) / (2 * half - 1),
}


def rounded(w: np.ndarray, bits: int, convention: str, wide: bool) -> tuple[np.ndarray, ...]:
    """Codes, scales and zero points of [rows, groups, n], all in fp32 (methods of rounding.py)."""
    half = np.float32(2 ** (bits - 1))
    lo, hi = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    step = STEPS[convention](lo, hi, half).astype(np.float32)
    if not wide:
        step = step.astype(np.float16).astype(np.float32)
    safe = np.where(step == 0, np.float32(1), step)
    last = 2 * half - 1
    zero = np.full_like(step, half)
    if convention == "minmax":
        ratio = np.where(step == 0, np.float32(0), -np.minimum(lo, 0) / safe)
        zero = np.clip(np.rint(ratio), 0, last)
    ratio = np.where(step == 0, np.float32(0), w / safe)
    low = 1 if convention == "absmax" else 0
    return np.clip(np.rint(ratio) + zero, low, last), step, zero


@pytest.mark.parametrize("convention", sorted(STEPS))
@pytest.mark.parametrize("wide", [False, True])
def test_rounding_equals_numpy_bit_for_bit(convention: str, wide: bool) -> None:
    rng = np.random.default_rng(5)
    w = (rng.standard_normal((12, 8, 32)) * 10.0 ** rng.integers(-6, 3, (12, 8, 1))).astype("f4")
    w[0, 0] = 0
    w[1, 1] = np.abs(w[1, 1])
    w[2, 2] = -np.abs(w[2, 2])
    w[3, 3] = 1e-9  # the fp16 scale is zero
    for bits in range(2, 9):
        codes, scales, points, zero = testing.encode_rtn(
            w.reshape(12, 256), 32, bits, convention, wide
        )
        want, step, zeros = rounded(w, bits, convention, wide)
        np.testing.assert_array_equal(codes.reshape(w.shape), want)
        np.testing.assert_array_equal(scales, step[..., 0])
        if convention == "minmax":
            np.testing.assert_array_equal(points, zeros[..., 0])
            assert zero == 0
        else:
            assert points.size == 0
            assert zero == 2 ** (bits - 1)


def test_rounding_takes_whole_rows_and_refuses_nonsense() -> None:
    w = np.random.default_rng(6).standard_normal((4, 77)).astype(np.float32)
    codes, scales, _, _ = testing.encode_rtn(w, 1000, 8, "absmax", True)
    want, step, _ = rounded(w[:, None], 8, "absmax", True)
    np.testing.assert_array_equal(codes, want[:, 0])
    np.testing.assert_array_equal(scales, step[:, 0])
    for bits, convention in [(9, "absmax"), (1, "absmax"), (4, "nearest")]:
        with pytest.raises(ValueError, match="no such convention"):
            testing.encode_rtn(w, 32, bits, convention, True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", ["fp16", "fp32"])
@pytest.mark.parametrize("convention", ["absmax", "full", "signed", "no_clip"])
def test_rounding_equals_the_encoder_of_formats(bits: int, scale: str, convention: str) -> None:
    w = np.random.default_rng(8).standard_normal((9, 96)).astype(np.float32)
    format = NumberFormat("int", bits, PerGroup(32), scale=scale)
    want = encode(w, format, convention).affine()
    codes, scales, _, zero = testing.encode_rtn(w, 32, bits, convention, scale == "fp32")
    np.testing.assert_array_equal(codes, want.codes)
    np.testing.assert_array_equal(scales, want.scales)
    assert zero == want.zero


@pytest.mark.parametrize("scale", ["fp16", "fp32"])
def test_rounding_with_zero_points_equals_the_encoder_of_formats(scale: str) -> None:
    w = np.random.default_rng(9).standard_normal((9, 96)).astype(np.float32) + np.float32(0.5)
    format = NumberFormat("int", 4, PerGroup(32), zero="int", scale=scale)
    tensor = encode(w, format, "minmax")
    codes, scales, points, zero = testing.encode_rtn(w, 32, 4, "minmax", scale == "fp32")
    packed = testing.packed(9, 96, "nibble", 32, zero, scale.replace("fp", "f"), "zero")
    packed.pack_affine(0, codes, scales, zeros=points)
    np.testing.assert_array_equal(packed.unpack(), tensor.dequantize())
