"""All methods with what their classes say of them, and what was measured."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.compress.base import Needs
from octavo.compress.facts import Facts
from octavo.compress.table import METHODS, Kind

MEASURED = Path(__file__).with_name("measured.json")  # written by benchmarks/methods.py
_WORDS = {
    Needs.ABSMAX: "largest input",
    Needs.MEAN_ABS: "mean |input|",
    Needs.HESSIAN: "Hessian of the inputs",
    Needs.SAMPLES: "samples of the inputs",
    Needs.CASTS: "inputs, counted only",
    Needs.FISHER: "gradients",
    Needs.MEAN_SQUARE: "mean square of the inputs",
}


@dataclass(frozen=True, slots=True)
class Described:
    """One row of `octavo methods`: a method's Facts, and what follows from its class."""

    name: str
    kind: Kind
    output: str  # "preserved", "approximated", or "not declared"
    proof: str
    data: str
    moment: str
    quantizes: str
    choice: str
    format: str
    synonyms: tuple[str, ...]
    source: str


def described() -> tuple[Described, ...]:
    """All methods, in the table's order of names. One whose class declares no facts says so in
    every column that would have them."""
    return tuple(_describe(name) for name in METHODS)


def find(term: str) -> tuple[Described, ...]:
    """Methods of this name, or, when there is none, those with the term among their synonyms (any
    case; a part of a synonym will do)."""
    wanted = term.strip().casefold()
    named = tuple(each for each in described() if each.name == wanted)
    return named or tuple(
        each for each in described() if any(wanted in word.casefold() for word in each.synonyms)
    )


def measured() -> dict[str, Any]:
    """What benchmarks/methods.py found: model, date, conditions, and KL by method."""
    content: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return content


def _describe(name: str) -> Described:
    row = METHODS.get(name)
    module, _, kind = row.type.partition(":")
    method = getattr(importlib.import_module(module), kind)
    facts = getattr(method, "facts", None)
    if not isinstance(facts, Facts):
        facts = None
    static, unsaid = "static: chosen once, when the model is compressed", "not declared"
    data = _data(method, row.blocks)
    if facts is None:
        return Described(name, row.kind, unsaid, "", data, static, unsaid, unsaid, "", (), unsaid)
    return Described(
        name, row.kind, facts.output, facts.proof, data, static, facts.quantizes, facts.choice,
        facts.format, facts.synonyms, facts.source,
    )  # fmt: skip


def _data(method: type, blocks: bool) -> str:
    if blocks:
        return "inputs of whole blocks"
    built: Any = method()
    if getattr(built, "needs_tokens", False):
        return "calibration tokens"
    needs = getattr(built, "needs", Needs.NOTHING)
    words = [word for flag, word in _WORDS.items() if flag in needs]
    return ", ".join(words) or "none"
