"""AWQ checkpoints in AutoAWQ's "gemm" layout (arXiv 2306.00978).

Of a layer of `in` inputs and `out` outputs at 4 bits: `qweight` int32 [in, out / 8], `qzeros` int32
[groups, out / 8], `scales` [groups, out]. The nibbles of a word, lowest first, belong to its
outputs 0, 2, 4, 6, 1, 3, 5, 7. The value is `scale * (code - zero)`; here exact, in the tool's
kernels rounded to fp16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from octavo.core.errors import UnsupportedError
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.io.foreign.module import SCALE_TYPES, Array, Decoded, Module

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class Awq:
    """`group` is -1 when an output row shares one scale."""

    tool: ClassVar[str] = "awq"
    keys: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    markers: ClassVar[tuple[str, ...]] = ("qweight",)
    ignored: ClassVar[tuple[str, ...]] = ()

    group: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Awq:
        """From config.json's `quantization_config`. Raises UnsupportedError."""
        bits, group = config.get("bits", 4), config.get("group_size", 128)
        version = str(config.get("version", "gemm")).lower()
        if (
            bits != 4
            or version != "gemm"
            or type(group) is not int
            or not (group == -1 or group > 0)
        ):
            raise UnsupportedError(
                f"AWQ of {bits!r} bits in groups of {group!r}, version {version!r}, can't be read; "
                "only 4 bits in the gemm layout can. Use the original checkpoint."
            )
        return cls(group)

    def decode(self, module: Module) -> Decoded:
        out, width = module.shape
        size = width if self.group == -1 else self.group
        if width % size:
            raise module.damaged("scales", f"{width} inputs don't split into groups of {size}")
        groups = width // size
        scales = module.array("scales", tuple(SCALE_TYPES), (groups, out))
        zeros = _nibbles(module.array("qzeros", ("I32",), (groups, out // 8)))
        words = module.array("qweight", ("I32",), (width, out // 8))
        where = "channel" if self.group == -1 else f"g{size}"
        format = NumberFormat.parse(f"int4_{where}_asym_s{module.scale_type('scales')}")
        return Decoded(
            format,
            lambda: QuantizedTensor(
                format=format,
                shape=module.shape,
                codes=pack_bits(np.ascontiguousarray(_nibbles(words).T), 4),
                scales=np.ascontiguousarray(scales.T),
                zeros=np.ascontiguousarray(zeros.T),
            ),
        )


def _nibbles(words: Array) -> npt.NDArray[np.uint8]:
    """int32 [n, out / 8] -> uint8 [n, out], in the order of the outputs."""
    plain = words.view(np.uint32)
    outputs = np.empty((*words.shape, 8), np.uint8)
    for nibble, output in enumerate(_ORDER):
        outputs[..., output] = (plain >> np.uint32(4 * nibble)) & np.uint32(15)
    return outputs.reshape(words.shape[0], -1)
