"""`octavo inspect`: a model's spec, tensors, formats and bytes, from its header."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from octavo.cli.options import json_option
from octavo.cli.output import emit_json, fields, human_decimal, unread_line

if TYPE_CHECKING:
    from octavo.formats.number_format import NumberFormat
    from octavo.io.checkpoint import OpenModel
    from octavo.io.weights import TensorView
    from octavo.spec.decoder import DecoderSpec, LayerSpec, Role


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One role's tensor. `read_bytes`: what one token reads of it, on average."""

    role: str
    part: str
    layer: int | None
    expert: int | None
    name: str
    shape: tuple[int, ...]
    type: str
    format: str
    bytes: int
    read_bytes: float


@dataclass(frozen=True, slots=True)
class FormatLine:
    """All tensors of one stored type."""

    type: str
    format: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class InspectReport:
    """What `--json` prints. `bytes_per_token`: weights read per decoded token;
    `kv_bytes_per_token`: what a token adds to a bf16 cache before any window slides."""

    path: str
    kind: str
    origin: str
    spec: DecoderSpec
    parameters: int
    file_bytes: int
    bytes_per_token: int
    kv_bytes_per_token: int
    eos_ids: tuple[int, ...]
    generation: dict[str, float]
    unread_keys: tuple[str, ...]
    formats: tuple[FormatLine, ...]
    tensors: tuple[TensorLine, ...]


@click.command()
@click.argument("model")
@json_option
def command(model: str, as_json: bool) -> None:
    """Show MODEL's spec, its tensors with their formats and bytes, and the bytes per token."""
    from octavo.io.checkpoint import open_model
    from octavo.io.hub import resolve_model

    with open_model(resolve_model(model)) as opened:
        report = inspect_model(opened)
    emit_json(report) if as_json else _print(report)


def inspect_model(model: OpenModel) -> InspectReport:
    """Everything that the header says; no weight is read."""
    from octavo.cli.footprint import footprint, kv_bytes
    from octavo.spec.graph import roles

    tensors = tuple(_line(model, role) for role in roles(model.spec))
    row = 0 if model.spec.tied_head else tensors[0].bytes // model.spec.vocab
    return InspectReport(
        path=str(model.path),
        kind=model.kind,
        origin=model.source.describe(),
        spec=model.spec,
        parameters=footprint(model.spec).parameters,
        file_bytes=model.file_size,
        bytes_per_token=round(sum(t.read_bytes for t in tensors)) + row,
        kv_bytes_per_token=kv_bytes(model.spec, 1),
        eos_ids=model.eos_ids,
        generation=dict(model.generation),
        unread_keys=model.unread_keys,
        formats=_formats(model),
        tensors=tensors,
    )


def _line(model: OpenModel, role: Role) -> TensorLine:
    from octavo.cli.footprint import read_share

    view = model.source.tensor(role)
    return TensorLine(
        role=str(role),
        part=role.part,
        layer=role.layer,
        expert=role.expert,
        name=view.stored.name,
        shape=view.shape,
        type=view.stored.type,
        format=_format(view),
        bytes=view.nbytes,
        read_bytes=view.nbytes * read_share(model.spec, role),
    )


def _format(view: TensorView) -> str:
    """The NumberFormat, or why there is none: inspecting must work where running can't."""
    from octavo.core.errors import UnsupportedError

    try:
        return str(view.format)
    except UnsupportedError:
        return "not decoded"


def _formats(model: OpenModel) -> tuple[FormatLine, ...]:
    from octavo.formats.gguf_formats import GGUF_FORMATS

    stored = defaultdict(list)
    for tensor in model.tensors.values():
        stored[tensor.type].append(tensor)
    lines = [
        FormatLine(
            type=name,
            format=str(GGUF_FORMATS.get(name) or _parsed(name) or "not decoded"),
            tensors=len(tensors),
            parameters=sum(t.elements for t in tensors),
            bytes=sum(t.nbytes for t in tensors),
        )
        for name, tensors in stored.items()
    ]
    return tuple(sorted(lines, key=lambda line: -line.bytes))


def _parsed(name: str) -> NumberFormat | None:
    """The format of our own artifacts' types, which are called by it."""
    from octavo.core.errors import FormatError
    from octavo.formats.number_format import NumberFormat

    try:
        return NumberFormat.parse(name)
    except FormatError:
        return None


