"""Stored layouts: every tensor comes back bit for bit, in fewer bytes, and damage is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.errors import FormatError
from octavo.formats import rtn
from octavo.formats.layouts import (
    BITMASK,
    DENSE,
    TRITS,
    Stored,
    block_of,
    chosen,
    n_of_m,
    stored_bits,
)
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor

FORMATS = (
    "fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e4m3_channel", "int4_g32", "int8_channel", "int3_g32",
    "int4_g32_asym", "int2_g32", "ternary_channel", "nf4_g32", "int6_g16_si8x32",
)  # fmt: skip

STORED = ("bf16", "int4_g32", "int8_tensor", "ternary_channel", "ternary_g32", "binary_channel")


def pruned(pattern: str, n: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((n, k)).astype(np.float32)
    if choice := n_of_m(pattern):
        kept, m = choice
        place = rng.random((n, k // m, m)).argsort(-1).reshape(n, k)
        w[place >= kept] = 0
    elif block := block_of(pattern):
        gone = rng.random((n // block[0], k // block[1])) < 0.5
        w[np.kron(gone, np.ones(block)).astype(bool)] = 0
    elif pattern:
        w[rng.random((n, k)) < float(pattern)] = 0
    return w


def stored(tensor: QuantizedTensor) -> Stored | None:
    layout, parts = chosen(tensor)
    if layout == DENSE:
        return None
    whole = {name.removeprefix("."): part for name, part in tensor.state("").items()}
    return Stored(layout, tensor.format, tensor.shape, {**whole, **parts})


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    x, y = a.state(""), b.state("")
    return x.keys() == y.keys() and all(x[key].tobytes() == y[key].tobytes() for key in x)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pattern", ["0.5", "0.9", "2:4", "1:4", "4:8", "16x32", "0.999999"])
def test_every_tensor_comes_back_bit_for_bit(name: str, pattern: str) -> None:
    tensor = rtn.encode(pruned(pattern, 48, 96), NumberFormat.parse(name))
    found = stored(tensor)
    if found is None:
        assert name == "int2_g32"  # a mask takes half of what there is
        return
    assert same(found.rows(0, 48), tensor)
    for start, stop in ((0, 1), (5, 22), (47, 48), (16, 32)):
        assert same(found.rows(start, stop), tensor.rows(start, stop))


@pytest.mark.parametrize(
    ("pattern", "name", "layout", "bits"),
    [
        ("2:4", "int4_g32", "2:4", 2 + 0.75),
        ("2:4", "int8_g32", "2:4", 4 + 0.75),
        ("4:8", "int8_g32", "4:8", 4 + 0.875),
        ("1:4", "bf16", "1:4", 4 + 0.5),
        ("16x32", "int4_g32", "16x32", None),
        ("0.5", "int4_g32", BITMASK, None),
        ("0.5", "bf16", BITMASK, None),
        ("", "int4_g32", DENSE, 4),
        ("", "ternary_channel", TRITS, 1.625),  # 52 bytes a row of 256
        ("0.999999", "ternary_channel", "16x32", None),
    ],
)
def test_the_smallest_layout_is_chosen(
    pattern: str, name: str, layout: str, bits: float | None
) -> None:
    tensor = rtn.encode(pruned(pattern, 64, 256), NumberFormat.parse(name))
    found, parts = chosen(tensor)
    size = sum(part.nbytes for part in parts.values())
    assert found == layout
    if bits is not None:
        assert 8 * size == bits * 64 * 256
    elif layout == BITMASK:
        there = int((tensor.dequantize() != 0).sum())
        code = 16 if name == "bf16" else 4
        assert size == 64 * 256 // 8 + -(-there * code // 8)


@given(st.integers(1, 40), st.integers(1, 70), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_shape_and_share_comes_back(n: int, k: int, share: float, seed: int) -> None:
    w = pruned(str(share), n, k, seed)
    tensor = rtn.encode(w, NumberFormat.parse("int5_channel"))
    found = stored(tensor)
    if found is not None:
        assert same(found.rows(0, n), tensor)
        assert same(found.rows(n // 2, n), tensor.rows(n // 2, n))


def test_minus_zero_is_kept() -> None:
    w = pruned("0.9", 16, 32)
    w[3, 5] = -0.0
    tensor = rtn.encode(w, NumberFormat.parse("fp32"))
    found = stored(tensor)
    assert found is not None
    assert same(found.rows(0, 16), tensor)


@pytest.mark.parametrize("name", ["int4_g32_offset", "binary_channel", "iq4nl_g32", "trellis2_g32"])
def test_a_format_without_a_zero_stays_dense(name: str) -> None:
    assert chosen(rtn.encode(pruned("0.9", 16, 64), NumberFormat.parse(name)))[0] == DENSE


def parts_of(pattern: str) -> tuple[str, NumberFormat, dict[str, Any]]:
    tensor = rtn.encode(pruned(pattern, 32, 64), NumberFormat.parse("int4_g32"))
    layout, parts = chosen(tensor)
    whole = {name.removeprefix("."): part for name, part in tensor.state("").items()}
    return layout, tensor.format, {**whole, **parts}


@pytest.mark.parametrize("pattern", ["2:4", "0.5", "16x32"])
def test_parts_that_do_not_fit_are_refused(pattern: str) -> None:
    layout, format, parts = parts_of(pattern)
    index = "index" if layout == "2:4" else "mask"
    Stored(layout, format, (32, 64), parts)
    wrong: list[dict[str, Any]] = [
        {name: part for name, part in parts.items() if name != index},
        {name: part for name, part in parts.items() if name != "codes"},
        {**parts, index: parts[index][:-1]},
        {**parts, index: parts[index].view(np.int8)},
        {**parts, "codes": parts["codes"][:-1]},
        {**parts, "codes": parts["codes"].astype(np.uint16)},
    ]
    if layout != "2:4":
        wrong.append({**parts, "mask": np.zeros_like(parts["mask"])})
    for other in wrong:
        with pytest.raises(FormatError, match=f"of a {layout} tensor"):
            Stored(layout, format, (32, 64), other)


def test_an_index_that_is_no_choice_is_refused() -> None:
    layout, format, parts = parts_of("2:4")
    index = parts["index"].copy()
    index[4, 0] |= 7  # C(4, 2) = 6 choices
    found = Stored(layout, format, (32, 64), {**parts, "index": index})
    found.rows(0, 4)
    with pytest.raises(FormatError, match="not one of its places"):
        found.rows(0, 32)


@pytest.mark.parametrize("layout", ["", "sparse", "4:2", "5:7", "2:9", "7x32", "16x33", "0:4"])
def test_a_layout_that_is_none_or_does_not_divide_is_refused(layout: str) -> None:
    _, format, parts = parts_of("0.5")
    with pytest.raises(FormatError, match="no layout"):
        Stored(layout, format, (32, 64), parts)


def test_a_format_without_zero_cannot_leave_codes_out() -> None:
    layout, _, parts = parts_of("0.5")
    offset = NumberFormat.parse("int4_g32_offset")
    with pytest.raises(FormatError, match="has no zero"):
        Stored(layout, offset, (32, 64), parts)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("width", [96, 160])
def test_stored_bits_are_those_of_the_layout_that_is_chosen(name: str, width: int) -> None:
    tensor = rtn.encode(pruned("", 48, width) + np.float32(8), NumberFormat.parse(name))
    _, parts = chosen(tensor)
    rest = sum(part.nbytes for key, part in tensor.state("").items() if key != ".codes")
    total = 8 * (rest + sum(part.nbytes for part in parts.values()))
    assert stored_bits(tensor.format, tensor.shape) * 48 * width == pytest.approx(total, rel=1e-12)
