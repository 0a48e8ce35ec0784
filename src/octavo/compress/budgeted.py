"""A budget becomes a recipe: sensitivities, an allocation, and a step per format.

The budget counts what the artifact stores, all tensors and all parameters included; a tied head is
counted once. `90MB@4096` counts keys and values of 4,096 tokens too, and chooses their format with
the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.backends.base import KvFormat
from octavo.backends.served import kv_reasons
from octavo.compress.artifact import add_file
from octavo.compress.budget import Allocation, Item, allocate, allocate_cost, check_room
from octavo.compress.recipe import Recipe, Step, matrices, role_name
from octavo.compress.sensitivity import Probing, Progress, Sensitivities, measure, takes
from octavo.compress.table import build_encoder
from octavo.core.errors import ConfigError
from octavo.formats import rtn
from octavo.formats.gguf_formats import gguf_type_of
from octavo.formats.kv import kv_head_bytes
from octavo.formats.layouts import is_ternary
from octavo.formats.number_format import NumberFormat
from octavo.formats.trits import trits_width
from octavo.io.checkpoint import open_model
from octavo.io.gguf_search import SHAPES
from octavo.io.mapping import replacing
from octavo.spec.decoder import DecoderSpec
from octavo.spec.graph import role_shape, roles

SENSITIVITY = "sensitivity.json"
I64 = npt.NDArray[np.int64]
Size = Callable[[NumberFormat, tuple[int, int]], int]

# What may be picked from: two-level formats where 256 divides the rows, one-level ones elsewhere.
CANDIDATES = (
    "int2_g16_offset_su4x256", "int3_g16_si6x256", "int4_g32_offset_su6x256",
    "int5_g32_offset_su6x256", "int6_g16_si8x256", "int3_g64", "int3_g32", "int4_g64", "int4_g32",
    "int5_g32", "int6_g32", "int8_g64", "int8_g32",
)  # fmt: skip
METHODS_OF_BUDGETS = ("searched", "gptq", "rtn")
PROBED = 2048  # tokens of the calibration text on which sensitivities are measured
_LOGITS = 1 << 27  # of the probed text at most: they stay in memory
CACHES: tuple[KvFormat, ...] = ("bf16", "int8", "int4")
_BUDGET = re.compile(
    r"(?:(?P<bits>[0-9.]+)bpw|(?P<mb>[0-9.]+)MB|kl:(?P<kl>[0-9.eE-]+))(?:@(?P<tokens>[0-9]{1,9}))?"
)


@dataclass(frozen=True, slots=True)
class Budget:
    """One of three: bits per parameter, bytes of tensors, or the expected mean KL. `tokens` whose
    keys and values count as well; 0: none."""

    bits: float = 0.0
    bytes: int = 0
    kl: float = 0.0
    tokens: int = 0

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`4.25bpw`, `90MB` (of 10^6 bytes) or `kl:0.02`, each with or without `@TOKENS`. Raises
        ConfigError."""
        match = _BUDGET.fullmatch(text.strip())
        try:
            value = float(next(filter(None, match.groups()))) if match else 0.0
        except ValueError:
            value = 0.0
        if match is None or not value > 0 or not np.isfinite(value):
            raise ConfigError(
                f"budget {text!r}: give it as 4.25bpw, 90MB or kl:0.02, and @4096 behind it where "
                "keys and values of so many tokens count"
            )
        tokens = int(match["tokens"] or 0)
        if match["bits"]:
            return cls(bits=value, tokens=tokens)
        in_bytes = cls(bytes=round(value * 1e6), tokens=tokens)
        return in_bytes if match["mb"] else cls(kl=value, tokens=tokens)


@dataclass(frozen=True, slots=True)
class Choice:
    """A format for every matrix, by name. `expected`: the KL that the table adds up to. `kv`: the
    format of keys and values, "" where they were no part of the budget, else among the `bytes`."""

    formats: Mapping[str, str]
    bytes: int
    expected: float
    gap: float
    kv: str = ""


