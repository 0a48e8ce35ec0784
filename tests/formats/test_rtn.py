"""Round to nearest: exhaustive codes, closed forms, and what rounding must never do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import FormatError
from octavo.formats.floats import float_dtype
from octavo.formats.granularity import PerGroup
from octavo.formats.number_format import COMMON_NAMES, NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import Convention, conventions_of
from octavo.formats.rtn import encode, fake_quantize
from support.number_formats import REAL_SCALES, normal_weight, number_formats

F32 = npt.NDArray[np.float32]
ALL = tuple(NumberFormat.parse(name) for name in COMMON_NAMES if not name.startswith("lut"))
PAIRS = tuple((f, c) for f in ALL for c in conventions_of(f))


def _every_code(format: NumberFormat, low: int = 0) -> QuantizedTensor:
    """Three groups that hold each code from `low` on, under scales of 2^-3, 1 and 2^4."""
    codes = np.arange(low, 2**format.bits, dtype=np.uint8)
    codes = np.tile(np.roll(np.concatenate([codes, codes]), 3), (3, 1))
    scales = np.array([[0.125], [1.0], [16.0]], np.float32).astype(float_dtype(format.scale))
    zeros = None
    if format.zero == "int":
        zeros = np.array([[0], [2**format.bits // 2], [2**format.bits - 1]], np.uint8)
    elif format.zero == "real":
        zeros = np.array([[-1.5], [2.0], [0.0]], np.float32).astype(float_dtype(format.scale))
    return QuantizedTensor(
        format, (3, codes.shape[1]), pack_bits(codes, format.bits), scales, zeros
    )


def _comes_back(tensor: QuantizedTensor, convention: Convention | None = None) -> None:
    again = encode(tensor.dequantize(), tensor.format, convention)
    np.testing.assert_array_equal(again.unpacked_codes(), tensor.unpacked_codes())
    np.testing.assert_array_equal(again.steps(), tensor.steps())
    if tensor.zeros is not None:
        assert again.zeros is not None
        np.testing.assert_array_equal(again.zeros, tensor.zeros)


@pytest.mark.parametrize("scale", ["", "_sbf16", "_sfp32"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_integer_code_survives_decode_and_encode(bits: int, scale: str) -> None:
    _comes_back(_every_code(NumberFormat.parse(f"int{bits}_channel{scale}")), "signed")
    _comes_back(_every_code(NumberFormat.parse(f"int{bits}_channel{scale}"), low=1), "absmax")
    _comes_back(_every_code(NumberFormat.parse(f"int{bits}_channel_asym{scale}")))
    _comes_back(_every_code(NumberFormat.parse(f"int{bits}_channel_offset{scale}")))


@pytest.mark.parametrize("convention", ["signed", "absmax", "no_clip"])
def test_every_code_of_power_of_two_scales(convention: Convention) -> None:
    tensor = _every_code(NumberFormat.parse("int4_channel_se8m0"), low=1)
    if convention in conventions_of(tensor.format):
        _comes_back(tensor, convention)
    else:
        with pytest.raises(FormatError, match="can't be rounded"):
            encode(tensor.dequantize(), tensor.format, convention)


@pytest.mark.parametrize("zero", ["asym", "offset"])
def test_one_bit_codes_with_zeros(zero: str) -> None:
    _comes_back(_every_code(NumberFormat.parse(f"int1_channel_{zero}")))


@pytest.mark.parametrize("name", ["nf4_channel", "iq4nl_channel", "nf4_channel_sfp32"])
def test_every_level_survives(name: str) -> None:
    _comes_back(_every_code(NumberFormat.parse(name)))


def test_ternary_and_binary_codes_survive() -> None:
    ternary = np.tile(np.array([1, 3], np.uint8), (3, 8))  # with zeros the mean would shrink
    binary = np.tile(np.array([0, 1, 1, 0], np.uint8), (3, 4))
    scales = np.array([[0.125], [1], [16]], np.float16)
    for name, codes in (("ternary_channel", ternary), ("binary_channel", binary)):
        format = NumberFormat.parse(name)
        packed = pack_bits(codes, format.bits)
        _comes_back(QuantizedTensor(format, (3, 16), packed, scales))


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3", "fp8_e5m2"])
def test_every_float_survives(name: str) -> None:
    format = NumberFormat.parse(name)
    dtype = float_dtype(format.variant)
    values = np.arange(2**format.bits, dtype=f"u{dtype.itemsize}").view(dtype)[None]
    values = values[:, np.isfinite(values[0].astype(np.float32))]
    tensor = QuantizedTensor(format, (1, values.shape[1]), values)
    again = encode(tensor.dequantize(), format)
    assert again.codes.tobytes() == values.tobytes()


@pytest.mark.parametrize("name", ["fp8_e4m3_channel", "fp8_e5m2_channel"])
def test_every_float_under_a_scale_survives(name: str) -> None:
    format = NumberFormat.parse(name)
    plain = np.arange(256, dtype=np.uint8).view(float_dtype(format.variant))
    values = np.tile(plain[np.isfinite(plain.astype(np.float32))], (2, 1))
    scales = np.array([[0.5], [2**-9]], np.float16)
    _comes_back(QuantizedTensor(format, (2, values.shape[1]), values, scales))


@pytest.mark.parametrize(
    "name", ["int6_g16_si8x256", "int4_g32_offset_su6x256", "iq4nl_g32_si6x256", "int3_g16_si6x256"]
)
def test_two_level_codes_survive_when_sub_scales_are_their_largest(name: str) -> None:
    format = NumberFormat.parse(name)
    top = format.super_scale
    assert top is not None
    assert isinstance(format.granularity, PerGroup)
    size, groups = format.granularity.size, 256 // format.granularity.size
    largest = 2 ** (top.bits - 1) - 1 if top.signed else 2**top.bits - 1
    codes = np.resize(np.arange(2**format.bits, dtype=np.uint8), (2, groups, size))
    codes[:, :, 0], codes[:, :, 1] = 0, 2**format.bits - 1  # the ends of every group's grid
    subs = np.full((2, groups), largest, np.int8 if top.signed else np.uint8)
    supers = np.array([[2**-10], [0.5]], np.float16)
    offsets = (subs, supers) if format.zero == "real" else (None, None)
    packed = pack_bits(codes.reshape(2, 256), format.bits)
    _comes_back(QuantizedTensor(format, (2, 256), packed, subs, offsets[0], supers, offsets[1]))


# methods.md section 1 and 2, relative mean squared error on N(0, 1).
CLOSED_FORMS: tuple[tuple[str, Convention, float], ...] = (
    ("int2_g128", "absmax", 0.587),
    ("int3_g128", "absmax", 0.0749),
    ("int4_g128", "absmax", 0.01376),
    ("int8_g128", "absmax", 4.18e-5),
    ("int3_g128", "full", 0.0563),
    ("int4_g128", "full", 0.01226),
    ("int3_g128", "signed", 0.0432),
    ("int4_g128", "signed", 0.01064),
    ("int2_g128_asym", "minmax", 0.253),
    ("int3_g128_asym", "minmax", 0.0464),
    ("int4_g128_asym", "minmax", 0.01011),
    ("int8_g128_asym", "minmax", 3.50e-5),
    ("int3_g64", "absmax", 0.0631),
    ("int3_g64", "full", 0.0485),
    ("int3_g64", "signed", 0.0368),
    ("int3_g64_asym", "minmax", 0.0381),
    ("int4_g64", "absmax", 0.01159),
    ("int4_g64", "full", 0.01057),
    ("int4_g64", "signed", 0.00901),
    ("int4_g64_asym", "minmax", 0.00830),
    ("int3_g32", "absmax", 0.0513),
    ("int3_g32", "full", 0.0412),
    ("int3_g32", "signed", 0.0304),
    ("int3_g32_asym", "minmax", 0.0300),
    ("int4_g32", "absmax", 0.00941),
    ("int4_g32", "full", 0.00899),
    ("int4_g32", "signed", 0.00739),
    ("int4_g32_asym", "minmax", 0.00653),
    ("nf4_g64", "absmax", 0.00846),
    ("binary_channel", "mean", 1 - 2 / np.pi),
    ("ternary_tensor", "mean", 0.2635),
)
CLIPPED = (
    ("int2_g128_asym", 0.136),
    ("int3_g128_asym", 0.0348),
    ("int4_g128_asym", 0.00904),
    ("int8_g128_asym", 3.50e-5),
)


@pytest.fixture(scope="module")
def samples() -> F32:
    return normal_weight((512, 4096), seed=20, scale=1.0)


def _relative_mse(weight: F32, name: str, convention: Convention | None) -> float:
    error = encode(weight, NumberFormat.parse(name), convention).dequantize() - weight
    square = np.float64(np.vdot(error, error)) / np.vdot(weight, weight)
    return float(square)


@pytest.mark.parametrize(("name", "convention", "expected"), CLOSED_FORMS)
def test_errors_on_normal_weights(
    samples: F32, name: str, convention: Convention, expected: float
) -> None:
    assert _relative_mse(samples, name, convention) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("name", "expected"), CLIPPED)
def test_errors_with_the_clip_search(samples: F32, name: str, expected: float) -> None:
    few = samples[:64]  # 80 candidates a group: fewer samples, still a tenth of the tolerance
    assert _relative_mse(few, name, "mse") == pytest.approx(expected, rel=0.01)


def test_ternary_zeros_on_normal_weights(samples: F32) -> None:
    codes = encode(samples, NumberFormat.parse("ternary_tensor")).unpacked_codes()
    assert np.mean(codes == 2) == pytest.approx(0.310, abs=0.001)


def test_a_bit_is_worth_six_decibels(samples: F32) -> None:
    few = samples[:64]
    errors = [_relative_mse(few, f"int{bits}_g128_asym", "minmax") for bits in range(4, 9)]
    slopes = 10 * np.log10(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, 6.02, atol=0.6)  # + 20 log10((2^(b+1) - 1) / (2^(b+1) - 2))


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_finer_granularity_and_clip_search_never_hurt(bits: int) -> None:
    weight = (
        normal_weight((32, 512), seed=bits) * np.linspace(0.2, 2, 32, dtype=np.float32)[:, None]
    )
    base = f"int{bits}"
    errors = [_relative_mse(weight, f"{base}_{w}_asym", None) for w in ("g64", "channel", "tensor")]
    assert errors == sorted(errors)
    for name, rule in ((f"{base}_g64", "signed"), (f"{base}_g64_asym", "minmax")):
        plain = encode(weight, NumberFormat.parse(name), rule).dequantize() - weight  # type: ignore[arg-type]
        clipped = encode(weight, NumberFormat.parse(name), "mse").dequantize() - weight
        per_group = [
            np.square(e.astype(np.float64)).reshape(-1, 64).sum(1) for e in (clipped, plain)
        ]
        assert (per_group[0] <= per_group[1] * (1 + 1e-6)).all()


def test_nf4_beats_symmetric_integers_and_fills_its_bins(samples: F32) -> None:
    tensor = encode(samples[:128], NumberFormat.parse("nf4_g64"))
    assert _relative_mse(samples, "nf4_g64", None) < _relative_mse(samples, "int4_g64", "absmax")
    share = np.bincount(tensor.unpacked_codes().ravel(), minlength=16) / tensor.shape[0] / 4096
    # levels are quantiles of N(0, 1), blocks are cut at their own maximum: near a 16th, not at it
    assert ((share[1:-1] > 0.035) & (share[1:-1] < 0.095)).all()


@pytest.mark.parametrize(("format", "convention"), PAIRS, ids=str)
def test_numpy_and_torch_agree_bit_for_bit(format: NumberFormat, convention: Convention) -> None:
    torch = pytest.importorskip("torch")
    weight = normal_weight((4, 512), seed=9)
    weight[0, :64] = 0
    weight[1] *= 1e-6  # scales among fp16's subnormals
    ours = encode(weight, format, convention).dequantize()
    np.testing.assert_array_equal(fake_quantize(weight, format, np, convention), ours)
    theirs = fake_quantize(torch.from_numpy(weight), format, torch, convention).numpy()
    np.testing.assert_array_equal(theirs.view(np.int32), ours.view(np.int32))


@given(number_formats(), st.integers(0, 2**32))
def test_any_format_encodes_and_twins_agree(format: NumberFormat, seed: int) -> None:
    width = _fitting_width(format)
    if format.variant == "learned" or width is None:
        return
    weight = normal_weight((2, width), seed)
    tensor = encode(weight, format)
    np.testing.assert_array_equal(fake_quantize(weight, format, np), tensor.dequantize())


def _fitting_width(format: NumberFormat) -> int | None:
    step = getattr(format.granularity, "size", 24 if format.run == 1 else 96)
    if format.super_scale:
        step = format.super_scale.group
    return step if step <= 2048 else None


@pytest.mark.parametrize(("format", "convention"), PAIRS, ids=str)
def test_zeros_stay_zero(format: NumberFormat, convention: Convention) -> None:
    assert not encode(np.zeros((2, 512), np.float32), format, convention).dequantize().any()
    if format.variant in ("binary", "iq4nl", "trellis2") or format.zero == "real":
        return  # no code stands for 0 there
    weight = normal_weight((2, 512), seed=4)
    weight[:, ::5] = 0
    assert not encode(weight, format, convention).dequantize()[:, ::5].any()


@pytest.mark.parametrize("power", [-3, 2, 6])
@pytest.mark.parametrize(("format", "convention"), PAIRS, ids=str)
def test_scaling_the_weights_scales_the_result(
    format: NumberFormat, convention: Convention, power: int
) -> None:
    if format.plain and format.variant not in ("fp32", "bf16"):
        return  # its subnormals are within reach of these weights
    weight = normal_weight((2, 512), seed=5, scale=1.0)
    once = encode(weight * np.float32(2.0**power), format, convention).dequantize()
    np.testing.assert_array_equal(
        once, encode(weight, format, convention).dequantize() * np.float32(2.0**power)
    )


GRIDS = tuple((f, c) for f, c in PAIRS if f.kind == "int" and not f.variant)


def _spread(per_group: npt.NDArray[np.generic], width: int) -> npt.NDArray[np.float64]:
    """One value a group -> one value a weight, float64 [out or 1, width]."""
    return np.repeat(per_group.astype(np.float64), width // per_group.shape[1], axis=1)


def _zeros_of(tensor: QuantizedTensor) -> npt.NDArray[np.float64] | float:
    if tensor.format.zero == "int":
        assert tensor.zeros is not None
        return _spread(tensor.zeros, tensor.shape[1])
    return 2.0 ** (tensor.format.bits - 1) if tensor.format.zero == "none" else 0.0


@pytest.mark.parametrize(("format", "convention"), GRIDS, ids=str)
def test_what_is_not_clipped_is_within_half_a_step(
    format: NumberFormat, convention: Convention
) -> None:
    weight = normal_weight((2, 512), seed=6)
    tensor = encode(weight, format, convention)
    codes = tensor.unpacked_codes()
    inside = (codes > (convention == "absmax")) & (codes < 2**format.bits - 1)
    assert inside.any()
    error = np.abs(tensor.dequantize().astype(np.float64) - weight)
    # beside half a step: w - m, w / s, the sum with m and the product each round by 2^-24 at most
    slack = 4 * 2.0**-24 * np.abs(weight).max()
    assert (error <= np.abs(_spread(tensor.steps(), 512)) / 2 + slack)[inside].all()


@pytest.mark.parametrize(("format", "convention"), GRIDS, ids=str)
def test_rounding_again_under_the_same_scales_changes_nothing(
    format: NumberFormat, convention: Convention
) -> None:
    tensor = encode(normal_weight((2, 512), seed=7), format, convention)
    offsets, steps = tensor.offsets(), _spread(tensor.steps(), 512)
    assert (steps != 0).all()
    shifted = tensor.dequantize() - (0.0 if offsets is None else _spread(offsets, 512))
    again = np.rint(shifted / steps) + _zeros_of(tensor)
    np.testing.assert_array_equal(again, tensor.unpacked_codes())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["int4_g32", "bf16", "nf4_g64"])
def test_weights_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    weight = normal_weight((4, 64))
    weight[2, 7] = bad
    with pytest.raises(FormatError, match=r"weight \[2, 7\]"):
        encode(weight, NumberFormat.parse(name))


@pytest.mark.parametrize(
    ("name", "size", "word"),
    [
        ("fp16", 7e4, "exceeds 65504"),
        ("fp8_e4m3", 500.0, "exceeds 448"),
        ("bf16", 3.4e38, "exceeds"),
        ("int4_g32", 1e6, "_sbf16"),
        ("int4_g32_offset", 1e6, "_sbf16"),
        ("int4_g32_asym_sfp32", 3e38, "range"),
        ("int6_g16_si8x256", 1e30, "range"),
    ],
)
def test_overflow_is_an_error_and_not_an_infinity(name: str, size: float, word: str) -> None:
    weight = normal_weight((2, 256))
    weight[0, 0], weight[0, 1] = size, -size
    with pytest.raises(FormatError, match=word):
        encode(weight, NumberFormat.parse(name))


def test_what_is_no_matrix_of_float32_is_refused() -> None:
    format = NumberFormat.parse("int4_g32")
    for weight in (np.zeros(64, np.float32), np.zeros((2, 64), np.float64)):
        with pytest.raises(FormatError, match=r"float32 \[out, in\]"):
            encode(weight, format)  # type: ignore[arg-type]


def test_a_shape_that_does_not_split_is_refused() -> None:
    with pytest.raises(FormatError, match=r"\[2, 576\].*192"):
        encode(np.zeros((2, 576), np.float32), NumberFormat.parse("int4_g128"))


@pytest.mark.parametrize(
    ("name", "convention"),
    [
        ("int4_g32_asym", "signed"),
        ("int4_g32", "minmax"),
        ("ternary_tensor", "mse"),
        ("bf16", "full"),
    ],
)
def test_a_convention_that_does_not_apply_is_refused(name: str, convention: Convention) -> None:
    with pytest.raises(FormatError, match="it takes"):
        encode(np.zeros((2, 64), np.float32), NumberFormat.parse(name), convention)


def test_a_learned_codebook_can_not_be_rounded_to() -> None:
    with pytest.raises(FormatError, match="learned"):
        encode(normal_weight((2, 64)), NumberFormat.parse("lut4_channel"))


def test_row_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal_weight((9, 256), seed=8)
    whole = [encode(weight, f).dequantize() for f in ALL]
    monkeypatch.setattr("octavo.formats.rtn._BLOCK_VALUES", 600)
    for format, expected in zip(ALL, whole, strict=True):
        np.testing.assert_array_equal(encode(weight, format).dequantize(), expected)


@pytest.mark.parametrize("scale", REAL_SCALES)
def test_a_tie_of_extremes_goes_to_the_negative_one(scale: str) -> None:
    weight = np.array([[1.0, -1.0, 0.5, 0.0]], np.float32)
    tensor = encode(weight, NumberFormat.parse(f"int4_channel_s{scale}"), "signed")
    assert tensor.unpacked_codes().tolist() == [[15, 0, 12, 8]]
    assert tensor.steps().tolist() == [[0.125]]


def test_halves_go_to_even_codes() -> None:
    weight = np.array([[7, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    tensor = encode(weight, NumberFormat.parse("int4_channel"), "absmax")
    assert tensor.unpacked_codes().tolist() == [[15, 8, 10, 10, 8, 6]]


def test_absmax_never_uses_the_lowest_code() -> None:
    weight = np.full((1, 32), -127 * 1.4 * 2.0**-24, np.float32)  # stored scale: 2^-24
    tensor = encode(weight, NumberFormat.parse("int8_g32"))
    assert tensor.steps().tolist() == [[2.0**-24]]
    assert set(tensor.unpacked_codes().ravel().tolist()) == {1}


def test_a_tie_of_levels_goes_to_the_lower_one() -> None:
    weight = np.array([[-127, -4.5, 7.0, 101.0]], np.float32)
    tensor = encode(weight, NumberFormat.parse("iq4nl_channel"))
    assert tensor.dequantize().tolist() == [[-127, -10, 1, 89]]


def test_two_level_offsets_hold_weights_above_zero() -> None:
    weight = np.abs(normal_weight((4, 256), seed=11, scale=1.0)) + np.float32(0.5)
    values = encode(weight, NumberFormat.parse("int4_g32_offset_su6x256")).dequantize()
    # 15 steps from 0 to the group's largest weight, and sub-scales of 63 steps
    bound = np.abs(weight).max() * (0.5 / 15 + 1 / 63)
    assert np.abs(values - weight).max() <= bound
