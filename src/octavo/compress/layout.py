"""Gives matrices the stored layouts that save bytes (formats/layouts.py): ternary ones, and all
of a pruned model."""

from __future__ import annotations

from dataclasses import replace

from octavo.compress.plan import Plan
from octavo.compress.state import Arrays, Stage
from octavo.formats.layouts import DENSE, chosen, is_ternary
from octavo.io.artifact import Entry


def prunes(plan: Plan) -> bool:
    """Whether a recipe sets weights to zero."""
    by_encoder = any(getattr(encoder, "prunes", False) for encoder in plan.encoders.values())
    return bool(plan.pruners) or by_encoder


def laid_out(whole: Stage, pruned: bool) -> Stage:
    """The same tensors, each matrix in its layout; vectors and dense matrices stay as they are.
    Where nothing was pruned, only ternary matrices are looked at."""
    arrays: Arrays = dict(whole.arrays)
    entries: dict[str, Entry] = dict(whole.entries)
    for name, entry in whole.entries.items():
        if len(entry.shape) != 2 or not (pruned or is_ternary(entry.format)):
            continue
        layout, parts = chosen(whole.matrix(name))
        if layout == DENSE:
            continue
        arrays.pop(name, None)  # where a plain matrix stood
        arrays.update({f"{name}.{part}": array for part, array in parts.items()})
        entries[name] = replace(entry, layout=layout)
    return Stage(whole.report, arrays, entries, whole.masks)
