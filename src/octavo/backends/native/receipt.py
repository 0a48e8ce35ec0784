"""What really runs, from the plan that native resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from octavo import _native
from octavo.backends.base import KernelUse, Receipt, RuntimeConfig
from octavo.backends.native.memory import kv_bytes_per_token, kv_layout
from octavo.backends.native.recipe import Storage, is_requantized
from octavo.backends.served import outlier_notes
from octavo.core.errors import UnsupportedError
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import head_role, role_shape, roles

Line = tuple[int, str, str, bool, int]  # layer (-1: head), part, kernel, fast, bytes
_OUTLIERS = "_a32_"  # in the name of the kernel that multiplies llm_int8's outliers
_FALLBACK = "no hand-written kernel for this format on this ISA: plain code runs it"


def check_strict(lines: Sequence[Line], isa: str) -> None:
    """Raises UnsupportedError naming the parts that no fast kernel serves."""
    slow = sorted({f"{part} ({kernel})" for _, part, kernel, fast, _ in lines if not fast})
    if slow:
        raise UnsupportedError(
            f"strict: no fast kernel on {isa} for {', '.join(slow)}; choose another format, or "
            "leave strict out to run plain code"
        )


def build(
    spec: DecoderSpec,
    config: RuntimeConfig,
    items: Mapping[Role, Storage],
    weights: Mapping[Role, _native.Weight],
    native: _native.Executor,
    notes: tuple[str, ...],
) -> Receipt:
    """Exact bytes: every linear's panels, norms and biases, and an untied embedding's one row."""
    lines = native.kernels()
    row = 0 if spec.tied_head else weights[Role("embed")].row_bytes
    return Receipt(
        backend="native",
        isa=native.isa,
        threads=config.threads,
        kv_format=config.kv_format,
        bytes_per_token=sum(size for *_, size in lines) + row + _vector_bytes(spec),
        packed_bytes=sum(weight.bytes for weight in weights.values()),
        kernels=_uses(spec, items, lines),
        requantized=is_requantized(list(items.values())),
        notes=notes,
        kv_bytes_per_token=kv_bytes_per_token(kv_layout(spec, config)),
    )


def with_shares(receipt: Receipt, native: _native.Executor) -> Receipt:
    """The receipt with what only runs tell: the share of rows that a8a16 took in 16 bits, and of
    inputs that llm_int8 took as they are."""
    receipt = replace(receipt, notes=(*receipt.notes, *outlier_notes(*_seen(native, _OUTLIERS))))
    if not any(use.activations.startswith("a8a16") for use in receipt.kernels):
        return receipt
    rows, wide = _seen(native, "_a16_")
    share = wide / rows if rows else 0.0
    return replace(receipt, wide_share=share, notes=(*receipt.notes, wide_note(share)))


def _seen(native: _native.Executor, kernel: str) -> tuple[int, int]:
    """Over the lines of two kernels, the second of this name: what came, and what it took."""
    pairs = zip(native.kernels(), native.rows_seen(), strict=True)
    found = [seen for (_, _, name, _, _), seen in pairs if kernel in name.partition(" + ")[2]]
    return sum(rows for rows, _ in found), sum(taken for _, taken in found)


def wide_note(share: float) -> str:
    return f"a8a16 ({share:.1%} of rows in 16 bits)"


def _vector_bytes(spec: DecoderSpec) -> int:
    shapes = [role_shape(spec, role) for role in roles(spec)]
    return 4 * sum(shape[0] for shape in shapes if len(shape) == 1)


def _uses(
    spec: DecoderSpec, items: Mapping[Role, Storage], lines: Sequence[Line]
) -> tuple[KernelUse, ...]:
    """One entry for all parts that run alike in all their layers."""
    by_name = {(role.layer, str(role.part)): item for role, item in items.items()}
    products = {(role.layer, str(role.part)): _size(spec, role) for role in items}
    outer = {"head": head_role(spec), "embed_up": Role("embed_up"), "head_down": Role("head_down")}
    products |= {(-1, part): _size(spec, role) for part, role in outer.items() if role in items}
    members: dict[KernelUse, list[Line]] = {}
    for line in lines:
        layer, part, kernel, fast, _ = line
        item = items[outer[part]] if layer < 0 else by_name[layer, part]
        where = part if layer < 0 else "layers"
        fallback = "" if fast else _FALLBACK
        use = KernelUse(where, kernel, str(item.format), item.activations, 0, fallback)
        members.setdefault(use, []).append(line)
    return tuple(
        replace(
            use,
            role=_name(same),
            bytes_per_token=sum(size for *_, size in same),
            products=sum(products[line[0], line[1]] for line in same),
        )
        for use, same in members.items()
    )


def _size(spec: DecoderSpec, role: Role) -> int:
    return prod(role_shape(spec, role))


def _name(lines: Sequence[Line]) -> str:
    layers = sorted({line[0] for line in lines})
    if layers[0] < 0:
        return ",".join(dict.fromkeys(line[1] for line in lines))
    parts = ",".join(dict.fromkeys(line[1] for line in lines))
    return f"layers {_ranges(layers)} {parts}"


def _ranges(layers: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0-2,5"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
