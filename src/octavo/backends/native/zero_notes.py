"""What receipts say of pruned matrices: bytes and speed apart, each with its figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from octavo.backends.native.pattern_gains import Measured, PatternGain, sentence
from octavo.backends.native.recipe import Storage, pack_plan, packed_size
from octavo.formats.layouts import BLOCKS, DENSE

_PRODUCTS = {
    BLOCKS: "the kernels read and multiply what is there",
    "2:4": "as many products as dense ones",
}


def zero_notes(items: Iterable[Storage], measured: Measured) -> tuple[str, ...]:
    """A note for each layout that leaves zeros out, and for each reason why panels don't."""
    pruned = [item for item in items if item.zeros.layout != DENSE]
    held = sorted({(item.zeros.held, item.format.bits) for item in pruned if not item.zeros.why})
    dense = sorted({(item.zeros.layout, item.zeros.why) for item in pruned if item.zeros.why})
    return (
        *(_held([i for i in pruned if _key(i) == key], measured) for key in held),
        *(
            f"{layout}: {_count(pruned, layout, why)} matrices take the bytes and the time of "
            f"dense ones ({why}); the file alone is smaller"
            for layout, why in dense
        ),
    )


def _key(item: Storage) -> tuple[str, int]:
    return item.zeros.held, item.format.bits


def _count(items: Sequence[Storage], layout: str, why: str) -> int:
    return sum((item.zeros.layout, item.zeros.why) == (layout, why) for item in items)


def _held(mine: Sequence[Storage], measured: Measured) -> str:
    layout, bits = _key(mine[0])
    size = sum(pack_plan(item).packed_bytes for item in mine)
    dense = sum(packed_size(item.format, item.shape) for item in mine)
    zeros = 0.5 if layout != BLOCKS else _share(mine)
    gains = measured.of(layout, bits, zeros)
    return (
        f"{layout}: {len(mine)} matrices of {bits} bits, {zeros:.0%} of their codes left out, take "
        f"{size / 1e6:.3g} MB, dense {dense / 1e6:.3g} MB; {_PRODUCTS[layout]}. "
        + _figures(gains, measured)
    )


def _figures(gains: Sequence[PatternGain], measured: Measured) -> str:
    if not gains:
        return "Speed not measured: octavo methods pruning --measure"
    where = f"on {measured.machine} ({measured.date}), {gains[0].zeros:.0%} zeros, from memory"
    return f"Measured {where}: {sentence(gains)}"


def _share(mine: Sequence[Storage]) -> float:
    """Of blocks that aren't there."""
    blocks = sum(item.shape[0] * item.shape[1] // 512 for item in mine)
    there = sum(bin(int.from_bytes(item.zeros.mask, "little")).count("1") for item in mine)
    return 1 - there / blocks
