"""`Recipe`: what is done to which matrices, in which order; from YAML or from flags.

    seed: 0
    fallback: rtn
    calibration: {text: notes.txt, sequences: 32, length: 2048}
    steps:
      - {method: awq, select: ["layers.*"]}
      - {method: gptq, format: int4_g64, select: ["layers.*"], options: {damp: 0.01}}
      - {method: rtn, format: int8_g32, select: [head, embed]}

A matrix is called `layers.3.down`, `layers.3.experts.5.gate`, `embed` or `head` (of a tied model,
`head` is the embedding). A selector is a glob over such names, or over parts alone (`down`). A
later step wins over an earlier one of its kind; what no step selects is stored as it came.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from octavo.backends.base import ActivationFormat, KvFormat
from octavo.compress.table import KINDS, METHODS, Kind, build, build_encoder, nearest
from octavo.core.errors import ConfigError
from octavo.formats.number_format import NumberFormat
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import linear_roles, role_shape

Precision = Literal["fp32", "bf16"]
ALL = ("*",)
BLOCKS = ("layers.*",)
_NOTHING: Mapping[str, object] = MappingProxyType({})
_NOUNS = {
    "prepare": "a preparation",
    "transform": "a transform",
    "prune": "a pruner",
    "train": "a trainer",
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which text, and how much of it: `sequences` of `length` tokens each, spread over the text.

    text       a UTF-8 file; "": articles of Wikipedia.
    precision  of the products that carry the tokens from block to block; statistics are sums of
               fp32 either way.
    """

    text: str = ""
    sequences: int = 32
    length: int = 2048
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        _check_word("calibration: precision", self.precision, get_args(Precision))
        for name, low in (("sequences", 1), ("length", 8)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigError(f"calibration: {name} is {value!r}; it must be at least {low}")


@dataclass(frozen=True, slots=True)
class Step:
    """One method on the matrices that `select` names. `format` is an encoder's target, or what a
    trainer trains in: a recipe then lets the trainer's own encoder make it first."""

    method: str
    format: str = ""
    select: tuple[str, ...] = BLOCKS
    options: Mapping[str, object] = field(default_factory=lambda: _NOTHING)

    def __post_init__(self) -> None:
        kind = METHODS.get(self.method).kind
        if kind == "encode":
            if not self.format:
                raise ConfigError(f"step {self.method}: needs a format, such as int4_g64")
            NumberFormat.parse(self.format)
        elif self.format and kind == "train":
            NumberFormat.parse(self.format)
        elif self.format:
            raise ConfigError(
                f"step {self.method}: {_NOUNS[kind]} has no format; it serves the encoder's"
            )
        build(self.method, self.options)
        if not self.select:
            raise ConfigError(f"step {self.method}: select is empty; leave it out for all blocks")
        if kind == "prepare" and self.select != BLOCKS:
            raise ConfigError(f"step {self.method}: works on the whole model; leave select out")

    @property
    def target(self) -> NumberFormat:
        return NumberFormat.parse(self.format)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps in order: transforms, pruners, encoders, trainers.

    fallback          encodes what an encoder can't
    activations       what inputs of the linear layers are rounded to when the artifact runs
    keep_activations  (name, activations) exceptions; a name is a part or `layers.3.down`
    kv                the format of keys and values
    """

    steps: tuple[Step, ...]
    fallback: str = "rtn"
    calibration: Calibration = field(default_factory=Calibration)
    seed: int = 0
    activations: str = "auto"
    keep_activations: tuple[tuple[str, str], ...] = ()
    kv: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _with_encoders(self.steps))
        kinds = [METHODS.get(step.method).kind for step in self.steps]
        if "encode" not in kinds:
            raise ConfigError("the recipe encodes nothing: add a step such as rtn with a format")
        if sorted(kinds, key=KINDS.index) != kinds:
            raise ConfigError(
                "steps are out of order: preparations come first, then transforms, pruners, "
                f"encoders and, last, trainers; these are {', '.join(kinds)}"
            )
        if self.fallback != "none":
            build_encoder(self.fallback, {})
        if type(self.seed) is not int or not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed is {self.seed!r}; it must be an integer from 0 to 2**64 - 1")
        _check_word("kv", self.kv, get_args(KvFormat))
        for name in (self.activations, *(name for _, name in self.keep_activations)):
            _check_word("activations", name, get_args(ActivationFormat))

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read YAML. Raises ConfigError naming the file, and for an unknown key the nearest."""
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: can't be read as YAML: {error}") from error
        try:
            return cls.from_dict(content)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, content: object) -> Recipe:
        """From parsed YAML or JSON. Raises ConfigError."""
        values = _checked(content, cls, "the recipe")
        steps = values.get("steps")
        if not isinstance(steps, list) or not steps:
            raise ConfigError("the recipe needs steps, a list of methods")
        values["steps"] = tuple(_step(n, step) for n, step in enumerate(steps, 1))
        if "calibration" in values:
            values["calibration"] = Calibration(
                **_checked(values["calibration"], Calibration, "calibration")
            )
        if isinstance(values.get("activations"), dict):
            kept = dict(values["activations"])
            values["activations"] = kept.pop("all", "auto")
            values["keep_activations"] = tuple((str(part), name) for part, name in kept.items())
        elif "keep_activations" in values:
            raise ConfigError(
                "the recipe: unknown key keep_activations; say activations: {all: a8, head: a16}"
            )
        return cls(**values)

    def to_dict(self) -> dict[str, object]:
        """Plain data, `from_dict`'s inverse."""
        steps = [
            {
                "method": step.method,
                **({"format": step.format} if step.format else {}),
                "select": list(step.select),
                **({"options": dict(step.options)} if step.options else {}),
            }
            for step in self.steps
        ]
        kept = dict(self.keep_activations)
        run = {
            "activations": {"all": self.activations, **kept} if kept else self.activations,
            "kv": self.kv,
        }
        return {
            "steps": steps,
            "fallback": self.fallback,
            "calibration": asdict(self.calibration),
            "seed": self.seed,
            **{key: value for key, value in run.items() if value != "auto"},
        }

    def digest(self) -> str:
        """SHA-256 of what the recipe does; the calibration file's path doesn't count, its tokens
        have a digest of their own."""
        content = self.to_dict()
        calibration = {**asdict(self.calibration), "text": ""}
        text = json.dumps({**content, "calibration": calibration}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def from_flags(
    method: str,
    format: str,
    keep: Sequence[tuple[str, str]] = (),
    calibration: Calibration | None = None,
    seed: int = 0,
) -> Recipe:
    """The recipe of `--method M --format F --keep PART=F`: M on the blocks, round to nearest on
    embedding and head (in `outside_format`), exceptions last. A method of another kind brings the
    encoder it goes with.
    """
    row = METHODS.get(method)
    encoder = method if row.kind == "encode" else row.encoder
    steps = [Step(method)] if row.kind in ("prepare", "transform", "prune") else []
    steps.append(Step("rtn", format if encoder == "rtn" else outside_format(format), ALL))
    if encoder != "rtn":
        steps.append(Step(encoder, format))
    for part, kept in keep:
        outside = part in ("embed", "head") or NumberFormat.parse(kept).plain
        steps.append(Step("rtn" if outside else encoder, kept, (part,)))
    if row.kind == "train":
        steps.append(Step(method, select=ALL))
    return Recipe(tuple(steps), calibration=calibration or Calibration(), seed=seed)


def outside_format(format: str) -> str:
    """What embedding and head are rounded to where the blocks get `format`: the same, but for
    levels that are learned, which rounding to nearest can't; then integers of as many bits."""
    target = NumberFormat.parse(format)
    if target.variant != "learned":
        return format
    return str(replace(target, kind="int", variant="", bits=max(2, target.bits)))


def assign(recipe: Recipe, spec: DecoderSpec) -> dict[Role, Step]:
    """The encoding step of every matrix that one selects; shapes are checked.

    Raises ConfigError for a selector that matches nothing and for a matrix that another kind of
    step selects and none encodes, FormatError for a shape that can't take its format.
    """
    found = last_of_kind(recipe, spec, "encode")
    for step in recipe.steps:
        for role in selected(spec, step):
            if role not in found:
                raise ConfigError(
                    f"{step.method} works on {role_name(role)}, and no step encodes it; select "
                    "only what is encoded"
                )
    for role, step in found.items():
        shape = role_shape(spec, role)
        step.target.groups((shape[0], shape[1]))
    return found


def last_of_kind(recipe: Recipe, spec: DecoderSpec, kind: Kind) -> dict[Role, Step]:
    """The step of this kind that has the last word on each matrix that one selects."""
    found: dict[Role, Step] = {}
    for step in recipe.steps:
        if METHODS.get(step.method).kind == kind:
            found.update(dict.fromkeys(selected(spec, step), step))
    return found


def selected(spec: DecoderSpec, step: Step) -> tuple[Role, ...]:
    """The matrices that a step selects. Raises ConfigError when a selector matches none."""
    names = {role: matrix_names(spec, role) for role in matrices(spec)}
    for pattern in step.select:
        if not any(fnmatchcase(name, pattern) for all_of in names.values() for name in all_of):
            known = sorted({name for all_of in names.values() for name in all_of})
            raise ConfigError(
                f"step {step.method}: selector {pattern!r} matches no matrix of this model; "
                f"{nearest(pattern, known[:0] or _shortened(known))}"
            )
    return tuple(
        role
        for role, all_of in names.items()
        if any(fnmatchcase(name, pattern) for name in all_of for pattern in step.select)
    )


def matrices(spec: DecoderSpec) -> tuple[Role, ...]:
    """Everything that can be encoded: the embedding, the linear layers, an untied head."""
    return tuple(dict.fromkeys((Role("embed"), *linear_roles(spec))))


def role_name(role: Role) -> str:
    """`layers.3.down`, `layers.3.experts.5.gate`, `embed`, `head`."""
    expert = "" if role.expert is None else f"experts.{role.expert}."
    return role.part if role.layer is None else f"layers.{role.layer}.{expert}{role.part}"


def matrix_names(spec: DecoderSpec, role: Role) -> tuple[str, ...]:
    """What selectors may call a matrix, its full name first."""
    names = (role_name(role), str(role.part))
    return (*names, "head") if role.part == "embed" and spec.tied_head else names


def _with_encoders(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """`qat` in a format of its own is `qat` behind what encodes its matrices in that format."""
    trains = [METHODS.get(step.method).kind == "train" for step in steps]
    own = [step for step, train in zip(steps, trains, strict=True) if train and step.format]
    made = [Step(METHODS.get(s.method).encoder, s.format, s.select) for s in own]
    ready = [replace(step, format="") if step in own else step for step in steps]
    first = trains.index(True) if own else len(steps)
    return (*ready[:first], *made, *ready[first:])


def _shortened(names: Iterable[str]) -> list[str]:
    """Parts, and the names of the first layer: all of a deep model would drown the hint."""
    return [name for name in names if "." not in name or name.startswith("layers.0.")]


def _step(number: int, content: object) -> Step:
    where = f"step {number}"
    values = _checked(content, Step, where)
    if not isinstance(values.get("method"), str):
        raise ConfigError(f"{where}: needs a method, one of {', '.join(METHODS)}")
    select = values.get("select", list(BLOCKS))
    select = [select] if isinstance(select, str) else select
    if not isinstance(select, list) or not all(isinstance(item, str) for item in select):
        raise ConfigError(f"{where}: select is {select!r}; it must be a glob or a list of globs")
    options = values.get("options", {})
    if not isinstance(options, dict) or not isinstance(values.get("format", ""), str):
        raise ConfigError(f"{where}: options must be a mapping, and format a text")
    try:
        return Step(values["method"], values.get("format", ""), tuple(select), options)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_word(key: str, word: object, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ConfigError(f"{key} {word!r} is unknown; {nearest(str(word), list(known))}")


def _checked(content: object, kind: type[Any], where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{where} is {type(content).__name__}; it must be a mapping")
    known = [item.name for item in fields(kind)]
    for key in content:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(str(key), known)}")
    return dict(content)
