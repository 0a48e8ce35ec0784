"""Our codes in compressed-tensors' words: the inverse of `octavo.io.foreign.compressed_tensors`.

Integers become pack-quantized (per tensor as per channel: it has no packed zero points per
tensor), fp8 e4m3 float-quantized, symmetric int8 whose inputs get a scale of each token
int-quantized. Scales keep their type; the tool's decompressor rounds each product to it, so its
values are ours rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.formats.granularity import PerChannel, PerGroup, PerTensor
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor

Array = npt.NDArray[Any]
Scheme = tuple[str, int, bool, str, int, bool]  # type, bits, symmetric, strategy, group, w8a8

_VERSION = "0.15.0"  # of the package whose layout this is


def said(format: NumberFormat) -> bool:
    """Whether compressed-tensors has this format, value for value."""
    if format.kind == "float":
        return format.variant == "e4m3" and format.scale in ("none", "fp16", "bf16", "fp32")
    return (
        format.kind == "int"
        and format.zero != "real"
        and format.super_scale is None
        and format.scale in ("fp16", "bf16", "fp32")
    )


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer; its format is one that can be `said`.

    by_token  its inputs are rounded to 8 bits with a scale of each token (a8_token), which is said
              of symmetric int8 weights with a scale per row or tensor, and left out of others.
    """

    tensor: QuantizedTensor
    by_token: bool = False

    @property
    def scheme(self) -> Scheme:
        format = self.tensor.format
        match format.granularity:
            case PerGroup(size):
                strategy, group = "group", size
            case PerChannel() | PerTensor():
                strategy, group = "channel", 0
            case _:
                raise AssertionError(format)
        kind = "float" if format.kind == "float" else "int"
        bits = 2 if format.variant == "binary" else format.bits
        symmetric = format.zero == "none"
        w8a8 = self.by_token and symmetric and (kind, bits, strategy) == ("int", 8, "channel")
        return kind, bits, symmetric, strategy, group, w8a8

    def parts(self) -> dict[str, Array]:
        """The layer's tensors by the rest of their names."""
        kind, bits, symmetric, _, _, w8a8 = self.scheme
        out, width = self.tensor.shape
        if kind == "float":
            return {"weight": self.tensor.codes, "weight_scale": self._scales()}
        codes = self.tensor.unpacked_codes()
        if w8a8:
            signed = (codes.astype(np.int16) - 128).astype(np.int8)
            return {"weight": signed, "weight_scale": self._scales()}
        if self.tensor.format.variant == "binary":
            codes = codes * np.uint8(2) + np.uint8(1)
        parts: dict[str, Array] = {
            "weight_packed": _words(codes, bits),
            "weight_scale": self._scales(),
            "weight_shape": np.array([out, width], np.int64),
        }
        if not symmetric:
            assert self.tensor.zeros is not None
            zeros = np.broadcast_to(
                self.tensor.zeros.astype(np.uint8), (out, self.tensor.zeros.shape[1])
            )
            columns = _words(np.ascontiguousarray(zeros.T), bits)
            parts["weight_zero_point"] = np.ascontiguousarray(columns.T)
        return parts

    def _scales(self) -> Array:
        """[out, groups] in their own type; fp32 where a tensor scale is part of them."""
        tensor = self.tensor
        if tensor.scales is None or tensor.tensor_scale != 1:
            found: Array = tensor.steps()
        else:
            found = tensor.scales
        return np.ascontiguousarray(np.broadcast_to(found, (tensor.shape[0], found.shape[1])))


def quantization_config(layers: Mapping[str, Packed], ignored: Sequence[str]) -> dict[str, object]:
    """What config.json says: one group per scheme; `ignored` layers are stored as floats."""
    targets: dict[Scheme, list[str]] = {}
    for name, layer in layers.items():
        targets.setdefault(layer.scheme, []).append(name)
    groups = {
        f"group_{i}": _group(scheme, names if len(targets) > 1 else ["Linear"])
        for i, (scheme, names) in enumerate(targets.items())
    }
    formats = {str(group["format"]) for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "version": _VERSION,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignored),
        "config_groups": groups,
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, object]:
    kind, bits, symmetric, strategy, size, w8a8 = scheme
    weights = {
        "num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy,
        "group_size": size or None, "dynamic": False, "actorder": None, "block_structure": None,
    }  # fmt: skip
    inputs = {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None,
        "dynamic": True, "actorder": None, "block_structure": None,
    }  # fmt: skip
    format = "float-quantized" if kind == "float" else "pack-quantized"
    return {"targets": targets, "weights": weights,
            "format": "int-quantized" if w8a8 else format,
            "input_activations": inputs if w8a8 else None, "output_activations": None}  # fmt: skip


def _words(codes: Array, bits: int) -> Array:
    """uint8 [n, k] -> int32 [n, ceil(k * bits / 32)]: each row a bit stream."""
    packed = pack_bits(codes, bits)
    whole = np.zeros((len(codes), -(-codes.shape[1] * bits // 32) * 4), np.uint8)
    whole[:, : packed.shape[1]] = packed
    return whole.view(np.int32)
