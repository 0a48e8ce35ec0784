"""Prepare = convert: what training simulates is what the encoder stores, in every format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import FormatError, NumericsError, UnsupportedError
from octavo.formats.activations import fake_quantize_a8
from octavo.formats.number_format import COMMON_NAMES, NumberFormat
from octavo.formats.rounding import Convention, conventions_of
from octavo.formats.rtn import encode
from support.number_formats import normal_weight, number_formats

torch = pytest.importorskip("torch")
formats = pytest.importorskip("octavo.train.formats")

TRAINABLE = [
    NumberFormat.parse(name) for name in COMMON_NAMES if not name.startswith(("lut", "trellis"))
]
PAIRS = [(f, convention) for f in TRAINABLE for convention in conventions_of(f)]


def assert_same_bits(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


def fitting_width(format: NumberFormat) -> int:
    if format.super_scale:
        return format.super_scale.group
    return getattr(format.granularity, "size", 24)


@given(number_formats(), st.integers(0, 2**32))
def test_forward_is_convert_in_any_format(format: NumberFormat, seed: int) -> None:
    width = fitting_width(format)
    if format.variant in ("learned", "trellis2") or width > 2048:
        return
    weight = normal_weight((2, width), seed)
    prepared = formats.fake_quantize_weight(torch.from_numpy(weight).requires_grad_(), format)
    converted = formats.convert_weight(torch.from_numpy(weight), format)
    assert_same_bits(prepared.detach().numpy(), converted.dequantize())
    assert_same_bits(converted.dequantize(), encode(weight, format).dequantize())


@pytest.mark.parametrize(("format", "convention"), PAIRS, ids=str)
def test_forward_is_convert_with_zero_groups_and_tiny_scales(
    format: NumberFormat, convention: Convention
) -> None:
    weight = normal_weight((3, 512), seed=9)
    weight[0, :64] = 0
    weight[1] *= 1e-6
    tensor = torch.from_numpy(weight).requires_grad_()
    prepared = formats.fake_quantize_weight(tensor, format, convention)
    assert_same_bits(prepared.detach().numpy(), encode(weight, format, convention).dequantize())
    prepared.sum().backward()
    assert set(torch.unique(tensor.grad).tolist()) <= {0.0, 1.0}


def gradient_mask(weight: Any, name: str, convention: Convention | None = None) -> Any:
    tensor = torch.from_numpy(weight).requires_grad_()
    formats.fake_quantize_weight(tensor, NumberFormat.parse(name), convention).sum().backward()
    return tensor.grad.numpy() == 1


@pytest.mark.parametrize("name", ["int2_g32", "int3_g64", "int4_g32", "int4_g32_asym", "int8_g32"])
def test_gradient_is_zero_exactly_where_codes_were_clipped(name: str) -> None:
    weight = normal_weight((8, 256), seed=4)
    tensor = encode(weight, NumberFormat.parse(name))
    bits = tensor.format.bits
    steps = np.repeat(tensor.steps().astype(np.float64), 256 // tensor.steps().shape[1], axis=1)
    zero = 2 ** (bits - 1) if tensor.zeros is None else np.repeat(tensor.zeros, 32, axis=1)
    unclipped = np.rint(weight / steps) + zero
    expected = (unclipped >= 0) & (unclipped < 2**bits)
    assert (~expected).any() or name in ("int4_g32_asym", "int8_g32")  # these hardly clip
    np.testing.assert_array_equal(gradient_mask(weight, name), expected)


@pytest.mark.parametrize(
    "name",
    ["int4_g32", "int8_channel", "nf4_g64", "iq4nl_g32", "fp8_e4m3_channel", "int4_g64_se4m3"],
)
def test_no_clip_range_loses_its_own_end(name: str) -> None:
    weight = normal_weight((16, 256), seed=2)
    peak = np.abs(weight).argmax(axis=1)
    assert gradient_mask(weight, name)[np.arange(16), peak].all()


@pytest.mark.parametrize(("name", "convention"), [("int4_g32", "absmax"), ("int4_g32", "no_clip")])
def test_conventions_that_clip_nothing_pass_every_gradient(
    name: str, convention: Convention
) -> None:
    assert gradient_mask(normal_weight((16, 256), seed=3), name, convention).all()


@pytest.mark.parametrize("name", ["ternary_tensor", "binary_channel", "bf16", "fp32"])
def test_means_and_plain_floats_clip_nothing(name: str) -> None:
    assert gradient_mask(normal_weight((4, 64), seed=3), name).all()


def test_a_group_whose_scale_vanished_can_come_back() -> None:
    weight = normal_weight((1, 256), seed=1)
    weight[0, :16] *= 1e-4  # its 6-bit sub-scale rounds to zero
    name = "int3_g16_si6x256"
    assert not encode(weight, NumberFormat.parse(name)).dequantize()[0, :16].any()
    assert gradient_mask(weight, name)[0, :16].all()


@pytest.mark.parametrize("name", ["lut4_channel", "lut3_g64", "trellis2_g64"])
def test_a_format_without_a_rule_is_one_clear_error(name: str) -> None:
    with pytest.raises(FormatError, match=f"{name} has no straight-through rule.*train in"):
        formats.fake_quantize_weight(torch.zeros(4, 64), NumberFormat.parse(name))


def test_bad_weights_are_refused() -> None:
    int4 = NumberFormat.parse("int4_g32")
    with pytest.raises(NumericsError, match="not finite"):
        formats.fake_quantize_weight(torch.full((1, 32), float("nan")), int4)
    with pytest.raises(FormatError, match="_sbf16"):
        formats.fake_quantize_weight(torch.full((1, 32), 1e7), int4)
    with pytest.raises(FormatError, match="don't split"):
        formats.fake_quantize_weight(torch.ones(1, 33), int4)


def test_activations_are_those_of_the_kernels() -> None:
    x = torch.from_numpy(normal_weight((5, 96), seed=6)).requires_grad_()
    int4 = NumberFormat.parse("int4_g32")
    rounded = formats.fake_quantize_activations(x, int4)
    expected = fake_quantize_a8(x.detach().numpy(), 32, np)
    np.testing.assert_array_equal(rounded.detach().numpy(), expected)
    rounded.sum().backward()
    assert (x.grad == 1).all()
    with pytest.raises(UnsupportedError, match="integers"):
        formats.fake_quantize_activations(x, NumberFormat.parse("fp8_e4m3_g32"), "a8")


def test_keys_and_values_are_bf16() -> None:
    x = torch.from_numpy(normal_weight((5, 96), seed=6)).requires_grad_()
    rounded = formats.fake_quantize_kv(x)
    assert torch.equal(rounded, x.detach().bfloat16().float())
    rounded.sum().backward()
    assert (x.grad == 1).all()
