"""What is packed is what the format says, to the bit: for files' own blocks and for requantized
rows, whichever encoder made them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octavo import _native
from octavo.backends.base import RuntimeConfig
from octavo.backends.native.packing import pack_all
from octavo.backends.native.recipe import (
    is_requantized,
    native_bits,
    pack_plan,
    storage,
    wanted_format,
)
from octavo.core.errors import FormatError, UnsupportedError
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import encode
from octavo.spec.decoder import Role
from support.native_models import RandomSource, llama_like

SPEC = llama_like(vocab=50)
DOWN = Role("down", 1)  # [64, 96]
CONFIG = RuntimeConfig(threads=1)
ROUNDED = (
    "fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2_channel",
    "int8_tensor", "int8_channel", "int8_g32", "int6_g32", "int5_g32",
    "int4_g32", "int4_g48", "int4_g96", "int4_channel", "int4_g32_asym",
    "int4_g32_offset", "int4_g16_sfp32", "int3_g32", "int2_g32", "int4_g32_asym_sfp32",
    "int4_g32_sbf16", "int4_g32_se8m0", "int4_g16_se4m3", "nf4_g32", "iq4nl_g32", "trellis2_g32",
    "ternary_tensor", "binary_channel", "int1_g32_asym", "int4_g32_offset_su6x96",
    "int6_g16_si8x96", "int4_g16_offset_su4x32", "int5_g16_si6x32", "iq4nl_g32_si5x96",
    "int8_channel_asym_sfp32", "int3_g16_asym",
)  # fmt: skip


def packed(source: RandomSource, role: Role, config: RuntimeConfig) -> _native.Weight:
    view = source.tensor(role)
    return pack_all(source, {role: storage(role, view, config)}, 1)[role]


def unpacked(weight: _native.Weight, shape: tuple[int, ...]) -> np.ndarray:
    out = np.full(shape, np.nan, np.float32)
    weight.unpack(0, out)
    return out


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_file_keeps_its_own_values(type: str) -> None:
    source = RandomSource(SPEC, type)
    for role in (DOWN, Role("embed")):
        view = source.tensor(role)
        weight = packed(source, role, CONFIG)
        np.testing.assert_array_equal(unpacked(weight, view.shape), view.float32())
        assert not is_requantized([storage(role, view, CONFIG)])


@pytest.mark.parametrize("name", ROUNDED)
def test_requantized_values_are_the_encoders(name: str) -> None:
    source = RandomSource(SPEC)
    config = replace(CONFIG, format=name, activations="abf16")
    values = source.tensor(DOWN).float32()
    want = encode(values, NumberFormat.parse(name)).dequantize()
    np.testing.assert_array_equal(unpacked(packed(source, DOWN, config), values.shape), want)
    assert is_requantized([storage(DOWN, source.tensor(DOWN), config)]) == (name != "fp32")


@pytest.mark.parametrize("name", ["int4_g32", "nf4_g32", "bf16"])
def test_the_size_is_known_before_packing(name: str) -> None:
    source = RandomSource(SPEC)
    item = storage(DOWN, source.tensor(DOWN), replace(CONFIG, format=name))
    assert pack_plan(item).packed_bytes == packed(source, DOWN, replace(CONFIG, format=name)).bytes


def test_int4_g32_takes_four_and_a_half_bits() -> None:
    role = Role("q", 0)  # [64, 64]: panels without a gap
    weight = packed(RandomSource(SPEC), role, replace(CONFIG, format="int4_g32"))
    assert weight.bytes == 64 * 64 * 9 // 16


# Bits per weight of [1024, 1024]: codes, then scales of 16 bits and zero points of a byte a group,
# rounded up to 64 bytes a panel. GGUF's are its blocks' own: 144 bytes for 256 weights of Q4_K.
BITS = {
    "fp32": 32, "fp16": 16, "bf16": 16, "fp8_e4m3_channel": 8 + 32 / 1024,
    "int8_g32": 8.5, "int6_g32": 6.5, "int5_g32": 5.5, "int4_g32": 4.5, "int3_g32": 3.5,
    "trellis2_g64": 2.25, "trellis2_channel": 2 + 32 / 1024,
    "int2_g32": 2.5, "ternary_channel": 2 + 32 / 1024, "nf4_g64": 4.25,
    "int4_g32_asym": 4.75, "int2_g64_asym": 2.375, "int4_g32_offset": 5, "int5_g32_offset": 6,
    "int2_g16_offset_su4x256": 84 / 32, "int3_g16_si6x256": 110 / 32,
    "int4_g32_offset_su6x256": 144 / 32, "int5_g32_offset_su6x256": 176 / 32,
    "int6_g16_si8x256": 210 / 32, "iq4nl_g32_si6x256": 136 / 32,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BITS))
def test_panels_take_the_bits_that_the_format_says(name: str) -> None:
    assert native_bits(NumberFormat.parse(name), (1024, 1024)) == BITS[name]


def test_a_tied_embedding_answers_to_head() -> None:
    config = replace(CONFIG, format="int4_g32", keep=(("head", "int8_g32"),))
    assert wanted_format(Role("embed"), config, tied=True) == "int8_g32"
    assert wanted_format(Role("embed"), config, tied=False) == "int4_g32"


def test_keep_prefers_the_layer_over_the_part() -> None:
    config = replace(
        CONFIG, format="int4_g32", keep=(("down", "int8_g32"), ("layers.1.down", "bf16"))
    )
    assert wanted_format(DOWN, config) == "bf16"
    assert wanted_format(Role("down", 0), config) == "int8_g32"
    assert wanted_format(Role("up", 0), config) == "int4_g32"


def test_activations_follow_the_values() -> None:
    def activations(type: str, format: str = "source", asked: str = "auto") -> str:
        config = replace(CONFIG, format=format, activations=asked)  # type: ignore[arg-type]
        return storage(DOWN, RandomSource(SPEC, type).tensor(DOWN), config).activations

    assert activations("Q4_0") == "a8_g32"
    assert activations("F32", "int4_channel") == "a8_g32"  # 96 inputs are no multiple of 64
    assert activations("BF16") == "abf16"
    assert activations("F16") == "a32"
    assert activations("F32", "nf4_g32") == "a8_g32"
    assert activations("F32", "fp8_e4m3_channel") == "abf16"
    assert activations("Q4_0", asked="a32") == "a32"


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("int4_g64", FormatError, "don't split into groups of 64"),
        ("int4_g48", FormatError, "multiples of 32"),
        ("int4_g24", FormatError, "multiples of"),
        ("fp8_e4m3_channel", UnsupportedError, "a8 multiplies integers"),
    ],
)
def test_what_no_kernel_takes_is_refused(name: str, error: type[Exception], says: str) -> None:
    config = replace(CONFIG, format=name, activations="a8")
    with pytest.raises(error, match=says):
        storage(DOWN, RandomSource(SPEC).tensor(DOWN), config)
