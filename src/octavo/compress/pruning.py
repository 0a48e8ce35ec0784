"""`--prune METHOD:HOW`: the recipe that prunes, then encodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from octavo.compress.recipe import Recipe, Step, from_flags
from octavo.compress.table import METHODS
from octavo.core.errors import ConfigError

_SHAPE = "write METHOD:SHARE, METHOD:N:M or METHOD:RxC:SHARE, as in wanda:0.5 and sparsegpt:2:4"


def pruned_recipe(
    prune: str, method: str | None, format: str, keep: Sequence[tuple[str, str]] = ()
) -> Recipe:
    """The recipe of `--method` and `--format` with a pruning step of the blocks before it.

    sparsegpt prunes and encodes at once: it takes the place of the method. Raises ConfigError.
    """
    name, options = parsed(prune)
    row = METHODS.get(name)
    if row.kind == "prune":
        recipe = from_flags(method or "rtn", format, keep)
        before = sum(METHODS.get(s.method).kind == "transform" for s in recipe.steps)
        steps = (*recipe.steps[:before], Step(name, options=options), *recipe.steps[before:])
        return replace(recipe, steps=steps)
    if name != "sparsegpt":
        raise ConfigError(f"--prune {prune}: {name} does not prune; magnitude, wanda, sparsegpt do")
    if method not in (None, name):
        raise ConfigError("--prune sparsegpt encodes as well: leave --method out")
    recipe = from_flags(name, format, keep)
    steps = tuple(replace(s, options=options) if s.method == name else s for s in recipe.steps)
    return replace(recipe, steps=steps)


def parsed(prune: str) -> tuple[str, dict[str, object]]:
    """(method, options) of METHOD:HOW. Raises ConfigError."""
    name, _, how = prune.partition(":")
    pattern, _, share = how.rpartition(":")
    if pattern.isdigit() and share.isdigit():
        return name, {"pattern": how}
    try:
        options: dict[str, object] = {"sparsity": float(share)}
    except ValueError:
        raise ConfigError(f"--prune {prune!r}: {_SHAPE}") from None
    return name, {**options, "pattern": pattern} if pattern else options
