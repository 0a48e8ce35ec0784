from __future__ import annotations

import json
import math

import numpy as np
import pytest

from octavo.formats.describe import describe, patterns
from octavo.formats.floats import float_dtype
from octavo.formats.gguf_formats import GGUF_FORMATS
from octavo.formats.number_format import COMMON_NAMES, NumberFormat


@pytest.mark.parametrize("variant", ["fp16", "bf16", "e4m3", "e5m2"])
def test_facts_of_floats_are_those_of_the_type(variant: str) -> None:
    name = f"fp8_{variant}" if variant[0] == "e" else variant
    format = NumberFormat.parse(name)
    dtype = float_dtype(variant)
    codes = np.arange(2**format.bits, dtype=f"u{dtype.itemsize}").view(dtype).astype(np.float32)
    values = np.unique(codes[np.isfinite(codes)])
    facts = describe(format)
    assert facts.codes == np.isfinite(codes).sum()
    assert (facts.smallest, facts.largest) == (values[0], values[-1])
    assert facts.smallest_step == np.diff(values).min()
    assert sum(width for _, width in facts.fields) == format.bits


def test_facts_of_fp32() -> None:
    info, facts = np.finfo(np.float32), describe(NumberFormat.parse("fp32"))
    assert facts.largest == info.max
    assert facts.smallest_step == info.smallest_subnormal
    assert facts.fields == (("sign", 1), ("exponent", 8), ("fraction", 23))
    assert facts.decimal_digits == pytest.approx(7.22, abs=0.01)


@pytest.mark.parametrize(
    ("name", "low", "high", "step", "codes"),
    [
        ("int4_g32", -8, 7, 1, 16),
        ("int8_channel", -128, 127, 1, 256),
        ("int4_g32_asym", 0, 15, 1, 16),
        ("ternary_tensor", -1, 1, 1, 3),
        ("binary_channel", -1, 1, 2, 2),
        ("iq4nl_g32", -127, 113, 11, 16),
        ("fp8_e4m3_channel", -448, 448, 2**-9, 254),
        ("lut4_channel", None, None, None, 16),
        ("trellis2_g64", -127, 127, 1, 4),
    ],
)
def test_ranges_are_in_units_of_the_scale(
    name: str, low: float | None, high: float | None, step: float | None, codes: int
) -> None:
    facts = describe(NumberFormat.parse(name))
    assert (facts.smallest, facts.largest, facts.smallest_step) == (low, high, step)
    assert facts.codes == codes
    assert facts.scaled


@pytest.mark.parametrize("name", [*COMMON_NAMES, "int8_token", "int4_g32_su6x256"])
def test_the_parts_add_up_to_the_bits_per_weight(name: str) -> None:
    format = NumberFormat.parse(name)
    facts = describe(format)
    shares = {"one weight": 1, "a row": 4096, "a token": 4096, "the tensor": 4096**2}
    for part in facts.parts:
        if part.shared_by not in shares:
            shares[part.shared_by] = int(part.shared_by.split()[0])
    # a row takes whole ones of what its weights share: 820 bytes for 4,096 ternary codes
    rows = {n: math.ceil(4096 / n) / 4096 for n in shares.values() if n <= 4096}
    per_weight = {what: rows.get(n, 1 / n) for what, n in shares.items()}
    total = sum(part.bits * per_weight[part.shared_by] for part in facts.parts)
    assert facts.bits_per_weight[4096] == pytest.approx(total, rel=1e-12)
    assert facts.name == name


def test_a_width_that_does_not_fit_has_no_size() -> None:
    assert describe(NumberFormat.parse("int4_g128")).bits_per_weight[576] is None


def test_patterns_are_the_bits_of_their_values() -> None:
    found = {p.label: (p.bits, p.value) for p in patterns(NumberFormat.parse("bf16"))}
    assert found["one"] == ("0011111110000000", 1.0)
    assert found["smallest above 0"] == ("0000000000000001", 2.0**-133)
    found = {p.label: (p.bits, p.value) for p in patterns(NumberFormat.parse("int4_g32"))}
    assert found["smallest"] == ("0000", -8.0)
    assert found["largest"] == ("1111", 7.0)
    assert found["nearest to 0"] == ("1000", 0.0)
    assert patterns(NumberFormat.parse("lut4_channel")) == ()


def test_gguf_names_are_given() -> None:
    assert describe(GGUF_FORMATS["Q4_K"]).gguf_type == "Q4_K"
    assert json.dumps(describe(GGUF_FORMATS["Q4_K"]).name) == '"int4_g32_offset_su6x256"'