def describe_spec(spec: DecoderSpec) -> dict[str, str]:
    """A spec in a dozen lines."""
    first = spec.layers[0]
    a = first.attention
    summary = {
        "family": spec.family,
        "layers": str(len(spec.layers)),
        "hidden": str(spec.hidden),
        "attention": f"{a.heads} heads, {a.kv_heads} for keys and values, of {a.head_dim}",
        "windows": _windows(spec.layers),
        "mlp": _mlp(first),
        "rope": _rope(spec.layers),
        "context": f"{spec.max_positions:,} tokens",
        "vocabulary": f"{spec.vocab:,}" + (", head tied" if spec.tied_head else ""),
    }
    extras = [
        name
        for name, there in (
            ("q and k norms", a.qk_norm),
            ("q, k, v biases", a.qkv_bias),
            ("o bias", a.out_bias),
            ("norms on both sides of each branch", first.post_norms),
            (f"attention softcap {a.softcap}", a.softcap is not None),
            (f"logit softcap {spec.logit_softcap}", spec.logit_softcap is not None),
            (f"embedding scaled by {spec.embed_scale:g}", spec.embed_scale != 1),
        )
        if there
    ]
    return summary | ({"also": ", ".join(extras)} if extras else {})


def _windows(layers: Sequence[LayerSpec]) -> str:
    windows = [layer.attention.window for layer in layers]
    sliding = [window for window in windows if window is not None]
    if not sliding:
        return "none: every layer sees the whole context"
    full = len(windows) - len(sliding)
    return f"{len(sliding)} layers see {max(sliding):,} tokens, {full} the whole context"


def _mlp(layer: LayerSpec) -> str:
    from octavo.spec.decoder import MoeMlp

    mlp = layer.mlp
    if isinstance(mlp, MoeMlp):
        return f"{mlp.experts} experts of {mlp.intermediate}, {mlp.top_k} a token, {mlp.activation}"
    return f"{mlp.intermediate}, {mlp.activation}"


def _rope(layers: Sequence[LayerSpec]) -> str:
    ropes = dict.fromkeys(layer.attention.rope for layer in layers)
    texts = [
        f"theta {rope.theta:,.0f} over {rope.dim}"
        + (f", {rope.scaling.kind} scaling" if rope.scaling else "")
        for rope in ropes
    ]
    return "; ".join(texts)


def _print(report: InspectReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(fields(describe_spec(report.spec) | _facts(report)), soft_wrap=True)
    parts = Table(box=None, pad_edge=False)
    for name in ("part", "shape", "type", "format"):
        parts.add_column(name, no_wrap=True)
    for name in ("tensors", "bytes"):
        parts.add_column(name, justify="right", no_wrap=True)
    for cells in _part_rows(report.tensors):
        parts.add_row(*cells)
    console.print(parts)
    if report.unread_keys:
        console.print(unread_line(report.unread_keys), soft_wrap=True)


def _facts(report: InspectReport) -> dict[str, str]:
    facts = {
        "parameters": f"{report.parameters:,}",
        "source": report.origin,
        "file": human_decimal(report.file_bytes),
        "per token": f"{human_decimal(report.bytes_per_token)} of weights read, "
        f"{human_decimal(report.kv_bytes_per_token)} of keys and values written (bf16)",
        "ends with": ", ".join(map(str, report.eos_ids)) or "no token named by the model's files",
    }
    sampling = ", ".join(f"{name} {value:g}" for name, value in report.generation.items())
    return facts | ({"sampling": sampling} if sampling else {})


def _part_rows(tensors: Sequence[TensorLine]) -> list[tuple[str, ...]]:
    """Tensors of one part that share shape and type make one row."""
    groups: dict[tuple[str, tuple[int, ...], str, str], list[TensorLine]] = {}
    for tensor in tensors:
        key = (tensor.part, tensor.shape, tensor.type, tensor.format)
        groups.setdefault(key, []).append(tensor)
    return [
        (
            part,
            " x ".join(map(str, shape)),
            kind,
            name,
            str(len(members)),
            human_decimal(sum(t.bytes for t in members)),
        )
        for (part, shape, kind, name), members in groups.items()
    ]
