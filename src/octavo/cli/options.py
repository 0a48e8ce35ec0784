"""Options that several commands share, as decorators, and the typed values they stand for.

The options keep their values in the click context, so that a command's function has only its own
parameters and asks `runtime_config()` and `sampling_params()` for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from octavo.cli.sizes import SizeType
from octavo.core.errors import UserError

if TYPE_CHECKING:
    from octavo.backends.base import RuntimeConfig
    from octavo.engine.request import SamplingParams

T = TypeVar("T")
MAX_CONTEXT = 1 << 24
# as octavo.backends.base has them, which is not imported to print a help page
KV_FORMATS = (
    "auto", "bf16", "fp32", "fp16", "int8", "int8_dot", "int4", "fp8_e4m3", "fp8_e5m2", "kivi2",
    "kivi4",
)  # fmt: skip
ACTIVATIONS = (
    "auto", "a8", "a16", "a8a16", "abf16", "a32", "a8_token", "a8_tensor", "a8_static",
    "llm_int8",
)  # fmt: skip
MAX_THREADS = 1024


class Decorator(Protocol):
    """An option as a decorator of a command's function."""

    def __call__(self, function: Callable[..., T], /) -> Callable[..., T]: ...


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> object:
    ctx.meta[f"octavo.{param.name}"] = value
    return value


def _kept(name: str) -> Any:
    return click.get_current_context().meta[f"octavo.{name}"]


def _option(name: str, kind: click.ParamType[Any], default: object, text: str) -> Decorator:
    return click.option(
        name, type=kind, default=default, expose_value=False, callback=_keep, help=text
    )


def _flag(name: str, text: str) -> Decorator:
    return click.option(name, is_flag=True, expose_value=False, callback=_keep, help=text)


def _integer(name: str, low: int, high: int, default: int, text: str) -> Decorator:
    return _option(name, click.IntRange(low, high), default, text)


def _number(name: str, low: float, high: float, default: float, text: str) -> Decorator:
    return _option(name, click.FloatRange(low, high), default, text)


def _choice(name: str, words: tuple[str, ...], default: str, text: str) -> Decorator:
    return _option(name, click.Choice(words), default, text)


