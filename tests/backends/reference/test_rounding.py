"""Which rounding a weight's format brings; exact forward, the identity backward."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.errors import UnsupportedError
from octavo.formats.activations import (
    fake_quantize_a8,
    fake_quantize_a8a16,
    fake_quantize_a16,
    peaked,
)
from octavo.formats.number_format import NumberFormat

torch = pytest.importorskip("torch")
options = pytest.importorskip("octavo.backends.reference.options")
rounding = pytest.importorskip("octavo.backends.reference.rounding")

RULES = [
    ("int4_g32", 576, "auto", "a8_g32"),
    ("int4_g64", 576, "auto", "a8_g64"),
    ("int4_g64", 96, "auto", "a8_g32"),
    ("int4_g128", 4096, "a8", "a8_g64"),
    ("int8_channel", 576, "a8", "a8_g64"),
    ("int8_channel", 96, "a8", "a8_g32"),
    ("iq4nl_g32", 576, "auto", "a8_g32"),
    ("int4_g64", 576, "a16", "a16_g64"),
    ("int4_g32", 576, "a8a16", "a8a16_g32"),
    ("int4_g32", 576, "a32", "a32"),
    ("int4_g32", 576, "abf16", "abf16"),
    ("bf16", 576, "auto", "abf16"),
    ("fp32", 576, "auto", "a32"),
    ("fp16", 576, "auto", "a32"),
    ("fp32", 576, "abf16", "abf16"),
    ("nf4_g64", 576, "auto", "a8_g64"),
    ("fp8_e4m3_channel", 576, "auto", "abf16"),
]


@pytest.mark.parametrize(("weight", "inputs", "asked", "expected"), RULES)
def test_the_rule_follows_the_weights_format(
    weight: str, inputs: int, asked: str, expected: str
) -> None:
    assert str(options.activation_rule(NumberFormat.parse(weight), inputs, asked)) == expected


@pytest.mark.parametrize("weight", ["bf16", "fp32", "fp8_e4m3_channel"])
@pytest.mark.parametrize("asked", ["a8", "a16", "a8a16"])
def test_integer_activations_of_other_weights_are_refused(weight: str, asked: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{asked} multiplies .* a weight is {weight}"):
        options.activation_rule(NumberFormat.parse(weight), 64, asked)


@pytest.mark.parametrize("asked", ["a16", "a8a16"])
def test_levels_of_16_bits_take_no_activations_of_16_bits(asked: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{asked} multiplies integers, and a weight is nf4"):
        options.activation_rule(NumberFormat.parse("nf4_g64"), 64, asked)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("group", [32, 64])
def test_a8_equals_the_numpy_twin_to_the_bit(group: int, requires_grad: bool) -> None:
    x = np.random.default_rng(group).normal(size=(5, 192)).astype(np.float32)
    rule = options.ActivationRule("a8", group)
    ours = rounding.round_activations(torch.tensor(x, requires_grad=requires_grad), rule)
    np.testing.assert_array_equal(ours.detach().numpy(), fake_quantize_a8(x, group, np))


@pytest.mark.parametrize("group", [32, 64])
def test_a16_and_the_mix_equal_the_numpy_twins_to_the_bit(group: int) -> None:
    x = np.random.default_rng(group).normal(size=(64, 192)).astype(np.float32)
    x[::2, 7] *= 4
    wide = rounding.round_activations(torch.tensor(x), options.ActivationRule("a16", group))
    np.testing.assert_array_equal(wide.numpy(), fake_quantize_a16(x, group, np))
    rule = options.ActivationRule("a8a16", group, 3.0)
    mixed = rounding.round_activations(torch.tensor(x), rule).numpy()
    np.testing.assert_array_equal(mixed, fake_quantize_a8a16(x, group, 3.0, np))
    own = peaked(x, 3.0, np)
    assert 0.1 < own.mean() < 0.9
    np.testing.assert_array_equal(mixed[own], wide.numpy()[own])
    np.testing.assert_array_equal(mixed[~own], fake_quantize_a8(x, group, np)[~own])


def test_bf16_rounds_half_to_even() -> None:
    x = torch.tensor([1.0 + 2**-8, 1.0 + 3 * 2**-8, 1.0 + 2**-8 + 2**-20, -3.3])
    expected = [1.0, 1.0 + 2**-6, 1.0 + 2**-7, float(torch.tensor(-3.3).bfloat16())]
    assert rounding.round_bf16(x).tolist() == expected


@pytest.mark.parametrize("kind", ["a32", "a8", "a16", "a8a16", "abf16"])
def test_the_gradient_passes_unchanged(kind: str) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    upstream = torch.arange(3 * 64.0).reshape(3, 64)
    (rounding.round_activations(x, options.ActivationRule(kind, 32)) * upstream).sum().backward()
    assert torch.equal(x.grad, upstream)


@pytest.mark.parametrize("kind", ["a8", "a16", "a8a16", "a8_token", "a8_tensor", "llm_int8"])
def test_what_autocast_gives_in_bf16_is_rounded_as_its_values_in_fp32(kind: str) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(16, 128, generator=draws).bfloat16()
    rule = options.ActivationRule(kind, 0 if kind in ("a8_token", "a8_tensor", "llm_int8") else 32)
    found = rounding.round_activations(x, rule)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rounding.round_activations(x.float(), rule).bfloat16())
