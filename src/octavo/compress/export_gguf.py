"""Writes a model as one GGUF file, for llama.cpp.

Every tensor goes into the type whose blocks hold each of its values; what has none is refused, or
encoded anew when that is asked for, and its error reported. Names, orders of rows and the header
are the families' own, read backwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.compress.exportable import check_exportable
from octavo.core.errors import UnsupportedError, UserError
from octavo.formats.gguf_formats import GGUF_FORMATS
from octavo.formats.number_format import NumberFormat
from octavo.io import gguf_blocks, gguf_search
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.gguf_fields import exact_blocks, exact_type
from octavo.io.gguf_source import SAMPLING
from octavo.io.gguf_values import GgufMetadata, GgufValue, gguf_value
from octavo.io.gguf_vocabulary import copied_vocabulary, gguf_vocabulary
from octavo.io.gguf_writer import GgufTensor, write_gguf
from octavo.io.mapping import U8
from octavo.io.stored import BLOCK_TYPES
from octavo.io.tokenizer import load_tokenizer
from octavo.io.weights import TensorView
from octavo.spec.family import TensorRef
from octavo.spec.gguf_config import GgufHeader, gguf_header
from octavo.spec.graph import roles
from octavo.spec.table import family_for_gguf

F32 = npt.NDArray[np.float32]

_AT_ONCE = 1 << 22  # weights of a tensor in memory
_FLOATS = ("F16", "BF16", "F32")
_LEVELS = ("Q4_0", "Q5_0", "Q8_0")  # each holds what those before it hold
# llama.cpp's number for a file by the type of most of its bytes (llama_ftype).
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip


@dataclass(slots=True)
class Rounded:
    """A tensor that was encoded anew. `error`: |W - Q|^2 / |W|^2."""

    name: str
    format: str
    type: str
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class _Piece:
    """A role's rows of a file tensor. Rows of `heads` heads are interleaved (0: as they are)."""

    view: TensorView
    heads: int


@dataclass(frozen=True, slots=True)
class _Target:
    """A file tensor: its pieces in order, its type, and what is noted of a rounding."""

    name: str
    type: str
    shape: tuple[int, ...]
    pieces: tuple[_Piece, ...]
    rounded: Rounded | None


def export_gguf(model: Path, out: Path, requantize: bool = False) -> tuple[Rounded, ...]:
    """Write `out`; what was encoded anew is returned, in the order of the file.

    Raises UserError when `out` exists, UnsupportedError naming the first tensor, its format and the
    nearest types when no type holds it and `requantize` is off, or what a header can't say, a
    factored vocabulary and phrases among it;
    TokenizerError for a vocabulary that a file can't say.
    """
    if out.exists() or out.suffix != ".gguf":
        why = "exists: remove it" if out.exists() else "isn't called .gguf"
        raise UserError(f"{out} {why}, or choose another output (-o OUT.gguf)")
    with open_model(model) as opened:
        check_exportable(opened)
        header = gguf_header(opened.spec)
        targets = _targets(opened, header, requantize)
        metadata = _metadata(opened, header, targets)
        write_gguf(out, metadata, [*_factor_tensors(header), *map(_tensor, targets)])
    return tuple(target.rounded for target in targets if target.rounded)


def _targets(model: OpenModel, header: GgufHeader, requantize: bool) -> list[_Target]:
    """Every tensor of the file: roles gathered by the tensor that holds them."""
    family = family_for_gguf(header.architecture)
    parts: dict[str, list[tuple[int, _Piece]]] = {}
    stacked: set[str] = set()
    for role in roles(header.spec):
        ref = family.gguf_tensor(header.spec, role)
        piece = _Piece(model.source.tensor(role), ref.unpermute)
        parts.setdefault(ref.name, []).append((_place(ref), piece))
        stacked |= {ref.name} if ref.index is not None else set()
    found = []
    for name, placed in parts.items():
        pieces = tuple(piece for _, piece in sorted(placed, key=lambda item: item[0]))
        found.append(_target(name, pieces, name in stacked, requantize))
    return found


def _place(ref: TensorRef) -> int:
    return ref.index if ref.index is not None else ref.rows[0] if ref.rows else 0


def _target(name: str, pieces: tuple[_Piece, ...], stacked: bool, requantize: bool) -> _Target:
    shape = pieces[0].view.shape
    rows = sum(piece.view.shape[0] for piece in pieces)
    whole = (len(pieces), *shape) if stacked else (rows, *shape[1:])
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):  # llama.cpp's own choice
        return _Target(name, "F32", whole, pieces, None)
    type_name = _common([_exact(piece.view) for piece in pieces])
    if type_name is not None:
        return _Target(name, type_name, whole, pieces, None)
    format = pieces[0].view.format
    nearest = _nearest(format, (shape[0], shape[1]))
    if not requantize:
        raise UnsupportedError(
            f"{name} is {format}, which no GGUF type holds exactly; the nearest are "
            f"{' and '.join(nearest)}. Give --requantize to round it, or compress the model in one "
            "of `octavo formats`'s GGUF types"
        )
    return _Target(name, nearest[-1], whole, pieces, Rounded(name, str(format), nearest[-1]))


