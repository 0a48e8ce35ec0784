"""From a model to one with another vocabulary, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from octavo.compress.artifact import add_quality
from octavo.compress.quality import HeldOut, Quality, measure
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rtn import encode
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.new_directory import new_directory
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import head_role
from octavo.vocab.lowrank import Factors, factor, fit_up, rounded_twice, second_moment
from octavo.vocab.measure import tokenizer_of
from octavo.vocab.states import head_states, likely
from octavo.vocab.tables import take
from octavo.vocab.trim import kept_ids, trim_files
from octavo.vocab.writing import Vocabulary, write_model

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Tables = Literal["head", "both", "shared"]

_BETWEEN = ("head_down", "embed_up")  # the tables of hidden times rank: small
_SMALL = NumberFormat.parse("int8_g32")
_LIKELY_STATES = 1024  # whose whole distributions are summed: each costs a pass over the table


@dataclass(frozen=True, slots=True)
class FactorPlan:
    """How to factor a vocabulary.

    rank    of the factors; a multiple of the format's group
    tables  head: the embedding stays whole (a token reads one row of it); both: it gets factors of
            its own; shared: embedding and head are one thin table between two small ones
    format  of the thin tables; what stands between them and the model has at least 8 bits
    twice   how many of the rank's first directions are stored twice, the second time what rounding
            left of them (see `lowrank`): the head has rank + twice columns. tables="head" only
    refine  steps of descent on the KL divergence to the whole head, 0: none
    """

    rank: int
    tables: Tables = "head"
    format: str = "int8_g32"
    refine: int = 0
    twice: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.twice <= self.rank or (self.twice and self.tables != "head"):
            raise ConfigError("twice is from 0 to the rank, and goes with tables=head alone")
        if self.tables not in ("head", "both", "shared"):
            raise ConfigError(f"tables is {self.tables!r}: give head, both or shared")
        if self.rank < 1 or self.refine < 0:
            raise ConfigError("rank is at least 1, and refine at least 0")


def factor_model(
    path: Path,
    out: Path,
    plan: FactorPlan,
    tokens: Sequence[Sequence[int]],
    held_out: Sequence[HeldOut] = (),
) -> Quality | None:
    """Write the model at `path` with a factored vocabulary to the new directory `out`, fitted to
    `tokens` (texts, each with the model's begin token), and measure it on `held_out`.

    Raises UserError when `out` exists, UnsupportedError for a model that is factored already,
    FormatError when the rank doesn't fit the format, ConfigError when it exceeds the hidden
    size.
    """
    with open_model(path) as model, new_directory(out) as directory:
        new = factored(model, plan, tokens)
        write_model(directory, model, new)
        if not held_out:
            return None
        quality = measure(directory, path, held_out)
        add_quality(directory, quality.to_dict())
        return quality


def factored(model: OpenModel, plan: FactorPlan, tokens: Sequence[Sequence[int]]) -> Vocabulary:
    """The factored vocabulary of an open model."""
    spec = model.spec
    if spec.embed_rank or spec.head_rank:
        raise UnsupportedError(f"{model.path}: its vocabulary is factored already")
    format = NumberFormat.parse(plan.format)
    if plan.rank > spec.hidden:
        raise ConfigError(f"rank {plan.rank} exceeds the {spec.hidden} values of a row: give less")
    for columns in filter(None, (plan.rank, plan.twice)):
        format.groups((spec.vocab, columns))
    head = model.source.tensor(head_role(spec)).float32()
    states = head_states(model, tokens)
    step = max(1, len(states) // _LIKELY_STATES)
    weight = np.sqrt(likely(head, states[::step], spec.logit_softcap))
    fitted = factor(head, plan.rank, second_moment(states), weight)
    if plan.refine:
        from octavo.vocab.refine import refine

        fitted = refine(fitted, head, states, spec.logit_softcap, plan.refine)
    fitted = rounded_twice(fitted, plan.twice, format)
    matrices = {Role("head"): fitted.rows, Role("head_down"): fitted.shared}
    if plan.tables != "head":
        used = np.bincount(np.concatenate([np.asarray(t) for t in tokens]), minlength=spec.vocab)
        matrices |= _embed_matrices(model, plan, fitted, used.astype(np.float64) + 1)
    small = format if format.bits >= 8 else _SMALL
    formats = {role: small if role.part in _BETWEEN else format for role in matrices}
    return _vocabulary(spec, plan, {r: encode(w, formats[r]) for r, w in matrices.items()})


def _embed_matrices(
    model: OpenModel, plan: FactorPlan, fitted: Factors, used: F64
) -> dict[Role, F32]:
    table = model.source.tensor(Role("embed")).float32()
    if plan.tables == "shared":
        up = fit_up(table, fitted.rows, used)
        return {Role("embed"): fitted.rows, Role("embed_up"): up}
    own = factor(table, plan.rank, None, used)
    up = np.ascontiguousarray(own.shared.T)
    return {Role("embed"): own.rows, Role("embed_up"): up}


def _vocabulary(
    spec: DecoderSpec, plan: FactorPlan, tables: dict[Role, QuantizedTensor]
) -> Vocabulary:
    shared, embed = plan.tables == "shared", plan.rank if plan.tables != "head" else 0
    if shared:
        del tables[Role("head")]
    columns = plan.rank + plan.twice
    config: dict[str, object] = {"octavo_head_rank": columns, "tie_word_embeddings": shared}
    if embed:
        config["octavo_embed_rank"] = embed
    recipe = {
        "method": "factor", "rank": plan.rank, "tables": plan.tables, "format": plan.format,
        "refine": plan.refine, "twice": plan.twice,
    }  # fmt: skip
    new = replace(spec, tied_head=shared, embed_rank=embed, head_rank=columns)
    return Vocabulary(new, tables, config, recipe)


def trim_model(path: Path, out: Path, texts: Sequence[str]) -> tuple[int, int]:
    """Write the model at `path` with the tokens that `texts` need to the new directory `out`;
    the numbers of tokens before and after.

    Raises UserError when `out` exists or the texts are empty, UnsupportedError for a vocabulary
    that isn't BPE.
    """
    with open_model(path) as model, new_directory(out) as directory:
        new = trimmed(model, texts)
        write_model(directory, model, new)
        return model.spec.vocab, new.spec.vocab


def trimmed(model: OpenModel, texts: Sequence[str]) -> Vocabulary:
    """The vocabulary of an open model that is left of it for some texts."""
    tokenizer = tokenizer_of(model)
    used = {i for text in texts for i in tokenizer.encode(text)}
    kept = kept_ids(json.loads(tokenizer.to_json()), used)
    kept = kept[kept < model.spec.vocab]
    tables = {}
    for role in {Role("embed"), head_role(model.spec)}:
        view = model.source.tensor(role)
        tables[role] = take(view.quantized(0, view.shape[0]), kept)
    recipe = {"method": "trim", "tokens": len(kept), "of": model.spec.vocab}
    return Vocabulary(
        replace(model.spec, vocab=len(kept)),
        tables,
        {"vocab_size": len(kept)},
        recipe,
        partial(trim_files, kept=kept),
    )
