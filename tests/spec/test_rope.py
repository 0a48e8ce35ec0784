"""Frequencies against transformers' ROPE_INIT_FUNCTIONS for all five kinds of scaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support.tiny_models import tiny_config

from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import RopeScaling, RopeSpec
from octavo.spec.rope import attention_factor, cos_sin, inverse_frequencies
from octavo.spec.table import family_for_hf

torch = pytest.importorskip("torch")
modeling_rope_utils = pytest.importorskip("transformers.modeling_rope_utils")

HEAD_DIM = 128
MAX_POSITIONS = 4096
SHORT = [1.0 + 0.01 * i for i in range(HEAD_DIM // 2)]
LONG = [1.0 + 0.5 * i for i in range(HEAD_DIM // 2)]
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn_tuned": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 1024,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.2,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn_factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "attention_factor": 1.25,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 1024,
    },
    "longrope_factor": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "factor": 16.0,
        "attention_factor": 1.1,
        "original_max_position_embeddings": 1024,
    },
}


class ExactBase(float):
    """A theta whose power of a tensor is taken in double and rounded: no library's powf in it."""

    def __pow__(self, exponent: Any) -> Any:  # type: ignore[override]
        base = torch.tensor(float(np.float32(self)), dtype=torch.float64)
        return torch.pow(base, exponent.double()).float()

    def __mul__(self, other: Any) -> ExactBase:
        return ExactBase(float(self) * other)


def config_of(scaling: dict[str, Any], theta: float) -> Any:
    return tiny_config(
        "llama",
        hidden_size=4 * HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_theta": theta, **scaling},
    )


def rope_of(config: Any) -> RopeSpec:
    spec = family_for_hf("LlamaForCausalLM").from_hf(ConfigReader(config.to_dict(), "config.json"))
    return spec.layers[0].attention.rope


def theirs(config: Any, length: int) -> tuple[Any, float]:
    kind = config.rope_parameters["rope_type"]
    function = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind]
    frequencies, factor = function(config, torch.device("cpu"), seq_len=length)
    return frequencies.numpy(), factor


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 41000.7])
@pytest.mark.parametrize("length", [64, 1025, 3 * MAX_POSITIONS])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_transformers_to_the_bit(name: str, length: int, theta: float) -> None:
    config = config_of(SCALINGS[name], theta)
    rope = rope_of(config)
    config.rope_parameters["rope_theta"] = ExactBase(theta)
    expected, factor = theirs(config, length)
    ours = inverse_frequencies(rope, length)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.int32), expected.view(np.int32))
    assert attention_factor(rope) == factor


@pytest.mark.parametrize("name", SCALINGS)
def test_torchs_own_power_differs_by_its_last_bits_only(name: str) -> None:
    """Its vector powf is good to 1 ulp; the division and the ramp after it add a few more."""
    config = config_of(SCALINGS[name], 500000.0)
    expected, _ = theirs(config, 64)
    ours = inverse_frequencies(rope_of(config), 64)
    np.testing.assert_allclose(ours, expected, rtol=8 * np.finfo(np.float32).eps)


def test_each_scaling_changes_the_frequencies() -> None:
    plain = inverse_frequencies(RopeSpec(10000.0, HEAD_DIM), MAX_POSITIONS)
    for name, scaling in SCALINGS.items():
        rope = rope_of(config_of(scaling, 10000.0))
        scaled = inverse_frequencies(rope, 3 * MAX_POSITIONS)
        assert (scaled != plain).any(), name


def test_factors_of_a_gguf_divide_the_frequencies() -> None:
    factors = tuple(1.0 + i for i in range(8))
    rope = RopeSpec(10000.0, 16, RopeScaling("llama3", short_factor=factors))
    plain = inverse_frequencies(RopeSpec(10000.0, 16), 1)
    expected = plain / np.array(factors, np.float32)
    np.testing.assert_array_equal(inverse_frequencies(rope, 1), expected)


def test_tables_are_exact_cosines_of_fp32_angles() -> None:
    rope = rope_of(config_of(SCALINGS["yarn"], 10000.0))
    positions = [0, 1, 17, 100_000]
    cos, sin = cos_sin(rope, positions, 64)
    frequencies = inverse_frequencies(rope, 64)
    factor = np.float32(attention_factor(rope))
    for row, position in enumerate(positions):
        for pair, frequency in enumerate(frequencies):
            angle = float(frequency * np.float32(position))
            assert cos[row, pair] == np.float32(math.cos(angle)) * factor
            assert sin[row, pair] == np.float32(math.sin(angle)) * factor
    assert cos.dtype == sin.dtype == np.float32