def _exact(view: TensorView) -> str | None:
    if view.format.plain and view.format.bits > 8:
        return view.format.variant.upper().replace("FP", "F")
    return exact_type(view.quantized(0, view.shape[0]))


def _common(types: list[str | None]) -> str | None:
    """The type that holds all parts of a fused tensor, or None."""
    if len(set(types)) == 1:
        return types[0]
    known = {name for name in types if name}
    if len(known) < len(set(types)):
        return None
    if known <= set(_FLOATS):
        return "F32"
    return max(known, key=_LEVELS.index) if known <= set(_LEVELS) else None


def _nearest(format: NumberFormat, shape: tuple[int, int]) -> list[str]:
    """Types that rows of this width go into: the best of fewer bits, and the first of no fewer."""
    bits = {name: GGUF_FORMATS[name].bits_per_value((1, 256)) for name in gguf_search.SHAPES
            if shape[1] % BLOCK_TYPES[name].elements == 0}  # fmt: skip
    if not bits:
        return ["F16"]
    own = format.bits_per_value(shape)
    below = [name for name in bits if bits[name] < own]
    above = [name for name in bits if bits[name] >= own]
    # Of equal bits the later in the table: K-quants choose among more scales than the old types.
    found = [max(below[::-1], key=bits.__getitem__)] if below else []
    return [*found, min(above[::-1], key=bits.__getitem__)] if above else found


def _tensor(target: _Target) -> GgufTensor:
    return GgufTensor(target.name, target.type, target.shape, _chunks(target))


def _chunks(target: _Target) -> Iterator[U8]:
    lost = energy = 0.0
    for piece in target.pieces:
        rows = piece.view.shape[0]
        step = _step(piece)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            data = _encoded(target, piece.view, start, stop)
            if target.rounded:
                weight = piece.view.float32(start, stop)
                wrong = weight - gguf_blocks.dequantize(target.type, data)
                lost += float(np.vdot(wrong, wrong))
                energy += float(np.vdot(weight, weight))
                target.rounded.error = lost / energy if energy else 0.0
            heads = piece.heads * (stop - start) // rows
            yield _interleaved(data, heads) if heads else data
        piece.view.drop()


def _step(piece: _Piece) -> int:
    """Rows at a time; whole heads where rows of a head change places."""
    width = piece.view.shape[1] if len(piece.view.shape) > 1 else 1
    rows = max(1, _AT_ONCE // width)
    if not piece.heads:
        return rows if len(piece.view.shape) > 1 else piece.view.shape[0]
    head = piece.view.shape[0] // piece.heads
    return max(head, rows // head * head)


def _encoded(target: _Target, view: TensorView, start: int, stop: int) -> U8:
    """uint8 [rows, row_bytes]."""
    if target.type in _FLOATS:
        values = view.float32(start, stop)
        return gguf_blocks.encode(target.type, values.reshape(stop - start, -1))
    if target.rounded:
        return gguf_search.search(target.type, view.float32(start, stop))
    return exact_blocks(view.quantized(start, stop), target.type)


def _interleaved(data: U8, heads: int) -> U8:
    """Rows (half 0, half 1) of a head become pairs: llama.cpp turns neighbours."""
    halves = data.reshape(heads, 2, len(data) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(data.shape)


def _factor_tensors(header: GgufHeader) -> Iterator[GgufTensor]:
    for name, factors in header.factors.items():
        values = np.array(factors, np.float32)
        yield GgufTensor(name, "F32", values.shape, [values.view(np.uint8)])


def _metadata(model: OpenModel, header: GgufHeader, targets: list[_Target]) -> dict[str, GgufValue]:
    """All keys. Of a GGUF source, general.* (name, license, ...) and tokenizer.* go along."""
    sizes: Counter[str] = Counter()
    for target in targets:
        sizes[target.type] += GgufTensor(target.name, target.type, target.shape, ()).nbytes
    found = {"general.architecture": gguf_value(header.architecture)}
    if isinstance(model.metadata, GgufMetadata):
        typed = model.metadata.typed()
        vocabulary = copied_vocabulary(typed)
        found |= {key: value for key, value in typed.items() if key.startswith("general.")}
        found.pop("general.alignment", None)
    else:
        tokenizer = load_tokenizer(model.path)
        vocabulary = gguf_vocabulary(tokenizer, model.spec.vocab)
        found["general.name"] = gguf_value(model.path.name)
        found |= _sampling(model.generation)
    found["general.file_type"] = gguf_value(_FILE_TYPES[sizes.most_common(1)[0][0]])
    found["general.quantization_version"] = gguf_value(2)
    for key, value in header.keys.items():
        found[f"{header.architecture}.{key}"] = gguf_value(value)
    return found | vocabulary


def _sampling(generation: Mapping[str, float]) -> dict[str, GgufValue]:
    names = {name: key for key, name in SAMPLING.items()}
    return {f"general.sampling.{names[name]}": gguf_value(value)
            for name, value in generation.items() if name in names}  # fmt: skip
