"""QuantizedTensor against a slow reading of its contract, one weight at a time."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from octavo.core.errors import FormatError
from octavo.formats.codebooks import named_levels
from octavo.formats.granularity import PerGroup, PerTensor
from octavo.formats.number_format import COMMON_NAMES, NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import AffineRows, QuantizedTensor
from octavo.formats.rtn import encode
from support.number_formats import normal_weight

F32 = npt.NDArray[np.float32]
SHAPE = (6, 512)
MORE = (
    *("int1_g32_asym", "int1_channel_offset", "int2_tensor", "int7_g32_asym_sfp32"),
    *("int4_g32_sbf16", "int4_g32_sfp32", "int4_g32_se4m3", "int4_g32_se8m0", "int8_g32_asym"),
    *("int4_g32_asym_se4m3", "int5_tensor_asym", "int4_g32_offset_sfp32", "nf4_g64_se8m0"),
    *("int4_g32_su6x256", "ternary_g64", "binary_g32_sbf16", "fp8_e5m2_g32_sfp32", "int4_token"),
)
NAMES = tuple(name for name in (*COMMON_NAMES, *MORE) if not name.startswith("lut"))


def _tensor(name: str, seed: int = 0) -> QuantizedTensor:
    return encode(normal_weight(SHAPE, seed), NumberFormat.parse(name))


def _learned() -> QuantizedTensor:
    codes = np.random.default_rng(1).integers(0, 8, (4, 10)).astype(np.uint8)
    return QuantizedTensor(
        NumberFormat.parse("lut3_channel"),
        (4, 10),
        pack_bits(codes, 3),
        np.array([[1], [2], [-0.5], [0]], np.float16),
        codebook=normal_weight((1, 8))[0],
    )


def _group_of(tensor: QuantizedTensor, column: int) -> int:
    granularity = tensor.format.granularity
    return column // granularity.size if isinstance(granularity, PerGroup) else 0


def _slow_scale(tensor: QuantizedTensor, row: int, group: int) -> np.float32:
    assert tensor.scales is not None
    scale = np.float32(tensor.scales[row, group])
    top = tensor.format.super_scale
    if top is not None:
        assert tensor.super_scales is not None
        assert isinstance(tensor.format.granularity, PerGroup)
        above = group * tensor.format.granularity.size // top.group
        scale = np.float32(tensor.super_scales[row, above]) * scale
    return scale * np.float32(tensor.tensor_scale)


def _slow_offset(tensor: QuantizedTensor, row: int, group: int) -> np.float32:
    assert tensor.zeros is not None
    offset = np.float32(tensor.zeros[row, group])
    top = tensor.format.super_scale
    if top is not None:
        assert tensor.super_zeros is not None
        assert isinstance(tensor.format.granularity, PerGroup)
        above = group * tensor.format.granularity.size // top.group
        offset = -np.float32(tensor.super_zeros[row, above]) * offset
    return offset * np.float32(tensor.tensor_scale)


def _slow_code(tensor: QuantizedTensor, row: int, column: int) -> int:
    bits = tensor.format.bits
    whole = int.from_bytes(tensor.codes[row].tobytes(), "little")
    return whole >> (column * bits) & (2**bits - 1)


def _slow_window(tensor: QuantizedTensor, row: int, column: int) -> int:
    run = column // 32 * 32
    ring = [_slow_code(tensor, row, run + (column + i) % 32) for i in range(4)]
    return sum(code << 2 * i for i, code in enumerate(ring))


def _slow_weight(tensor: QuantizedTensor, row: int, column: int) -> np.float32:
    """`w = fl(fl(s * (q - z)) + m)`, from the class's docstring and nothing else."""
    format = tensor.format
    if format.plain:
        return np.float32(tensor.codes[row, column])
    group = _group_of(tensor, column)
    at = 0 if isinstance(format.granularity, PerTensor) else row
    scale = _slow_scale(tensor, at, group)
    if format.kind == "float":
        return scale * np.float32(tensor.codes[row, column])
    code = _slow_code(tensor, row, column)
    if format.variant == "trellis2":
        return scale * named_levels(format)[_slow_window(tensor, row, column)]
    if format.kind == "codebook":
        levels = named_levels(format) if tensor.codebook is None else tensor.codebook
        return scale * levels[code]
    if format.variant == "binary":
        return scale * np.float32(2 * code - 1)
    if format.zero == "real":
        return scale * np.float32(code) + _slow_offset(tensor, at, group)
    zero = 2 ** (format.bits - 1)
    if format.zero == "int":
        assert tensor.zeros is not None
        zero = int(tensor.zeros[at, group])
    return scale * np.float32(code - zero)