def stored_bytes(format: NumberFormat, shape: tuple[int, int]) -> int:
    """Bytes of a matrix in an artifact, whose sub-scales take a byte each."""
    row = rtn.encode(np.ones((1, shape[1]), np.float32), format)
    expanded = row.codes.nbytes - trits_width(shape[1]) if is_ternary(format) else 0
    return (row.nbytes - expanded) * shape[0]


def cache_bytes(spec: DecoderSpec, format: str, tokens: int) -> int:
    """Bytes of keys and values of so many tokens; a layer with a window holds no more than it."""
    total = 0
    for layer in spec.layers:
        attention = layer.attention
        held = tokens if attention.window is None else min(tokens, attention.window)
        total += 2 * held * attention.kv_heads * kv_head_bytes(format, attention.head_dim)
    return total


def choose(
    spec: DecoderSpec, table: Sensitivities, budget: Budget, size: Size = stored_bytes
) -> Choice:
    """The formats of least expected KL within the budget (or of fewest bytes under its KL)."""
    shapes = {role_name(role): role_shape(spec, role) for role in matrices(spec)}
    names = list(shapes)
    options = [tuple(table.kl[name]) for name in names]
    items = [
        Item(
            np.array([size(NumberFormat.parse(f), (shapes[n][0], shapes[n][1])) for f in row]),
            np.array([table.kl[n][f] for f in row]),
        )
        for n, row in zip(names, options, strict=True)
    ]
    caches = list(table.cache) if budget.tokens else []
    if caches:
        sizes = [cache_bytes(spec, format, budget.tokens) for format in caches]
        items.append(Item(np.array(sizes), np.array(list(table.cache.values()))))
    rest = _rest_bytes(spec)
    found = _allocated(items, spec, budget, rest)
    kv = caches[found.picks[-1]] if caches else ""
    picks = found.picks[: len(names)]
    formats = {n: row[p] for n, row, p in zip(names, options, picks, strict=True)}
    return Choice(formats, found.size + rest, found.cost, found.gap, kv)


def _allocated(items: Sequence[Item], spec: DecoderSpec, budget: Budget, rest: int) -> Allocation:
    if budget.kl:
        return allocate_cost(items, budget.kl)
    return allocate(items, _limit(spec, budget) - rest)


def _limit(spec: DecoderSpec, budget: Budget) -> int:
    """Bytes of the whole model."""
    parameters = sum(int(np.prod(role_shape(spec, role))) for role in roles(spec))
    return budget.bytes or int(parameters * budget.bits / 8)


def _check_room(spec: DecoderSpec, formats: Sequence[NumberFormat], budget: Budget) -> None:
    """Refuses what no measurement could make fit."""
    if budget.kl:
        return
    shapes = [(shape[0], shape[1]) for shape in (role_shape(spec, r) for r in matrices(spec))]
    sizes = [[stored_bytes(f, shape) for f in formats if takes(f, shape)] for shape in shapes]
    least = sum(min(row, default=0) for row in sizes)
    if budget.tokens:
        least += min(cache_bytes(spec, kv, budget.tokens) for kv in _caches(spec))
    check_room(least, _limit(spec, budget) - _rest_bytes(spec))


def _caches(spec: DecoderSpec) -> list[KvFormat]:
    return [kv for kv in CACHES if not kv_reasons(spec, kv)]


def _rest_bytes(spec: DecoderSpec) -> int:
    """Norms, biases and routers: fp32."""
    chosen = set(matrices(spec))
    return sum(4 * int(np.prod(role_shape(spec, r))) for r in roles(spec) if r not in chosen)


def recipe_of(choice: Choice, base: Recipe, method: str, tied: bool) -> Recipe:
    """Steps that give every matrix its format. `method` "": `searched` where it knows the format,
    `gptq` elsewhere. An untied embedding has no inputs to calibrate on: it is rounded."""
    by_format: dict[tuple[str, str], list[str]] = {}
    for name, format in choice.formats.items():
        how = "rtn" if name == "embed" and not tied else method or _method_of(format)
        by_format.setdefault((how, format), []).append(name)
    steps = [Step(how, format, tuple(names)) for (how, format), names in by_format.items()]
    return replace(base, steps=tuple(steps), kv=choice.kv or base.kv)


