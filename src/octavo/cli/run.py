"""`octavo run`: one prompt, its answer as it comes, and what it took."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from octavo.cli.options import (
    collapsed_option,
    grammar,
    grammar_options,
    json_option,
    runtime_config,
    runtime_options,
    sampling_options,
    sampling_params,
)
from octavo.cli.output import emit_json, requantized_line, summary_line, unread_line, warn
from octavo.cli.prefix import keep_prefix, prefix_option, read_prefix, store_directory
from octavo.core.errors import UserError

if TYPE_CHECKING:
    from octavo.api import LLM
    from octavo.backends.base import Receipt
    from octavo.engine.answers import Answers, Completion
    from octavo.engine.request import SamplingParams


@click.command()
@click.argument("model")
@click.argument("prompt")
@prefix_option
@click.option("--raw", is_flag=True, help="Continue the text; leave the chat template out.")
@runtime_options
@collapsed_option
@sampling_options
@grammar_options
@json_option
def command(model: str, prompt: str, prefix_file: Path | None, raw: bool, as_json: bool) -> None:
    """Answer PROMPT ("-" reads it from standard input) with MODEL.

    MODEL is a directory, a .gguf file, a hub id or a demo model. The model's chat template is
    applied where it has one. Greedy unless told otherwise. The last line says how fast, from how
    many bytes per token, on which kernels.
    """
    from octavo.api import LLM

    config, params = runtime_config(), sampling_params()
    text, held_to = _read(prompt), grammar()
    before_it = "" if prefix_file is None else read_prefix(prefix_file)
    store = None if prefix_file is None else store_directory()
    with LLM(model, format=config.format, config=config, prefix_store=store) as llm:
        receipt = llm.receipt()
        warn(receipt.notes)
        if receipt.requantized and not as_json:
            click.echo(requantized_line(use.format for use in receipt.kernels))
        if prefix_file is not None:
            text = _join(before_it, text, raw)
            way = "run --raw" if raw else "run"
            keep_prefix(
                llm, prefix_file, lambda question: _tokens(llm, before_it, question, raw), way
            )
        before = _roof(llm)
        completion = _answer(llm, _Question(text, params, raw, held_to), show=not as_json)
        roof = _mean(before, _roof(llm))
        if as_json:
            fields = _as_json(model, config.format, completion, receipt)
            more = {"step_rows": llm.step_rows, "unread_keys": llm.unread_keys}
            emit_json({**fields, **more, **_shares(completion, receipt, roof, llm.step_rows)})
        else:
            click.echo("\n\n" + _last_line(completion, receipt, roof))
            if llm.unread_keys:
                click.echo(unread_line(llm.unread_keys), err=True)


def _read(prompt: str) -> str:
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise UserError("the prompt is empty: give a text, or - to read it from standard input")
    return text


def _join(prefix: str, prompt: str, raw: bool) -> str:
    return prefix + prompt if raw else f"{prefix.rstrip()}\n\n{prompt}"


def _tokens(llm: LLM, prefix: str, question: str, raw: bool) -> Sequence[int]:
    """The prompt that a question behind a prefix becomes."""
    from octavo.io.chat_template import render_chat

    text = _join(prefix, question, raw)
    if raw or llm.tokenizer.chat_template is None:
        return llm.tokenizer.encode(text)
    return render_chat(llm.tokenizer, [{"role": "user", "content": text}])


class _Question(NamedTuple):
    text: str
    params: SamplingParams
    raw: bool
    grammar: str


def _answer(llm: LLM, question: _Question, show: bool) -> Completion:
    """The finished answer; what comes is shown at once."""
    with _answers(llm, question) as deltas:
        for delta in deltas:
            if show:
                click.echo(delta.text, nl=False)
            if delta.completion is not None:
                return delta.completion
    raise UserError("the answer was cut off: the model was closed")


def _answers(llm: LLM, question: _Question) -> Answers:
    text, params, raw, held_to = question
    if raw or llm.tokenizer.chat_template is None:
        return llm.stream(text, params, held_to)
    return llm.chat([{"role": "user", "content": text}], params, stream=True, grammar=held_to)


def kernel_names(receipt: Receipt) -> list[str]:
    """Distinct kernels, those that read the most bytes first."""
    read: dict[str, int] = {}
    for use in receipt.kernels:
        read[use.kernel] = read.get(use.kernel, 0) + use.bytes_per_token
    return sorted(read, key=lambda name: (-read[name], name))


def _roof(llm: LLM) -> float | None:
    """Bytes per second of reading the model's own weights now, where the executor can."""
    from octavo.evals.roofline import ReadsWeights, weights_speed

    executor = llm.executor
    return weights_speed(executor, llm.receipt()) if isinstance(executor, ReadsWeights) else None


def _mean(before: float | None, after: float | None) -> float | None:
    """Of the speeds on both sides of an answer: the harmonic one, since times add up."""
    return 2 / (1 / before + 1 / after) if before and after else None


def _shares(
    completion: Completion, receipt: Receipt, roof: float | None, rows: int
) -> dict[str, object]:
    """Both speeds as shares of the limit that binds each; nothing without a roof."""
    from octavo.evals.roofline import Roofs, arithmetic_peaks, share, work

    if roof is None:
        return {}
    limits = Roofs(roof, tuple(arithmetic_peaks(receipt).items()))
    rows = min(rows, completion.prompt_tokens)
    prefill = share(completion.prefill_tokens_per_second, work(receipt, rows), limits)
    decode = share(completion.decode_tokens_per_second, work(receipt), limits)
    return {
        "read_bytes_per_second": roof,
        "prefill_share": {"bound": prefill.bound, "share": prefill.value},
        "decode_share": {"bound": decode.bound, "share": decode.value},
    }


def _last_line(completion: Completion, receipt: Receipt, roof: float | None) -> str:
    from octavo.evals.roofline import Roofs, arithmetic_peaks, share, work

    rate, of_limit = completion.decode_tokens_per_second, ""
    if roof is not None and rate:
        limits = Roofs(roof, tuple(arithmetic_peaks(receipt).items()))
        of_limit = str(share(rate, work(receipt), limits))
    return summary_line(
        rate, receipt.bytes_per_token, kernel_names(receipt), receipt.threads, of_limit
    )


def _as_json(
    model: str, number_format: str, completion: Completion, receipt: Receipt
) -> dict[str, object]:
    return {
        "model": model,
        "text": completion.text,
        "tokens": list(completion.tokens),
        "prompt_tokens": completion.prompt_tokens,
        "cached_tokens": 0 if completion.cache is None else completion.cache.read,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "time_to_first_token": completion.time_to_first_token,
        "prefill_tokens_per_second": completion.prefill_tokens_per_second,
        "decode_tokens_per_second": completion.decode_tokens_per_second,
        "bytes_per_token": receipt.bytes_per_token,
        "packed_bytes": receipt.packed_bytes,
        "kernels": kernel_names(receipt),
        "fallbacks": [use for use in receipt.kernels if use.fallback],
        "isa": receipt.isa,
        "threads": receipt.threads,
        "kv": receipt.kv_format,
        "kv_bytes_per_token": receipt.kv_bytes_per_token,
        "format": number_format,
        "formats": sorted({use.format for use in receipt.kernels}),
        "requantized": receipt.requantized,
        "seed": completion.seed,
        "notes": list(receipt.notes),
    }
