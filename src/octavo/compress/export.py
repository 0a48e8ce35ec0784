"""Writes a model for other engines: a dequantized or compressed-tensors directory, or a GGUF file.

Everything is written beside and renamed. What a target can't say exactly is refused with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from octavo.backends.base import RuntimeConfig
from octavo.backends.served import activations_for, settled
from octavo.compress.artifact import WEIGHTS, write_config, write_tokenizer
from octavo.compress.exportable import check_exportable
from octavo.compress.pack_quantized import Packed, quantization_config, said
from octavo.compress.storage import TABLES, left_alone
from octavo.core.errors import FormatError, UnsupportedError
from octavo.formats.floats import float_dtype
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.new_directory import new_directory
from octavo.io.safetensors_file import write_safetensors
from octavo.spec.decoder import Role
from octavo.spec.family import Family, TensorRef
from octavo.spec.graph import roles
from octavo.spec.table import family_named

FloatType = Literal["fp32", "bf16", "fp16"]
Array = npt.NDArray[Any]

_TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def export_hf(model: Path, out: Path, dtype: FloatType = "fp32") -> None:
    """Every tensor dequantized, as the family's own checkpoints have it.

    fp32 keeps every value (norms that are stored less 1 to 2^-24); fp16 and bf16 round. Raises
    UserError when `out` exists, FormatError for values beyond fp16, UnsupportedError for a factored
    vocabulary and for phrases.
    """
    with open_model(model) as opened:
        check_exportable(opened)
        write_hf(opened, out, dtype)


def write_hf(model: OpenModel, out: Path, dtype: FloatType = "fp32") -> None:
    """`export_hf` of a model that is open, whatever its vocabulary."""
    with new_directory(out) as directory:
        tensors = _plain_tensors(model, roles(model.spec), dtype)
        write_safetensors(directory / WEIGHTS, tensors, {"format": "pt"})
        _write_rest(directory, model, dtype, {})


def export_compressed_tensors(model: Path, out: Path, dtype: FloatType = "fp32") -> None:
    """The layers' codes as compressed-tensors has them; tables, and what has no codes, as `dtype`.
    Of an artifact that asks for a8_token its int8 layers say so, and run so elsewhere.

    Raises UserError when `out` exists, UnsupportedError naming the first layer that can't be said,
    and for a factored vocabulary and phrases.
    """
    with open_model(model) as opened, new_directory(out) as directory:
        check_exportable(opened)
        packed, plain = _split(opened)
        if not packed:
            raise UnsupportedError(
                f"{model}: no layer is quantized: export it with --to hf, or compress it first"
            )
        tensors = _plain_tensors(opened, plain, dtype)
        for name, layer in packed.items():
            tensors |= {f"{name}.{key}": array for key, array in layer.parts().items()}
        write_safetensors(directory / WEIGHTS, tensors, {"format": "pt"})
        config = quantization_config(packed, left_alone(opened.spec, plain))
        _write_rest(directory, opened, dtype, {"quantization_config": config})


def _split(model: OpenModel) -> tuple[dict[str, Packed], list[Role]]:
    """Layers that compressed-tensors can say by name, and the other roles."""
    packed: dict[str, Packed] = {}
    plain: list[Role] = []
    config, _ = settled(RuntimeConfig(), model.source)
    for role in roles(model.spec):
        view = model.source.tensor(role)
        format = view.format
        if role.part in TABLES or len(view.shape) == 1 or (format.plain and format.bits > 8):
            plain.append(role)
            continue
        ref = _ref(model, role)
        name = ref.name.removesuffix(".weight")
        if ref.rows is not None or not said(format):
            why = "is a part of a fused one" if ref.rows is not None else f"is {format}"
            raise UnsupportedError(
                f"{name} {why}, which compressed-tensors can't say: export to hf, or compress the "
                "model with an integer format (int4_g128, int8_channel) or fp8_e4m3_channel"
            )
        by_token = activations_for(role, config) == "a8_token"
        packed[name] = Packed(view.quantized(0, view.shape[0]), by_token)
    return packed, plain


def _plain_tensors(
    model: OpenModel, wanted: list[Role] | tuple[Role, ...], dtype: FloatType
) -> dict[str, Array]:
    """By the family's names, parts of fused tensors put together, in `dtype`."""
    pieces: dict[str, list[tuple[int, Array]]] = {}
    for role in wanted:
        ref = _ref(model, role)
        values = model.source.tensor(role).float32()
        if ref.add:
            values = values - np.float32(ref.add)
        pieces.setdefault(ref.name, []).append((ref.rows[0] if ref.rows else 0, values))
    tensors = {}
    for name, parts in pieces.items():
        ordered = [values for _, values in sorted(parts, key=lambda part: part[0])]
        tensors[name] = _cast(name, np.concatenate(ordered), dtype)
    return tensors


def _cast(name: str, values: npt.NDArray[np.float32], dtype: FloatType) -> Array:
    with np.errstate(over="ignore"):
        cast = values.astype(float_dtype(dtype))
    if np.any(np.isfinite(values) & ~np.isfinite(cast.astype(np.float32))):
        raise FormatError(f"{name}: a value is beyond the range of {dtype}; use --dtype bf16")
    return cast


def _ref(model: OpenModel, role: Role) -> TensorRef:
    return _family(model).hf_tensor(model.spec, role)


def _family(model: OpenModel) -> Family:
    return family_named(model.spec.family)


def _write_rest(
    directory: Path, model: OpenModel, dtype: FloatType, changes: Mapping[str, object]
) -> None:
    """config.json names the floats' type, by transformers' newer key too if the source does."""
    keys = {"torch_dtype", *({"dtype"} & model.metadata.keys())}
    write_config(directory, model, {**changes, **dict.fromkeys(keys, _TORCH[dtype])})
    write_tokenizer(directory, model)