def _method_of(format: str) -> str:
    return "searched" if gguf_type_of(NumberFormat.parse(format)) in SHAPES else "gptq"


def budgeted(
    model: Path,
    base: Recipe,
    budget: Budget,
    tokens: I64,
    kept: Path,
    method: str = "",
    progress: Progress | None = None,
) -> tuple[Recipe, Choice]:
    """The recipe for a budget. Sensitivities are measured on the first of `tokens`, encoded by the
    others, and kept in `kept`, which is refused when it is of another model, text or method."""
    with open_model(model) as opened:
        spec = opened.spec
        probed, fitted = parted(tokens, spec.vocab)
        formats = candidates(spec, method)
        _check_room(spec, formats, budget)
        encoder = build_encoder(method or "searched", {})
        _check_identity(kept, {
            "source": opened.source.describe(), "method": method,
            "formats": [str(f) for f in formats],
            "tokens": hashlib.sha256(probed.tobytes() + fitted.tobytes()).hexdigest(),
        })  # fmt: skip
        probing = Probing(opened.source, spec, probed, fitted)
        caches = _caches(spec) if budget.tokens else []
        table = measure(probing, formats, encoder, kept, progress, caches)
    choice = choose(spec, table, budget)
    return recipe_of(choice, base, method, spec.tied_head), choice


def placeholder() -> Recipe:
    """What says that a budgeted run reads calibration text; its formats are chosen later."""
    return Recipe((Step("gptq", "int4_channel"),))


def check_method(method: str) -> None:
    """Raises ConfigError for a method that doesn't encode all candidates."""
    if method not in ("", *METHODS_OF_BUDGETS):
        raise ConfigError(
            f"--budget chooses among formats that {method} doesn't make: leave --method out, or "
            f"take {' or '.join(METHODS_OF_BUDGETS)}"
        )


def sensitivity_file(out: Path) -> Path:
    """Where a run for `out` keeps its measurements until they go into the artifact."""
    return out.with_name(f".{out.name}.sensitivity.json")


def keep(out: Path, choice: Choice) -> None:
    """Put what the choice was made from into the artifact."""
    kept = sensitivity_file(out)
    table = json.loads(kept.read_text(encoding="utf-8"))
    add_file(out, SENSITIVITY, {
        "expected_kl": choice.expected, "gap": choice.gap, "formats": dict(choice.formats),
        "kv": choice.kv, "kl": table,
    })  # fmt: skip
    kept.unlink()
    kept.with_suffix(".identity.json").unlink(missing_ok=True)


def candidates(spec: DecoderSpec, method: str) -> list[NumberFormat]:
    """Formats that some matrix takes, and the method encodes."""
    shapes = [role_shape(spec, role) for role in matrices(spec)]
    formats = [NumberFormat.parse(name) for name in CANDIDATES]
    if method == "searched":
        formats = [f for f in formats if gguf_type_of(f) in SHAPES]
    return [f for f in formats if any(takes(f, shape) for shape in shapes)]


def parted(tokens: I64, vocab: int, most: int = PROBED) -> tuple[I64, I64]:
    """What KL is taken on, whole sequences or the beginning of one that is too long, and what the
    encoder is fitted to: the rest, at least half of the text."""
    room = max(64, min(most, _LOGITS // vocab))
    sequences, length = tokens.shape
    if sequences == 1:
        cut = min(room, length // 2)
        return tokens[:, :cut].copy(), tokens[:, cut:].copy()
    count = max(1, min(room // length, sequences // 2))
    return tokens[:count, :room].copy(), tokens[count:].copy()


def _check_identity(kept: Path, identity: Mapping[str, object]) -> None:
    said = kept.with_suffix(".identity.json")
    text = json.dumps(identity, sort_keys=True)
    if kept.exists() and (not said.exists() or said.read_text(encoding="utf-8") != text):
        raise ConfigError(
            f"{kept} holds sensitivities of another model, text or method: remove it, or choose "
            "another output"
        )
    with replacing(said) as file:
        file.write(text.encode())