def _stack(options: tuple[Decorator, ...]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorators applied so that `--help` lists them in this order."""

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        return reduce(lambda inner, option: option(inner), reversed(options), function)

    return decorate


def _exceptions(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    pairs = tuple(_exception(word, param, ctx) for word in value)
    parts = [part for part, _ in pairs]
    for part in parts:
        if parts.count(part) > 1:
            raise click.BadParameter(f"{part!r} is given more than once", ctx, param)
    ctx.meta["octavo.keep"] = pairs
    return pairs


def _exception(word: str, param: click.Parameter, ctx: click.Context) -> tuple[str, str]:
    part, sign, number_format = word.partition("=")
    if not (part and sign and number_format):
        raise click.BadParameter(f"{word!r} is not PART=FORMAT, such as head=int8_g32", ctx, param)
    return part, number_format


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

keep_option = click.option(
    "--keep",
    "keep",
    multiple=True,
    metavar="PART=FORMAT",
    expose_value=False,
    callback=_exceptions,
    help="A part's own format, such as head=int8_g32; may be repeated.",
)

collapsed_option = _flag("--allow-collapsed", "Run an artifact that has lost its source.")

runtime_options = _stack(
    (
        click.option(
            "--format",
            "number_format",
            default="source",
            expose_value=False,
            callback=_keep,
            help="Requantize to this format, such as int4_g32. [default: the source's own]",
        ),
        keep_option,
        _choice(
            "--kv",
            KV_FORMATS,
            "auto",
            "Format of keys and values. [default: the artifact's own, else bf16]",
        ),
        _choice(
            "--activations",
            ACTIVATIONS,
            "auto",
            "Precision of activations. [default: the artifact's own, else the weights' best]",
        ),
        _integer("--context", 0, MAX_CONTEXT, 0, "Longest sequence. [default: the model's own]"),
        _integer("--threads", 0, MAX_THREADS, 0, "Threads. [default: what this process may use]"),
        _option("--isa", click.STRING, "", "Instruction set. [default: OCTAVO_ISA, or the best]"),
        _option("--memory", SizeType(rate=False), None, "At most for weights and cache: 1GB."),
        _flag("--strict", "Refuse slow generic kernels."),
    )
)

sampling_options = _stack(
    (
        _integer("--max-tokens", 1, MAX_CONTEXT, 256, "Tokens to generate at most."),
        _number("--temperature", 0.0, 100.0, 0.0, "0 always takes the likeliest token."),
        _integer("--top-k", 0, 1 << 20, 0, "Draw among the k likeliest; 0 is off."),
        _number("--top-p", 0.0, 1.0, 1.0, "Draw among the likeliest that sum to p."),
        _number("--min-p", 0.0, 1.0, 0.0, "Drop tokens below this share of the likeliest."),
        _number("--repetition-penalty", 0.01, 100.0, 1.0, "Divide logits of tokens seen."),
        _number("--presence-penalty", -2.0, 2.0, 0.0, "Subtract from tokens already given."),
        _number("--frequency-penalty", -2.0, 2.0, 0.0, "Subtract per time a token was given."),
        _option(
            "--seed",
            click.IntRange(0, (1 << 64) - 1),
            None,
            "Makes draws repeatable. [default: drawn once and reported]",
        ),
        click.option(
            "--stop",
            multiple=True,
            expose_value=False,
            callback=_keep,
            help="End the answer at this text; may be repeated.",
        ),
        _flag("--ignore-eos", "Go on past the model's own end token."),
    )
)


grammar_options: Decorator = _stack(
    (
        _option(
            "--json-schema", click.Path(path_type=Path), None,
            "Hold the answer to the JSON schema in this file.",
        ),
        _option("--regex", click.STRING, None, "Hold the whole answer to a regular expression."),
    )
)  # fmt: skip


def grammar() -> str:
    """What this command line's `grammar_options` hold the answer to; "" for nothing."""
    from octavo.engine.grammar import json_grammar, regex_grammar

    schema, regex = _kept("json_schema"), _kept("regex")
    if schema is not None and regex is not None:
        raise UserError("--json-schema and --regex exclude each other: give one of them")
    if schema is not None:
        return json_grammar(read_text(schema))
    return "" if regex is None else regex_grammar(regex)


def runtime_config() -> RuntimeConfig:
    """The RuntimeConfig that this command line's `runtime_options` stand for."""
    from octavo.backends.base import RuntimeConfig

    return RuntimeConfig(
        context=_kept("context"),
        kv_format=_kept("kv"),
        threads=_kept("threads"),
        activations=_kept("activations"),
        format=_kept("number_format"),
        keep=_kept("keep"),
        strict=_kept("strict"),
        memory=int(_kept("memory") or 0),
        isa=_kept("isa"),
        allow_collapsed=click.get_current_context().meta.get("octavo.allow_collapsed", False),
    )


def kept_parts() -> tuple[tuple[str, str], ...]:
    """This command line's `--keep` as (part, format)."""
    pairs: tuple[tuple[str, str], ...] = _kept("keep")
    return pairs


def sampling_params() -> SamplingParams:
    """The SamplingParams that this command line's `sampling_options` stand for."""
    from octavo.engine.request import SamplingParams

    return SamplingParams(
        max_tokens=_kept("max_tokens"),
        temperature=_kept("temperature"),
        top_k=_kept("top_k"),
        top_p=_kept("top_p"),
        min_p=_kept("min_p"),
        repetition_penalty=_kept("repetition_penalty"),
        presence_penalty=_kept("presence_penalty"),
        frequency_penalty=_kept("frequency_penalty"),
        seed=_kept("seed"),
        stop=_kept("stop"),
        ignore_eos=_kept("ignore_eos"),
    )


def read_text(path: Path) -> str:
    """A text file's content. Raises UserError naming a file that is empty or is no UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}: name a readable text file") from error
    except UnicodeDecodeError as error:
        place = f"byte {error.start}"
        raise UserError(f"{path}: {place} is not UTF-8: convert the file to UTF-8") from error
    if not text:
        raise UserError(f"{path}: the file is empty: name one that holds a text")
    return text
