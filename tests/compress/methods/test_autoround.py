"""Learned rounding: nearest where it starts, never worse where it ends, one code off at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.compress.methods.autoround import AutoRound, Rounding, through
from octavo.core.errors import ConfigError, FormatError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.spec.decoder import Role

FORMATS = ("int3_g16", "int4_g16_asym", "int2_g16_asym", "int8_channel", "int4_channel_sfp32")
UP, DOWN = Role("up", 0), Role("down", 0)


@dataclass(frozen=True)
class Mlp:
    """Two matrices with a nonlinearity between them, on inputs that share a few directions."""

    weights: Mapping[Role, Tensor]
    x: Tensor

    @property
    def sequences(self) -> int:
        return len(self.x)

    def inputs(self, sequence: int) -> Tensor:
        return self.x[sequence]

    def weight(self, role: Role) -> Tensor:
        return self.weights[role]

    def output(self, x: Tensor, weights: Mapping[Role, Tensor]) -> Tensor:
        now = {**self.weights, **weights}
        return x + torch.relu(x @ now[UP].T) @ now[DOWN].T


def block(sequences: int = 6) -> Mlp:
    random = torch.Generator().manual_seed(0)
    up, down = (torch.randn(s, generator=random) / 8 for s in ((96, 64), (64, 96)))
    few = torch.randn(sequences, 40, 12, generator=random)
    x = few @ torch.randn(12, 64, generator=random)
    x = x + 0.3 * torch.randn(x.shape, generator=random)
    return Mlp({UP: up, DOWN: down}, x)


def mean_error(mlp: Mlp, weights: Mapping[Role, Tensor]) -> float:
    gaps = [mlp.output(x, weights) - mlp.output(x, {}) for x in mlp.x]
    return float(torch.stack(gaps).square().mean())


def encoded(method: AutoRound, name: str, mlp: Mlp) -> dict[Role, Tensor]:
    targets = dict.fromkeys((UP, DOWN), NumberFormat.parse(name))
    made = method.encode_block(mlp, targets, {})
    return {role: torch.from_numpy(q.dequantize()) for role, q in made.items()}


def nearest(name: str, mlp: Mlp) -> dict[Role, Tensor]:
    target = NumberFormat.parse(name)
    return {
        role: torch.from_numpy(rtn.encode(w.numpy(), target).dequantize())
        for role, w in mlp.weights.items()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_without_iterations_it_rounds_to_nearest_bit_for_bit(name: str) -> None:
    mlp = block(2)
    target = NumberFormat.parse(name)
    made = AutoRound(iterations=0).encode_block(mlp, {UP: target, DOWN: target}, {})
    for role, found in made.items():
        expected = rtn.encode(mlp.weights[role].numpy(), target).state("w")
        state = found.state("w")
        assert state.keys() == expected.keys()
        for key in state:
            assert np.array_equal(state[key], expected[key]), key


@pytest.mark.parametrize("name", FORMATS)
def test_the_blocks_error_never_rises(name: str) -> None:
    mlp = block()
    learned = encoded(AutoRound(iterations=20, batch=3), name, mlp)
    assert mean_error(mlp, learned) <= mean_error(mlp, nearest(name, mlp))


@pytest.mark.parametrize(("name", "at_most"), [("int3_g16", 0.6), ("int2_g16_asym", 0.6)])
def test_it_learns(name: str, at_most: float) -> None:
    mlp = block()
    learned = encoded(AutoRound(iterations=100, batch=6), name, mlp)
    assert mean_error(mlp, learned) < at_most * mean_error(mlp, nearest(name, mlp))


def test_ranges_help_and_without_them_no_code_moves_by_two() -> None:
    mlp, name = block(), "int3_g16"
    fixed = encoded(AutoRound(iterations=60, batch=6, ranges=False), name, mlp)
    start = nearest(name, mlp)
    target = NumberFormat.parse(name)
    for role, Q in fixed.items():
        steps = torch.from_numpy(rtn.encode(mlp.weights[role].numpy(), target).steps())
        codes = ((Q - start[role]).reshape(len(Q), steps.shape[1], -1) / steps[..., None]).round()
        assert codes.abs().max() == 1
    free = encoded(AutoRound(iterations=60, batch=6), name, mlp)
    assert mean_error(mlp, free) < mean_error(mlp, fixed)


def test_steps_add_up_to_half_a_code() -> None:
    method = AutoRound(iterations=200)
    travel = sum(1 / 200 * (1 - i / 200) for i in range(200))
    assert travel == pytest.approx(0.5, abs=1 / 200)
    assert method.rate is None


def test_the_gradient_of_rounding_is_one() -> None:
    x = torch.tensor([0.3, 1.7, -2.2], requires_grad=True)
    y = through(x, x.round())
    assert torch.equal(y.detach(), x.detach().round())
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["int3_g16", "int4_g16_asym"])
def test_what_is_stored_is_what_was_trained(name: str) -> None:
    rounding = Rounding(block().weights[UP], NumberFormat.parse(name), None)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        rounding.V.copy_(torch.rand(rounding.V.shape, generator=random) - 0.5)
        rounding.alpha.copy_(0.5 + torch.rand(rounding.alpha.shape, generator=random) / 2)
        rounding.beta.copy_(0.5 + torch.rand(rounding.beta.shape, generator=random) / 2)
        values = rounding.values()
    assert torch.equal(values, torch.from_numpy(rounding.tensor().dequantize()))


@pytest.mark.parametrize("name", ["int3_g16", "int4_g16_asym"])
def test_pruned_weights_stay_zero(name: str) -> None:
    mlp, target = block(), NumberFormat.parse(name)
    mask = torch.rand(96, 64, generator=torch.Generator().manual_seed(2)) < 0.5
    made = AutoRound(iterations=5, batch=2).encode_block(mlp, {UP: target}, {UP: mask})
    Q = torch.from_numpy(made[UP].dequantize())
    assert not Q[~mask].any()
    assert Q[mask].any()


def test_equal_seeds_give_equal_bytes() -> None:
    one, two = (encoded(AutoRound(iterations=10, batch=2), "int3_g16", block()) for _ in range(2))
    assert all(torch.equal(one[role], two[role]) for role in one)


@pytest.mark.parametrize("name", ["nf4_g16", "int4_g16_offset", "ternary_tensor", "int4_g16_se4m3"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="autoround learns integers"):
        Rounding(block().weights[UP], NumberFormat.parse(name), None)


def test_options_are_checked() -> None:
    for options in ({"iterations": -1}, {"batch": 0}, {"rate": 0.0}):
        with pytest.raises(ConfigError, match="autoround"):
            AutoRound(**options)  # type: ignore[arg-type]
