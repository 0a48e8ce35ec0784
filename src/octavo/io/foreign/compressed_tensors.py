"""compressed-tensors checkpoints, as llm-compressor and vLLM have them.

`config_groups` say per target what the codes are. pack-quantized: `weight_packed` int32
[out, ceil(in * b / 32)], each row one little-endian bit stream of codes + 2^(b-1);
`weight_zero_point` int32 [ceil(out * b / 32), groups], packed along the outputs; `weight_shape`.
int-, float- and naive-quantized: `weight` int8 or fp8 [out, in], zero points int8. `weight_scale`
is [1], [out, 1], [out, groups], or for blocks [out / rows, in / columns]. The value is
`scale * (code - zero)`; here exact, in the tool's own decompressor rounded to the scale's type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ConfigError, UnsupportedError
from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.packing import pack_bits, packed_width, unpack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.io.foreign.module import SCALE_TYPES, Array, Decoded, Module, expanded

U8 = npt.NDArray[np.uint8]
Codes = Callable[[], U8]

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True, slots=True)
class Scheme:
    """The `weights` of a config group. `block` is (rows, columns) of strategy "block"."""

    targets: tuple[str, ...]
    bits: int
    kind: str
    strategy: str
    symmetric: bool
    group: int
    block: tuple[int, int]


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """Which module has which scheme."""

    tool: ClassVar[str] = "compressed-tensors"
    keys: ClassVar[tuple[str, ...]] = (
        "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape",
        "weight_g_idx",
    )  # fmt: skip
    markers: ClassVar[tuple[str, ...]] = ("weight_packed", "weight_scale")
    # Octavo rounds activations its own way, always at run time (docs/numerics.md).
    ignored: ClassVar[tuple[str, ...]] = (
        "input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale",
        "v_scale", "q_scale",
    )  # fmt: skip

    schemes: tuple[Scheme, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CompressedTensors:
        """From config.json's `quantization_config`. Raises UnsupportedError or ConfigError."""
        kind = config.get("format")
        groups = config.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise ConfigError("quantization_config names no config_groups. Correct config.json.")
        found = [group.get("format") or kind for group in groups.values()]
        refused = [name for name in found if name not in FORMATS]
        if refused:
            raise UnsupportedError(
                f"compressed-tensors of format {refused[0]!r} can't be read; read are "
                f"{', '.join(FORMATS)}. Use the original checkpoint."
            )
        for key in ("transform_config", "sparsity_config"):
            value = config.get(key)
            if value and not (isinstance(value, Mapping) and value.get("format") == "dense"):
                raise UnsupportedError(
                    f"compressed-tensors with a {key} can't be read. Use the original checkpoint."
                )
        return cls(tuple(_scheme(name, group) for name, group in groups.items()))

    def decode(self, module: Module) -> Decoded:
        scheme = self._scheme_of(module)
        if scheme.kind == "float":
            return _float8(module, scheme)
        if module.has("weight_packed"):
            return _packed(module, scheme)
        return _bytes(module, scheme)

    def _scheme_of(self, module: Module) -> Scheme:
        kind = "Embedding" if module.name.endswith("embed_tokens") else "Linear"
        for scheme in self.schemes:
            if any(_named(target, module.name) for target in scheme.targets):
                return scheme
        for scheme in self.schemes:
            if kind in scheme.targets:
                return scheme
        raise module.damaged("weight_scale", "no config group targets it")


def _named(target: str, name: str) -> bool:
    if not target.startswith("re:"):
        return target == name
    try:
        return re.match(target.removeprefix("re:"), name) is not None
    except re.error as error:
        raise ConfigError(f"{target!r} is no pattern ({error}). Correct config.json.") from error


def _scheme(name: str, group: Mapping[str, Any]) -> Scheme:
    weights = group.get("weights") or {}
    bits, kind = weights.get("num_bits", 8), weights.get("type", "int")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    strategy = strategy or ("group" if isinstance(size, int) and size > 0 else "tensor")
    block = weights.get("block_structure") or (0, 0)
    good = type(bits) is int and 1 <= bits <= 8 and (kind == "int" or (kind, bits) == ("float", 8))
    good = good and strategy in ("tensor", "channel", "group", "block")
    good = good and (strategy != "group" or (type(size) is int and size > 0))
    good = good and (strategy != "block" or (len(block) == 2 and min(block) > 0))
    if not good:
        raise UnsupportedError(
            f"{name}: weights of {bits!r} bits ({kind}), strategy {strategy!r}, can't be read. Use "
            "the original checkpoint."
        )
    targets = tuple(group.get("targets") or ())
    symmetric = bool(weights.get("symmetric", True))
    return Scheme(
        targets, bits, kind, strategy, symmetric, size or 0, (int(block[0]), int(block[1]))
    )