def _slow(tensor: QuantizedTensor, rows: int, columns: int) -> F32:
    cells = [_slow_weight(tensor, r, c) for r, c in product(range(rows), range(columns))]
    return np.array(cells, np.float32).reshape(rows, columns)


def _affine_values(rows: AffineRows) -> F32:
    """`fl(fl(scale * v) + offset)`, as AffineRows states it."""
    units = rows.codes.astype(np.float32) - np.float32(rows.zero)
    if rows.zeros is not None:
        units -= np.repeat(rows.zeros, rows.group, axis=1)
    if rows.levels is not None:
        units = rows.levels[rows.codes]
    flat = rows.one_level()
    values = units * np.repeat(flat.scales, rows.group, axis=1)
    if flat.offsets is not None:
        values = values + np.repeat(flat.offsets, rows.group, axis=1)
    return values


@pytest.mark.parametrize("name", NAMES)
def test_dequantize_is_the_contract_read_slowly(name: str) -> None:
    tensor = _tensor(name)
    columns = 300  # past the first super-group of 256
    np.testing.assert_array_equal(tensor.dequantize()[:2, :columns], _slow(tensor, 2, columns))


def test_a_learned_codebook_dequantizes_through_its_levels() -> None:
    tensor = _learned()
    np.testing.assert_array_equal(tensor.dequantize(), _slow(tensor, 4, 10))
    np.testing.assert_array_equal(_affine_values(tensor.affine()), tensor.dequantize())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("fp32", "fp16", "bf16")])
