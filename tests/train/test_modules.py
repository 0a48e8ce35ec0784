"""Fake quantization in plain modules: definitions, gradients, a classifier, the worked example."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import ConfigError, FormatError

torch = pytest.importorskip("torch")
train = pytest.importorskip("octavo.train")

BITS = st.integers(2, 8)


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_exports_are_lazy() -> None:
    code = "import sys, octavo.train; assert 'torch' not in sys.modules; octavo.train.FakeQuantize"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"FakeQuantize", "QuantizedLinear", "fake_quantize"} <= set(dir(train))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = train.nothing


@given(BITS, st.integers(0, 2**32))
def test_fake_quantize_is_its_definition(bits: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((3, 7)).astype(np.float32)
    scale = np.abs(x).max() / np.float32(2 ** (bits - 1) - 1)
    expected = np.rint(x / scale) * scale
    result = train.fake_quantize(torch.from_numpy(x), bits).numpy()
    np.testing.assert_array_equal(result, expected)
    assert len(np.unique(result)) <= 2**bits - 1


@given(BITS, st.integers(0, 2**32))
def test_fake_quantize_passes_the_gradient_and_repeats_itself(bits: int, seed: int) -> None:
    x = random(4, 6, seed=seed).requires_grad_()
    toward = random(4, 6, seed=seed + 1)
    once = train.fake_quantize(x, bits)
    (once * toward).sum().backward()
    assert torch.equal(x.grad, toward)
    # a second pass moves nothing beyond the rounding of the scale itself
    torch.testing.assert_close(train.fake_quantize(once, bits), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (3,), (2, 2, 2)])
def test_zeros_and_odd_shapes_pass(shape: tuple[int, ...]) -> None:
    for mode in ("absmax", "minmax", "lsq", "seq"):
        if 0 in shape and mode in ("lsq", "seq"):
            continue
        zeros = torch.zeros(shape)
        result = train.FakeQuantize(4, mode)(zeros)
        assert result.shape == zeros.shape
        assert torch.isfinite(result).all()
        if mode != "seq":  # which has no level at zero
            assert not result.any()


def test_minmax_has_an_integer_zero_and_clips_beyond_its_last_code() -> None:
    x = torch.tensor([-1.0, 0.0, 0.7364, 1.0], dtype=torch.float64, requires_grad=True)
    result = train.FakeQuantize(4, "minmax")(x)
    result.sum().backward()
    # step 2/15, zero point rint(7.5) = 8: codes 0 .. 15 stand for -8 .. 7 steps
    assert result.tolist() == pytest.approx([-1.0666666667, 0, 0.8, 14 / 15])
    assert x.grad.tolist() == [1, 1, 1, 0]


def test_rows_have_steps_of_their_own() -> None:
    x = random(3, 20) * torch.tensor([[1.0], [100.0], [0.01]])
    for mode in ("absmax", "minmax"):
        whole = train.FakeQuantize(5, mode, rows=3)(x)
        for row in range(3):
            assert torch.equal(whole[row], train.FakeQuantize(5, mode)(x[row]))
    learned = train.FakeQuantize(3, "lsq", rows=3)
    learned(x)
    assert learned.step.shape == (3, 1)
    assert (learned.step[1] / learned.step[2]).item() > 1000


@pytest.mark.parametrize(("mode", "bits"), [("lsq", 3), ("seq", 2), ("ternary", 2)])
def test_a_learned_step_finds_back_to_the_values(mode: Any, bits: int) -> None:
    x = random(16, 64)
    module = train.FakeQuantize(bits, mode, rows=16)
    first = (module(x) - x).square().mean().item()
    with torch.no_grad():
        module.step.mul_(2)
    spoiled = (module(x) - x).square().mean().item()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        (module(x) - x).square().sum().backward()
        optimizer.step()
    found = (module(x) - x).square().mean().item()
    assert first < spoiled
    assert found - first < 0.1 * (spoiled - first)


def test_a_started_step_survives_saving() -> None:
    module, x = train.FakeQuantize(3, "lsq"), random(8, 8)
    expected = module(x)
    loaded = train.FakeQuantize(3, "lsq")
    loaded.load_state_dict(module.state_dict())
    assert torch.equal(loaded(x * 1), expected)
    assert torch.equal(loaded.step, module.step)  # not started anew


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_bits": 1}, "2 to 16 bits"),
        ({"num_bits": 3, "mode": "ternary"}, "2 bits"),
        ({"mode": "median"}, "absmax, minmax"),
        ({"rows": 0}, "first axis"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, FormatError), match=message):
        train.FakeQuantize(**arguments)


def test_a_tensor_of_other_rows_and_a_start_without_steps_are_refused() -> None:
    with pytest.raises(FormatError, match="3 rows"):
        train.FakeQuantize(rows=3)(random(4, 4))
    with pytest.raises(ConfigError, match="no learned step"):
        train.FakeQuantize().start(random(4, 4))


def test_quantized_linear_starts_as_nn_linear() -> None:
    torch.manual_seed(5)
    plain = torch.nn.Linear(12, 7)
    torch.manual_seed(5)
    quantized = train.QuantizedLinear(12, 7, num_bits=4)
    assert torch.equal(plain.weight, quantized.weight)
    assert torch.equal(plain.bias, quantized.bias)
    x = random(3, 12)
    expected = torch.nn.functional.linear(x, train.fake_quantize(plain.weight, 4), plain.bias)
    assert torch.equal(quantized(x), expected)
    with pytest.raises(FormatError, match="2 to 16 bits"):
        train.QuantizedLinear(2, 2, 1)


def classes(count: int, seed: int) -> tuple[Any, Any]:
    """Ten prototypes of 784 pixels, seen through noise seven times as strong."""
    prototypes = torch.randn(10, 784, generator=torch.Generator().manual_seed(99))
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=draws)
    return prototypes[labels] + 7 * torch.randn(count, 784, generator=draws), labels


def classifier(linear: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(linear(784, 128), torch.nn.ReLU(), linear(128, 10))


def accuracy(model: Any, x: Any, labels: Any) -> float:
    with torch.no_grad():
        return float((model(x).argmax(dim=-1) == labels).double().mean())


def fitted(model: Any) -> Any:
    x, labels = classes(2000, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(100):
        rows = torch.arange(step * 100, step * 100 + 100) % len(x)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), labels[rows]).backward()
        optimizer.step()
    return model


def test_a_classifier_trained_at_8_bits_is_within_a_percent_of_float() -> None:
    x, labels = classes(4000, seed=2)
    plain = accuracy(fitted(classifier(torch.nn.Linear)), x, labels)
    quantized = accuracy(fitted(classifier(train.QuantizedLinear)), x, labels)
    untrained = accuracy(classifier(torch.nn.Linear), x, labels)
    assert untrained < 0.3  # the labels can't be guessed,
    assert 0.8 < plain < 0.999  # nor is the task so easy that nothing could be lost
    assert abs(plain - quantized) <= 0.01


def test_fake_quantize_modules_work_inside_any_module() -> None:
    model = classifier(torch.nn.Linear)
    twin = copy.deepcopy(model)
    wrapped = torch.nn.Sequential(twin[0], twin[1], train.FakeQuantize(8, "lsq"), twin[2])
    x, labels = classes(64, seed=3)
    torch.nn.functional.cross_entropy(wrapped(x), labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in wrapped.parameters())
    hidden = model(x).abs().max().item()
    assert (wrapped(x) - model(x)).abs().max().item() < 0.1 * hidden
