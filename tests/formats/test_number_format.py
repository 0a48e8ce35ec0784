from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import FormatError
from octavo.formats.granularity import PerChannel, PerGroup, PerTensor
from octavo.formats.number_format import (
    BF16,
    COMMON_NAMES,
    FP16,
    FP32,
    NumberFormat,
    SuperScale,
)
from support.number_formats import number_formats


@given(number_formats())
def test_every_format_is_named_by_its_own_name(format: NumberFormat) -> None:
    assert NumberFormat.parse(str(format)) == format


@given(number_formats(), number_formats())
def test_names_are_distinct(one: NumberFormat, other: NumberFormat) -> None:
    assert (str(one) == str(other)) == (one == other)


def _is_valid(fields: tuple[object, ...]) -> bool:
    try:
        NumberFormat(*fields)  # type: ignore[arg-type]
    except FormatError:
        return False
    return True


def test_over_all_small_combinations_only_valid_formats_are_named() -> None:
    kinds = ("float", "int", "codebook")
    variants = ("", "fp32", "bf16", "e4m3", "nf4", "learned", "ternary", "binary")
    tops = (None, SuperScale(6, True), SuperScale(6, False))
    grid = itertools.product(
        kinds,
        (1, 2, 4, 8, 16, 32),
        (PerTensor(), PerChannel(), PerGroup(32)),
        variants,
        ("none", "int", "real"),
        ("none", "fp16", "e8m0", "int"),
        tops,
    )
    valid = [fields for fields in grid if _is_valid(fields)]
    assert len(valid) > 100
    for fields in valid:
        format = NumberFormat(*fields)  # type: ignore[arg-type]
        assert NumberFormat.parse(str(format)) == format


def test_short_names_mean_what_they_say() -> None:
    assert NumberFormat.parse("int4_g32") == NumberFormat("int", 4, PerGroup(32))
    assert NumberFormat.parse("int4_g32_asym") == NumberFormat("int", 4, PerGroup(32), zero="int")
    assert NumberFormat.parse("int4_g32_offset").zero == "real"
    assert NumberFormat.parse("int8_channel") == NumberFormat("int", 8, PerChannel())
    assert NumberFormat.parse("nf4_g64_sfp32").scale == "fp32"
    assert NumberFormat.parse("ternary_tensor").bits == 2
    assert NumberFormat.parse("binary_channel").bits == 1
    assert NumberFormat.parse("int6_g16_si8x256").super_scale == SuperScale(8, True, 256)
    assert [NumberFormat.parse(n) for n in ("fp32", "fp16", "bf16")] == [FP32, FP16, BF16]


@pytest.mark.parametrize("name", COMMON_NAMES)
def test_listed_names_are_canonical(name: str) -> None:
    assert str(NumberFormat.parse(name)) == name


def test_spelling_is_free_where_nothing_is_lost() -> None:
    assert str(NumberFormat.parse(" INT4_G32_sfp16 ")) == "int4_g32"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("int4_g32_asm", "int4_g32_asym"),
        ("nff4_g64", "nf4_g64"),
        ("Q4_K", "int4_g32_offset_su6x256"),
        ("int4", "int4_"),
        ("", "one is int4_g32"),
        ("int4_g0", "did you mean"),
        ("int9_g32", "int"),
        ("int4_g99999999", "did you mean"),
        ("fp32_asym", "does not say what shares"),
    ],
)
def test_a_name_that_is_none_is_answered_with_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(FormatError) as error:
        NumberFormat.parse(text)
    assert repr(text) in str(error.value)
    assert hint in str(error.value)


@given(st.text(max_size=30) | st.text("intfg0123_aslu8x", max_size=24))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        format = NumberFormat.parse(text)
    except FormatError:
        return
    assert NumberFormat.parse(str(format)) == format


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"kind": "int", "bits": 9}, "1 to 8 bits"),
        ({"kind": "int", "bits": 1}, "binary"),
        ({"kind": "float", "bits": 16, "variant": "bf16"}, 'scale="none"'),
        ({"kind": "float", "bits": 8, "variant": "fp16", "scale": "none"}, "16 bits"),
        ({"kind": "int", "bits": 4, "scale": "none"}, "need a scale"),
        ({"kind": "int", "bits": 4, "scale": "int"}, "super_scale"),
        ({"kind": "int", "bits": 4, "super_scale": SuperScale(6, True)}, 'scale="int"'),
        ({"kind": "codebook", "bits": 4, "variant": "nf4", "zero": "int"}, "zero points"),
        ({"kind": "codebook", "bits": 4, "variant": "nf5"}, "variant must be"),
        ({"kind": "int", "bits": 4, "zero": "real", "scale": "e8m0"}, "offset"),
        ({"kind": "text", "bits": 4}, "kind must be"),
        ({"kind": "int", "bits": 4, "zero": "maybe"}, "zero must be"),
        ({"kind": "int", "bits": 4, "scale": "fp64"}, "scale must be"),
        ({"kind": "int", "bits": 4, "granularity": PerGroup(0)}, "a group holds"),
        (
            {"kind": "float", "bits": 32, "variant": "fp32", "scale": "none",
             "granularity": PerChannel()},
            "nothing is shared",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_with_its_reason(fields: dict[str, object], word: str) -> None:
    with pytest.raises(FormatError, match=word):
        NumberFormat(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("zero", "granularity", "top", "word"),
    [
        ("none", PerTensor(), SuperScale(6, True), "groups"),
        ("none", PerGroup(32), SuperScale(9, True), "2 to 8 bits"),
        ("none", PerGroup(32), SuperScale(6, True, 48), "multiple"),
        ("int", PerGroup(32), SuperScale(6, False), "two-level"),
        ("real", PerGroup(32), SuperScale(6, True), "unsigned"),
    ],
)
def test_two_level_scales_have_their_own_rules(
    zero: str, granularity: PerTensor | PerGroup, top: SuperScale, word: str
) -> None:
    with pytest.raises(FormatError, match=word):
        NumberFormat("int", 4, granularity, "", zero, "int", top)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4_g128_asym", 4 + 20 / 128),  # methods.md: 4.156
        ("int4_g128", 4.125),
        ("int4_g32", 4.5),
        ("nf4_g64_sfp32", 4.5),
        ("int8_channel", 8 + 16 / 4096),
        ("int8_tensor", 8 + 16 / 4096**2),
        ("lut4_channel", 4 + 16 / 4096 + 512 / 4096**2),
        ("fp8_e4m3", 8),
        ("bf16", 16),
    ],
)
def test_bits_per_value_counts_scales_and_zeros(name: str, bits: float) -> None:
    assert NumberFormat.parse(name).bits_per_value((4096, 4096)) == bits


def test_a_group_that_does_not_divide_names_the_shape_and_what_would_fit() -> None:
    with pytest.raises(FormatError) as error:
        NumberFormat.parse("int4_g128").bits_per_value((1536, 576))
    for word in ("int4_g128", "[1536, 576]", "576 inputs", "128", "32", "192", "_channel"):
        assert word in str(error.value)
    assert "256" not in str(error.value)


def test_a_super_group_must_divide_too() -> None:
    with pytest.raises(FormatError, match="super-groups of 256"):
        NumberFormat.parse("int4_g32_offset_su6x256").groups((8, 576))


def test_an_empty_weight_is_refused() -> None:
    with pytest.raises(FormatError, match="empty"):
        NumberFormat.parse("int8_tensor").groups((0, 4))
