"""Training from an encoding: zero steps give it back, and what is simulated is what is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.errors import FormatError
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import encode
from octavo.spec.decoder import Role
from support.trainable import tiny_masters, tiny_spec

torch = pytest.importorskip("torch")
anchored = pytest.importorskip("octavo.train.anchored")
qat = pytest.importorskip("octavo.train.qat")
options = pytest.importorskip("octavo.backends.reference.options")

FORMATS = [
    "int2_g32", "int3_g32", "int4_channel", "int8_g32", "int3_tensor", "ternary_channel",
    "int2_g32_asym", "int4_g32_asym", "int2_g32_offset", "int3_g32_sbf16", "int3_g32_sfp32",
]  # fmt: skip


def bits_of(values: Any) -> Any:
    return np.asarray(values, np.float32).view(np.int32)


def pair(name: str) -> tuple[Any, Any, Any]:
    """A weight, its encoding with some codes moved as a better encoder would, and the anchor."""
    draws = torch.Generator().manual_seed(1)
    weight = torch.randn(16, 64, generator=draws)
    noisy = weight + 0.3 * torch.randn(16, 64, generator=draws)
    tensor = encode(noisy.numpy(), NumberFormat.parse(name))
    return weight, tensor, anchored.Anchor(tensor)


@pytest.mark.parametrize("name", FORMATS)
def test_the_master_rounds_to_the_encoding(name: str) -> None:
    weight, tensor, anchor = pair(name)
    master = anchor.master(weight)
    assert 0 < (master == weight).float().mean() < 1  # some codes differ from the nearest
    np.testing.assert_array_equal(
        bits_of(anchor.rounded(master, None)), bits_of(tensor.dequantize())
    )
    again = anchor.convert(master, None)
    np.testing.assert_array_equal(again.codes, tensor.codes)
    np.testing.assert_array_equal(again.scales, tensor.scales)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_simulated_is_what_is_stored(name: str) -> None:
    weight, tensor, anchor = pair(name)
    factors = torch.full_like(anchor.steps, 1.0371)
    moved = anchor.master(weight) + 0.05
    stored = anchor.convert(moved, factors)
    np.testing.assert_array_equal(
        bits_of(anchor.rounded(moved, factors)), bits_of(stored.dequantize())
    )
    assert not np.array_equal(stored.codes, tensor.codes)
    assert not np.array_equal(stored.scales, tensor.scales)


def test_factors_of_one_change_nothing() -> None:
    weight, tensor, anchor = pair("int3_g32_asym")
    ones = torch.ones_like(anchor.steps)
    found = anchor.convert(anchor.master(weight), ones)
    np.testing.assert_array_equal(found.scales, tensor.scales)
    np.testing.assert_array_equal(found.codes, tensor.codes)


def test_gradients_follow_lsq() -> None:
    """One group by hand: step 1/2, codes -4 .. 3; inside, clipped and the step's share."""
    weight = np.array([[0.6, -2.0, 1.5, 0.0]], np.float32)
    tensor = encode(weight, NumberFormat.parse("int3_g4_sfp32"))
    anchor = anchored.Anchor(tensor)
    step = float(anchor.steps[0, 0, 0])
    x = torch.tensor([[0.6 * step, -9.0 * step, 3.4 * step, 0.0]], requires_grad=True)
    factors = torch.ones(1, 1, 1, requires_grad=True)
    anchor.rounded(x, factors).sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0, 1.0, 1.0]]
    slope = (1 - 0.6) + -4 + (3 - 3.4) + 0  # units less ratios inside, the last unit outside
    expected = slope * step / (4 * 3.5) ** 0.5
    assert factors.grad.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["nf4_g32", "fp8_e4m3_channel", "bf16"])
def test_formats_without_linear_steps_are_refused(name: str) -> None:
    tensor = encode(np.ones((16, 64), np.float32), NumberFormat.parse(name))
    with pytest.raises(FormatError, match="no linear steps"):
        anchored.Anchor(tensor)


def test_a_model_starts_at_its_encodings_and_holds_pruned_zeros() -> None:
    masters = tiny_masters(tiny_spec())
    formats = dict.fromkeys(masters, NumberFormat.parse("fp32"))
    role = Role("up", 1)
    kept = torch.rand(masters[role].shape, generator=torch.Generator().manual_seed(0)) > 0.5
    tensor = encode((masters[role] * kept).numpy(), NumberFormat.parse("int3_g32"))
    model = qat.QatModel(
        tiny_spec(), masters, formats, options.ReferenceOptions(), True, anchors={role: tensor}
    )
    model.keep_zeros({role: kept})
    model.freeze([Role("embed")])
    assert "embed" not in model.parameters()
    assert f"{role} steps" in model.parameters()
    np.testing.assert_array_equal(
        bits_of(model.prepared()[role].detach()), bits_of(tensor.dequantize())
    )
    with torch.no_grad():
        model.masters[role].add_(0.2)
    stored = model.convert()[role].dequantize()
    assert not stored[~kept.numpy()].any()
    assert stored[kept.numpy()].any()
    np.testing.assert_array_equal(bits_of(model.prepared()[role].detach()), bits_of(stored))