def test_the_affine_view_is_exact(name: str) -> None:
    tensor = _tensor(name, seed=3)
    rows = tensor.affine()
    assert rows.codes.shape == SHAPE
    assert rows.codes.dtype == np.uint8
    assert rows.one_level().scales.shape == (SHAPE[0], SHAPE[1] // rows.group)
    assert (rows.subs is None) == (tensor.format.super_scale is None)
    np.testing.assert_array_equal(_affine_values(rows), tensor.dequantize())


def test_a_tensor_scale_multiplies_scales_and_offsets() -> None:
    plain = _tensor("int4_g32_offset")
    scaled = dataclasses.replace(plain, tensor_scale=0.125)
    np.testing.assert_array_equal(scaled.dequantize(), plain.dequantize() * np.float32(0.125))
    odd = dataclasses.replace(plain, tensor_scale=float(np.float32(0.3)))
    np.testing.assert_array_equal(_affine_values(odd.affine()), odd.dequantize())
    np.testing.assert_array_equal(odd.dequantize()[:1], _slow(odd, 1, 512))


@pytest.mark.parametrize("name", ["int7_g32_asym_sfp32", "int8_channel_asym_sfp32"])
def test_zero_points_stay_zero_points_under_any_scale(name: str) -> None:
    rows = _tensor(name).affine()
    assert rows.offsets is None
    assert rows.zeros is not None
    assert rows.zero == 0


def test_two_levels_under_a_tensor_scale_become_one() -> None:
    """Only super * sub is exact; the tensor's factor rounds."""
    tensor = dataclasses.replace(_tensor("int6_g16_si8x256"), tensor_scale=float(np.float32(0.3)))
    assert tensor.affine().subs is None
    np.testing.assert_array_equal(_affine_values(tensor.affine()), tensor.dequantize())


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_wide_floats_have_no_codes(name: str) -> None:
    with pytest.raises(FormatError, match="values, not codes"):
        _tensor(name).affine()


@pytest.mark.parametrize("name", NAMES)
def test_state_comes_back_and_rows_are_slices(name: str) -> None:
    tensor = _tensor(name)
    state = {**tensor.state("layers.0.q"), "layers.0.qk.codes": np.zeros(3)}
    again = QuantizedTensor.from_state(state, "layers.0.q", tensor.format, SHAPE)
    assert again.tensor_scale == tensor.tensor_scale
    np.testing.assert_array_equal(again.dequantize(), tensor.dequantize())
    np.testing.assert_array_equal(tensor.rows(2, 5).dequantize(), tensor.dequantize()[2:5])


def _refused(tensor: QuantizedTensor, change: dict[str, object], match: str) -> None:
    state = {**tensor.state("w"), **{f"w.{key}": value for key, value in change.items()}}
    kept = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(FormatError, match=match):
        QuantizedTensor.from_state(kept, "w", tensor.format, tensor.shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("int4_g32", {"codes": np.zeros((6, 255), np.uint8)}, r"codes .*\[6, 256\].*\[6, 255\]"),
        ("int4_g32", {"codes": None}, "needs codes"),
        ("int4_g32", {"codes": np.zeros((6, 256), np.int8)}, "uint8"),
        ("int4_g32", {"scales": None}, "scales .*none given"),
        ("int4_g32", {"scales": np.zeros((6, 16), np.float32)}, "float16 .* expected, float32"),
        ("int4_g32", {"scales": np.zeros((1, 16), np.float16)}, r"\[6, 16\]"),
        ("int4_g32", {"zeros": np.zeros((6, 16), np.uint8)}, "has no zeros"),
        ("int4_g32", {"codebook": np.zeros(16, np.float32)}, "has no codebook"),
        ("int4_g32", {"salt": np.zeros(1)}, "unknown parts salt"),
        ("int4_g32", {"tensor_scale": np.zeros(1, np.float32)}, "finite and positive"),
        ("int4_g32", {"tensor_scale": np.full(1, np.nan, np.float32)}, "finite and positive"),
        ("int4_g32", {"tensor_scale": np.ones(2, np.float32)}, "tensor_scale must be float32"),
        ("int4_g32_asym", {"zeros": np.full((6, 16), 16, np.uint8)}, "16 exceeds 4 bits"),
        ("int4_g32_asym", {"zeros": None}, "zeros"),
        ("int4_g32_offset_su6x256", {"super_zeros": None}, "super_zeros"),
        ("int6_g16_si8x256", {"super_scales": np.zeros((6, 1), np.float16)}, r"\[6, 2\]"),
        ("ternary_tensor", {"codes": np.zeros((6, 128), np.uint8)}, "no value"),
        ("nf4_g64", {"codebook": np.zeros(16, np.float32)}, "levels of its own"),
        ("bf16", {"codes": np.zeros(SHAPE, np.float32)}, "bfloat16"),
    ],
)
def test_a_damaged_state_is_refused(name: str, change: dict[str, object], match: str) -> None:
    _refused(_tensor(name), change, match)


def test_a_learned_codebook_must_be_there() -> None:
    _refused(_learned(), {"codebook": None}, "codebook .*none given")


def test_a_named_codebook_may_be_left_out() -> None:
    tensor = _tensor("nf4_g64")
    np.testing.assert_array_equal(
        dataclasses.replace(tensor, codebook=None).dequantize(), tensor.dequantize()
    )


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 3), (4, 2), (0, 7)])
def test_rows_out_of_range_are_refused(start: int, stop: int) -> None:
    with pytest.raises(FormatError, match="6 rows"):
        _tensor("int4_g32").rows(start, stop)


def test_nbytes_counts_every_array() -> None:
    assert _tensor("int4_g32").nbytes == 6 * 256 + 6 * 16 * 2
