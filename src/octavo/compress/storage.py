"""What an artifact's weights file holds: compressed-tensors' parts where they say all of it, else
our own.

Only where what is read back is what was made, bit for bit and in the same format: a ternary matrix,
which would come back as one of 2 bits, and tables with codes, which nobody else reads, stay ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.compress.pack_quantized import Packed, quantization_config, said
from octavo.compress.state import Arrays, Stage
from octavo.formats.granularity import PerTensor
from octavo.formats.layouts import DENSE
from octavo.formats.quantized import QuantizedTensor
from octavo.io.artifact import COMPRESSED_TENSORS, MANIFEST_FORMAT, QUANT_METHOD, artifact_name
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import role_shape, roles
from octavo.spec.table import family_named

TABLES = ("embed", "head")


@dataclass(frozen=True, slots=True)
class Storage:
    """`arrays` by name in the file; `quantization`: config.json's quantization_config; `metadata`
    of the file; `name`: what the manifest calls it."""

    name: str
    arrays: Arrays
    quantization: Mapping[str, object]
    metadata: Mapping[str, str]


def storage_of(spec: DecoderSpec, whole: Stage) -> Storage:
    """How to store the merged stages."""
    shared = _shared(spec, whole)
    if shared is not None:
        return shared
    quantization = {"quant_method": QUANT_METHOD, "version": MANIFEST_FORMAT}
    return Storage(QUANT_METHOD, whole.arrays, quantization, {"format": QUANT_METHOD})


def left_alone(spec: DecoderSpec, plain: Iterable[Role]) -> list[str]:
    """The layers that compressed-tensors has to ignore; `plain`: roles stored as floats."""
    family = family_named(spec.family)
    # transformers makes a layer of a tied head too.
    found = {"lm_head"} if spec.tied_head else set()
    for role in plain:
        if role.part not in ("embed", "router") and len(role_shape(spec, role)) == 2:
            found.add(family.hf_tensor(spec, role).name.removesuffix(".weight"))
    return sorted(found)


def _shared(spec: DecoderSpec, whole: Stage) -> Storage | None:
    """As compressed-tensors; None where it can't say something."""
    family = family_named(spec.family)
    packed: dict[str, Packed] = {}
    plain: dict[Role, tuple[str, npt.NDArray[Any]]] = {}
    for role in roles(spec):
        ref, name = family.hf_tensor(spec, role), artifact_name(spec, role)
        entry = whole.entries[name]
        if entry.layout != DENSE or ref.rows is not None or ref.index is not None:
            return None
        if entry.format.plain and entry.format.bits > 8:
            values = _less(whole.arrays[name], ref.add)
            if values is None:
                return None
            plain[role] = ref.name, values
        elif role.part in TABLES or not _kept(matrix := whole.matrix(name)):
            return None
        else:
            packed[ref.name.removesuffix(".weight")] = Packed(matrix)
    if not packed:
        return None
    arrays: Arrays = dict(plain.values())
    for name, layer in packed.items():
        arrays |= {f"{name}.{key}": array for key, array in layer.parts().items()}
    quantization = quantization_config(packed, left_alone(spec, plain))
    return Storage(COMPRESSED_TENSORS, arrays, quantization, {"format": "pt"})


def _kept(matrix: QuantizedTensor) -> bool:
    """Whether it is read back as what it is."""
    format = matrix.format
    whole = matrix.tensor_scale == 1 and not isinstance(format.granularity, PerTensor)
    return said(format) and whole and format.variant in ("", "e4m3")


def _less(values: npt.NDArray[Any], add: float) -> npt.NDArray[Any] | None:
    """What a family stores that adds a constant when it reads; None where that would round."""
    if not add:
        return values
    stored = values.astype(np.float32) - np.float32(add)
    return stored if np.array_equal(stored + np.float32(add), values) else None
