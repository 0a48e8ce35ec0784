"""bitsandbytes checkpoints: 4-bit blocks (QLoRA, arXiv 2305.14314), LLM.int8() rows (2208.07339).

4 bits: `weight` uint8 [out * in / 2, 1], the matrix read row by row, two codes a byte, the first in
the high nibble; `weight.quant_map` float32 [16]; `weight.absmax` per block; a JSON text
`weight.quant_state.bitsandbytes__nf4` with shape and block size. With double quantization `absmax`
is uint8, standing for `fl(fl(nested_quant_map[a] * nested_absmax) + nested_offset)`. Values are
fl(level * absmax), bit for bit, before the tool rounds them to its compute type. The levels are the
file's: its NF4 differs from ours in the last places.

8 bits: `weight` int8 [out, in] and `SCB` float32 [out]; the tool's value is
fl(fl(q * SCB) * fl(1 / 127)), ours fl(q * fl(SCB * fl(1 / 127))): apart by 2^-22 at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from octavo.core.errors import UnsupportedError
from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.foreign.module import Decoded, Module, expanded

F32 = npt.NDArray[np.float32]

_PER_127 = np.float32(7.874015718698502e-3)
_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")


@dataclass(frozen=True, slots=True)
class BitsAndBytes:
    """Which of the two a layer is, its tensors tell."""

    tool: ClassVar[str] = "bitsandbytes"
    keys: ClassVar[tuple[str, ...]] = (
        "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax",
        "weight.nested_quant_map", *_STATES, "SCB", "weight_format",
    )  # fmt: skip
    markers: ClassVar[tuple[str, ...]] = ("SCB", "weight.absmax")
    ignored: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BitsAndBytes:
        """From config.json's `quantization_config`. Raises UnsupportedError."""
        storage = config.get("bnb_4bit_quant_storage") or "uint8"
        if config.get("load_in_4bit") and storage != "uint8":
            raise UnsupportedError(
                f"bitsandbytes weights stored as {storage} can't be read, only as uint8. Use the "
                "original checkpoint."
            )
        return cls()

    def decode(self, module: Module) -> Decoded:
        return _eight_bits(module) if module.has("SCB") else _four_bits(module)


def _eight_bits(module: Module) -> Decoded:
    out = module.shape[0]
    if module.has("weight_format"):
        part = module.parts["weight_format"]
        if part.rows().any():
            raise module.damaged("weight_format", "only the row layout (0) is read")
    codes = module.array("weight", ("I8",), module.shape)
    scales = module.array("SCB", ("F32",), (out,))
    format = NumberFormat.parse("int8_channel_sfp32")
    return Decoded(
        format,
        lambda: QuantizedTensor(
            format,
            module.shape,
            codes.view(np.uint8) ^ np.uint8(128),
            (scales * _PER_127)[:, None],
        ),
    )


def _four_bits(module: Module) -> Decoded:
    out, width = module.shape
    state = _state(module)
    size = state.get("blocksize")
    if type(size) is not int or size < 1 or state.get("shape") != [out, width]:
        raise module.damaged(
            "weight.quant_state",
            f"says shape {state.get('shape')!r} in blocks of {size!r}; {[out, width]} expected",
        )
    if out * width % size:
        raise module.damaged("weight", f"{out} x {width} weights aren't whole blocks of {size}")
    levels = module.array("weight.quant_map", ("F32",), (16,))
    absmax = _absmax(module, state, out * width // size)
    data = module.array("weight", ("U8",), (out * width // 2, 1))
    if width % size:
        return Decoded(FP32, lambda: expanded(_values(data, levels, absmax, module.shape)),
                       f"blocks of {size} run across its rows")  # fmt: skip
    format = NumberFormat.parse(f"lut4_g{size}_sfp32")
    return Decoded(
        format,
        lambda: QuantizedTensor(
            format=format,
            shape=module.shape,
            codes=(data >> np.uint8(4) | data << np.uint8(4)).reshape(out, width // 2),
            scales=absmax.reshape(out, -1),
            codebook=np.array(levels),
        ),
    )


def _state(module: Module) -> Mapping[str, Any]:
    key = next((key for key in _STATES if module.has(key)), _STATES[0])
    text = module.array(key, ("U8",), module.parts[key].shape if module.has(key) else (0,))
    try:
        state = json.loads(text.tobytes())
    except ValueError as error:
        raise module.damaged(key, f"holds no JSON ({error})") from error
    if not isinstance(state, dict):
        raise module.damaged(key, "holds no JSON object")
    return state


def _absmax(module: Module, state: Mapping[str, Any], blocks: int) -> F32:
    """float32 [blocks]."""
    if not module.has("weight.nested_absmax"):
        return module.array("weight.absmax", ("F32",), (blocks,))
    size, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(size) is not int or size < 1 or not isinstance(offset, int | float):
        raise module.damaged("weight.quant_state", "needs nested_blocksize and nested_offset")
    codes = module.array("weight.absmax", ("U8",), (blocks,))
    levels = module.array("weight.nested_quant_map", ("F32",), (256,))
    tops = module.array("weight.nested_absmax", ("F32",), (-(-blocks // size),))
    found: F32 = levels[codes] * np.repeat(tops, size)[:blocks] + np.float32(offset)
    return found


def _values(data: npt.NDArray[np.uint8], levels: F32, absmax: F32, shape: tuple[int, int]) -> F32:
    codes = np.stack([data >> np.uint8(4), data & np.uint8(15)], axis=-1)
    blocks = levels[codes].reshape(absmax.size, -1) * absmax[:, None]
    values: F32 = blocks.reshape(shape)
    return values