def _scales(module: Module, scheme: Scheme) -> tuple[str, Array]:
    """What shares a scale, as formats name it, and the scales [out or 1, groups]."""
    out, width = module.shape
    types, key = tuple(SCALE_TYPES), "weight_scale"
    module.scale_type(key)
    if scheme.strategy == "tensor":
        shape = module.parts[key].shape
        return "tensor", module.array(key, types, shape if shape == (1, 1) else (1,)).reshape(1, 1)
    if scheme.strategy == "channel":
        shape = module.parts[key].shape
        return "channel", module.array(key, types, shape if shape == (out,) else (out, 1)).reshape(
            out, 1
        )
    if scheme.strategy == "group":
        groups = -(-width // scheme.group)
        return f"g{scheme.group}", module.array(key, types, (out, groups))
    rows, columns = scheme.block
    blocks = module.array(key, types, (-(-out // rows), -(-width // columns)))
    return f"g{columns}", np.repeat(blocks, rows, axis=0)[:out]


def _float8(module: Module, scheme: Scheme) -> Decoded:
    where, scales = _scales(module, scheme)
    codes = module.array("weight", ("F8_E4M3",), module.shape)
    if module.shape[1] % scales.shape[1]:
        raise module.damaged("weight_scale", f"{module.shape[1]} inputs aren't whole blocks")
    format = NumberFormat.parse(f"fp8_e4m3_{where}_s{module.scale_type('weight_scale')}")
    return Decoded(
        format,
        lambda: QuantizedTensor(format, module.shape, codes, np.ascontiguousarray(scales)),
    )


def _packed(module: Module, scheme: Scheme) -> Decoded:
    out, width = module.shape
    if module.has("weight_shape"):
        stated = module.array("weight_shape", ("I64", "I32"), (2,))
        if stated.tolist() != [out, width]:
            raise module.damaged("weight_shape", f"says {stated.tolist()}, not {[out, width]}")
    words = module.array("weight_packed", ("I32",), (out, -(-width * scheme.bits // 32)))
    where, scales = _scales(module, scheme)
    zeros = None
    if not scheme.symmetric:
        shape = (-(-out * scheme.bits // 32), scales.shape[1])
        zeros = _outputs(module.array("weight_zero_point", ("I32",), shape), scheme.bits, out)

    def codes() -> U8:
        packed = words.view(np.uint8).reshape(out, -1)
        return np.ascontiguousarray(packed[:, : packed_width(width, scheme.bits)])

    return _integers(module, scheme, where, codes, scales, zeros)


def _bytes(module: Module, scheme: Scheme) -> Decoded:
    where, scales = _scales(module, scheme)
    stored = module.array("weight", ("I8",), module.shape)
    zeros, middle = None, 1 << (scheme.bits - 1)
    if not scheme.symmetric:
        part = module.parts.get("weight_zero_point")
        shape = part.shape if part is not None and part.elements == scales.size else scales.shape
        raw = module.array("weight_zero_point", ("I8",), shape).reshape(scales.shape)
        zeros = _unsigned(module, "weight_zero_point", raw, middle)

    def codes() -> U8:
        return pack_bits(_unsigned(module, "weight", stored, middle), scheme.bits)

    return _integers(module, scheme, where, codes, scales, zeros)


def _integers(
    module: Module, scheme: Scheme, where: str, codes: Codes, scales: Array, zeros: U8 | None
) -> Decoded:
    order = _order(module, scheme, scales.shape[1])
    width = module.shape[1]
    if order is not None or width % scales.shape[1]:
        why = "a ragged group" if order is None else "its inputs are ordered by activation"
        size = scheme.group or scheme.block[1]
        idx = np.arange(width) // size if order is None else order
        return Decoded(
            FP32, lambda: expanded(_values(codes(), scales, zeros, idx, scheme.bits)), why
        )
    zero = "" if zeros is None else "_asym"
    format = NumberFormat.parse(
        f"int{scheme.bits}_{where}{zero}_s{module.scale_type('weight_scale')}"
    )
    return Decoded(
        format,
        lambda: QuantizedTensor(format, module.shape, codes(), np.ascontiguousarray(scales), zeros),
    )


def _order(module: Module, scheme: Scheme, groups: int) -> Array | None:
    """The group of each input where that isn't simply the inputs' order; else None."""
    width = module.shape[1]
    if not module.has("weight_g_idx"):
        return None
    order = module.array("weight_g_idx", ("I32", "I64"), (width,))
    if np.all(order == -1) or np.array_equal(order, np.arange(width) // scheme.group):
        return None
    if scheme.strategy != "group" or order.min() < 0 or order.max() >= groups:
        raise module.damaged("weight_g_idx", f"names a group outside 0 to {groups - 1}")
    return order


def _values(
    packed: U8, scales: Array, zeros: U8 | None, order: Array, bits: int
) -> npt.NDArray[np.float32]:
    values = unpack_bits(packed, bits, order.size).astype(np.float32)
    if zeros is None:
        values -= np.float32(1 << (bits - 1))
    else:
        values -= zeros[:, order]
    values *= scales.astype(np.float32)[:, order]
    return values


def _outputs(words: Array, bits: int, out: int) -> U8:
    """int32 [ceil(out * b / 32), groups], packed along the outputs -> uint8 [out, groups]."""
    columns = np.ascontiguousarray(words.T)
    streams = columns.view(np.uint8).reshape(words.shape[1], -1)
    return np.ascontiguousarray(unpack_bits(streams, bits, out).T)


def _unsigned(module: Module, key: str, signed: Array, middle: int) -> U8:
    """int8 codes of `2 * middle` values as our unsigned ones."""
    shifted = signed.astype(np.int16) + middle
    if shifted.size and (shifted.min() < 0 or shifted.max() >= 2 * middle):
        raise module.damaged(key, f"holds codes outside {-middle} to {middle - 1}")
    unsigned: U8 = shifted.astype(np.uint8)
    return unsigned
