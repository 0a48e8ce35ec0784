"""Random weights in every packed form, with the fp32 matrix that each stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo._native import testing
from octavo.formats.codebooks import level_steps
from octavo.formats.trellis import windows

F32 = npt.NDArray[np.float32]
ISAS: list[str] = testing.isas()
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)

# Of a code as it is packed; of a trellis: a window's.
BITS = {"two": 2, "three": 3, "nibble": 4, "five": 5, "six": 6, "byte": 8, "trellis": 8}


@dataclass(frozen=True, slots=True)
class Form:
    """How a weight is packed. group 0: one scale a row."""

    name: str
    code: str
    group: int = 0
    zero: int = 0
    scale_f32: bool = False
    offset: bool = False
    levels8: bool = False
    levels: bool = False
    points: bool = False  # a zero point per group
    scaling: str = ""  # of two levels: "sub4", "sub6", "sub8"
    bias: int = 0  # of its sub-scales


FORMS = [
    Form("q4_0", "nibble", 32, 8),
    Form("q4_1", "nibble", 32, 0, offset=True),
    Form("q4_g64", "nibble", 64, 8),
    Form("q4_g128_offset", "nibble", 128, 8, True, offset=True),
    Form("q3_k", "three", 16, 4, True),
    Form("int3_g64", "three", 64, 4),
    Form("q2_k", "two", 16, 0, True, offset=True),
    Form("ternary_channel", "two", 0, 2),
    Form("int2_g32", "two", 32, 2),
    Form("lut2", "two", 64, levels=True),
    Form("lut3", "three", 32, levels=True),
    Form("int4_channel", "nibble", 0, 8),
    Form("iq4_nl", "nibble", 32, levels8=True),
    Form("iq4_xs_g16", "nibble", 16, 0, True, levels8=True),
    Form("nf4", "nibble", 64, 0, True, levels=True),
    Form("q8_0", "byte", 32, 128),
    Form("q6_k", "six", 16, 32, True),
    Form("int6_channel", "six", 0, 32),
    Form("lut6", "six", 64, levels=True),
    Form("q5_k", "five", 32, 0, True, offset=True),
    Form("q5_0", "five", 32, 16),
    Form("int5_g16", "five", 16, 16),
    Form("int8_channel", "byte", 0, 128, True),
    Form("int8_g64", "byte", 64, 128),
    Form("lut8", "byte", 32, 0, levels8=True),
    Form("trellis2", "trellis", 32, levels8=True),
    Form("trellis2_g64", "trellis", 64, 0, True, levels8=True),
    Form("trellis2_channel", "trellis", levels8=True),
    Form("trellis2_subs", "trellis", 32, levels8=True, scaling="sub8"),
    Form("fp8", "byte", 0, 0, True, levels=True),
    Form("q4_g32_asym", "nibble", 32, points=True),
    Form("int2_g16_asym", "two", 16, points=True),
    Form("int8_channel_asym", "byte", 0, 0, True, points=True),
    Form("q2_k_subs", "two", 16, offset=True, scaling="sub4"),
    Form("q3_k_subs", "three", 16, 4, scaling="sub6", bias=32),
    Form("q4_k_subs", "nibble", 32, offset=True, scaling="sub6"),
    Form("q6_k_subs", "six", 16, 32, scaling="sub8", bias=128),
    Form("iq4_xs_subs", "nibble", 32, levels8=True, scaling="sub6", bias=32),
    Form("f16", "f16"),
    Form("bf16", "bf16"),
    Form("f32", "f32"),
]
BY_NAME = {form.name: form for form in FORMS}


@dataclass(frozen=True, slots=True)
class Case:
    packed: Any
    dense: F32  # [n, k], the value of every weight
    products: F32  # [n, k]: the scaled integer part, without offsets
    values: F32  # [n, k]: the same with float levels themselves
    sizes: F32  # [n, k]: of what adds up to `values`: a group's zero point counts on its own
    offsets: F32  # [n, k]
    step: int  # inputs of one sum before it is scaled
    coded: bool  # codes and scales, not values


def bf16(x: F32) -> F32:
    """Rounded to bf16, half to even, as fp32 (finite values)."""
    u = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    return (((u + 0x7FFF + ((u >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def pad_to(k: int, unit: int) -> int:
    return (k + unit - 1) // unit * unit


def a8_group(form: Form, k: int) -> int:
    """Inputs of one activation scale (core/types.h)."""
    wide = form.group == 0 or form.group % 64 == 0 or form.group >= k
    return 64 if wide and pad_to(k, 32) % 64 == 0 else 32


def levels_of(form: Form, rng: np.random.Generator) -> npt.NDArray[np.generic] | None:
    size = 16 if BITS[form.code] <= 4 else 256
    if form.levels8:
        return IQ4 if size == 16 else rng.integers(-128, 128, size).astype(np.int8)
    if form.levels:
        return np.sort(rng.standard_normal(size)).astype(np.float32)
    return None


def float_case(form: Form, n: int, k: int, rng: np.random.Generator) -> Case:
    dense = rng.standard_normal((n, k)).astype(np.float32)
    if form.code == "f16":
        dense = dense.astype(np.float16).astype(np.float32)
    if form.code == "bf16":
        dense = bf16(dense)
    packed = testing.packed(n, k, form.code)
    packed.pack_f32(0, dense)
    return Case(packed, dense, dense, dense, np.abs(dense), np.zeros_like(dense), k, False)


def make_case(form: Form, n: int, k: int, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    if form.code not in BITS:
        return float_case(form, n, k, rng)
    group = form.group if 0 < form.group < k else k
    groups = -(-k // group)
    codes = codes_of(form, n, k, rng)
    levels = levels_of(form, rng)
    packed = testing.packed(
        n, k, form.code, form.group or k, form.zero, scaling_of(form), extra_of(form),
        (SUPER * group, form.bias),
    )  # fmt: skip
    parts, scales, offsets, points = tables(form, n, groups, rng)
    packed.pack_affine(0, codes, **parts)
    zeros = np.repeat(points, group, 1)[:, :k]
    value = codes.astype(np.float32) - form.zero - zeros
    integers = value
    if levels is not None:
        value, integers = levels[codes].astype(np.float32), give_levels(packed, form, levels)[codes]
    wide = np.repeat(scales, group, 1)[:, :k]
    extra = np.repeat(offsets, group, 1)[:, :k] if form.offset else np.zeros((n, k), np.float32)
    values, products = wide * value, wide * integers.astype(np.float32)
    dense = values + extra if form.offset else values
    sizes = np.abs(wide) * (np.abs(value + zeros) + zeros)
    return Case(
        packed, dense, products, values, sizes, extra, min(group, a8_group(form, k)), True
    )  # fmt: skip


def codes_of(form: Form, n: int, k: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    if form.code == "trellis":  # windows of whole runs: neighbours share bits
        return windows(rng.integers(0, 256, (n, k // 4)).astype(np.uint8))
    return rng.integers(0, 1 << BITS[form.code], (n, k)).astype(np.uint8)


SUPER = 4  # groups of a super-group


def scaling_of(form: Form) -> str:
    return form.scaling or ("f32" if form.scale_f32 else "f16")


def extra_of(form: Form) -> str:
    return "offset" if form.offset else "zero" if form.points else ""


def tables(form: Form, n: int, groups: int, rng: np.random.Generator) -> tuple[Any, F32, F32, F32]:
    """What pack_affine takes, and the scales, offsets and zero points of each group."""
    points = np.zeros((n, groups), np.uint8)
    if form.points:
        points = rng.integers(0, 1 << BITS[form.code], (n, groups)).astype(np.uint8)
    if form.scaling:
        return *two_levels(form, n, groups, rng), points.astype(np.float32)
    scales = (rng.standard_normal((n, groups)) / 64).astype(np.float16).astype(np.float32)
    if form.scale_f32:
        scales *= np.float32(1.0003)
    offsets = rng.standard_normal((n, groups)).astype(np.float16).astype(np.float32)
    parts: dict[str, Any] = {"scales": scales}
    if form.offset:
        parts["offsets"] = offsets
    if form.points:
        parts["zeros"] = points
    return parts, scales, offsets, points.astype(np.float32)


def two_levels(form: Form, n: int, groups: int, rng: np.random.Generator) -> tuple[Any, F32, F32]:
    supers = -(-pad_to(groups, 2) // SUPER)  # inputs are padded to 32: two groups of 16
    bits = int(form.scaling[3:])
    parts: dict[str, Any] = {}
    wide: list[F32] = []
    for name, subs, bias in (("scales", "subs", form.bias), ("offsets", "sub_offsets", 0)):
        top = (rng.standard_normal((n, supers)) / 64).astype(np.float16).astype(np.float32)
        sub = rng.integers(0, 1 << bits, (n, groups)).astype(np.uint8)
        if name == "scales" or form.offset:
            parts |= {name: top, subs: sub}
        wide.append(np.repeat(top, SUPER, 1)[:, :groups] * (sub.astype(np.float32) - bias))
    return parts, wide[0], wide[1]


def give_levels(packed: Any, form: Form, levels: npt.NDArray[Any]) -> F32:
    """Sets the codebook; what each code stands for in a8: step * integer, in fp32."""
    if form.levels8:
        packed.set_levels8(levels)
        return levels.astype(np.float32)
    if BITS[form.code] > 4 and form.name != "lut6":
        packed.set_levels(levels)
        return levels.astype(np.float32)
    integers, step = level_steps(levels)
    packed.set_levels(levels, integers.tolist(), step)
    return integers.astype(np.float32) * np.float32(step)
