"""`octavo bench`: prefill and decode speed in llama-bench's table, and the memory's own speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octavo.cli.options import collapsed_option, json_option, runtime_config, runtime_options
from octavo.cli.output import (
    Align,
    emit_json,
    human_binary,
    human_decimal,
    markdown_table,
    requantized_line,
)
from octavo.core.errors import UnsupportedError

if TYPE_CHECKING:
    from octavo.backends.base import Receipt, RuntimeConfig
    from octavo.evals.roofline import Share
    from octavo.evals.throughput import BenchResult, SpeedTest
    from octavo.spec.decoder import DecoderSpec

HEADER = ("model", "size", "params", "backend", "threads", "test", "t/s")


@click.command()
@click.argument("model", required=False)
@click.option("-p", "prompt", type=click.IntRange(0, 1 << 20), default=512, help="Prompt tokens.")
@click.option("-n", "count", type=click.IntRange(0, 1 << 20), default=128, help="Tokens to decode.")
@click.option("-d", "depth", type=click.IntRange(0, 1 << 20), default=0, help="Context before.")
@click.option("-r", "repetitions", type=click.IntRange(1, 1000), default=5, help="Repetitions.")
@click.option("-t", "threads", type=click.IntRange(0, 1024), default=0, help="Same as --threads.")
@click.option("--stages", is_flag=True, help="Also print where the time of each test went.")
@click.option("--overhead", is_flag=True, help="Time the engine alone, without a model.")
@runtime_options
@collapsed_option
@json_option
def command(
    model: str | None,
    prompt: int,
    count: int,
    depth: int,
    repetitions: int,
    threads: int,
    stages: bool,
    overhead: bool,
    as_json: bool,
) -> None:
    """Measure prefill and decode speed against the speed of the memory.

    Prints llama-bench's table (mean ± standard deviation). pp N: a prompt of N random tokens.
    tg N: N greedy single-token steps. Between the repetitions a buffer as large as what a token
    reads is read by as many threads, and bare arithmetic loops run: every speed is also printed as
    a share of the limit that binds it. A run on an unsteady machine is repeated.

    With --overhead instead: what the engine itself takes per decode step, for 1, 8 and 32
    sequences, with an executor that does nothing.
    """
    if overhead == (model is not None):
        raise click.UsageError("name a MODEL, or give --overhead and no model")
    if model is None:
        _show_overhead(as_json)
        return
    from octavo.api import LLM
    from octavo.evals.throughput import measure, speed_tests

    wanted = speed_tests(prompt, count, depth)
    config = _config(runtime_config(), threads, wanted)
    with LLM(model, format=config.format, config=config) as llm:
        result = measure(llm.executor, wanted, repetitions)
        receipt = llm.receipt()  # now that it knows what the steps saw
        if as_json:
            shares = _shares(receipt, result, wanted, llm.executor.config)
            emit_json(_as_json(model, llm.spec, receipt, result, shares))
        else:
            if receipt.requantized:
                click.echo(requantized_line(use.format for use in receipt.kernels) + "\n")
            click.echo(_table(model, llm.spec, receipt, result))
            if stages:
                click.echo("\n" + _stage_table(result))
            click.echo("\n" + "\n".join(_lines(receipt, result, wanted, llm.executor.config)))


def _show_overhead(as_json: bool) -> None:
    from octavo.evals.overhead import measure_overhead

    found = measure_overhead()
    if as_json:
        emit_json([{**dataclasses.asdict(one), "budget": one.budget} for one in found])
        return
    rows = [
        (str(one.sequences), *(f"{t * 1e6:.0f}" for t in (one.best, one.median, one.budget)))
        for one in found
    ]
    header = ("sequences", "best µs/step", "median", "budget")
    click.echo(markdown_table(header, rows, ("right",) * 4))


def _config(config: RuntimeConfig, threads: int, wanted: tuple[SpeedTest, ...]) -> RuntimeConfig:
    """One sequence, with a context that just holds the longest test unless told otherwise."""
    context = config.context or max(2, *(test.depth + test.tokens for test in wanted))
    return dataclasses.replace(
        config, context=context, max_seqs=1, threads=threads or config.threads
    )


def _table(model: str, spec: DecoderSpec, receipt: Receipt, result: BenchResult) -> str:
    rows = [
        (
            f"{_short(model)} {_format(receipt)}",
            human_binary(receipt.packed_bytes),
            f"{parameters(spec) / 1e6:.2f} M",
            f"{receipt.backend} {receipt.isa}",
            str(receipt.threads),
            speed.test,
            f"{speed.mean:.2f} ± {speed.deviation:.2f}",
        )
        for speed in result.speeds
    ]
    return markdown_table(HEADER, rows, ("left",) + ("right",) * 2 + ("left",) + ("right",) * 3)


def _stage_table(result: BenchResult) -> str:
    """Of each test's fastest repetition, ms per token and share of each stage."""
    from octavo.evals.throughput import stage_milliseconds

    columns = [stage_milliseconds(speed) for speed in result.speeds]
    if not all(columns):
        raise UnsupportedError("this backend keeps no stage times; leave out --stages")
    rows = [
        (stage, *(f"{spent[stage]:.4f} ({spent[stage] / sum(spent.values()):.1%})"
                  for spent in columns))
        for stage in columns[0]
    ]  # fmt: skip
    header = ("ms/token", *(speed.test for speed in result.speeds))
    right: Align = "right"
    align: list[Align] = ["left", *[right for _ in columns]]
    return markdown_table(header, rows, align)


def _short(model: str) -> str:
    """A path's last part, so that the table stays narrow."""
    return Path(model).name.removesuffix(".gguf") or model


def _format(receipt: Receipt) -> str:
    """The format that most of the bytes have."""
    sizes: dict[str, int] = {}
    for use in receipt.kernels:
        sizes[use.format] = sizes.get(use.format, 0) + use.bytes_per_token
    return max(sizes, key=lambda name: sizes[name], default="")


def parameters(spec: DecoderSpec) -> int:
    """Weights of the model, a tied embedding counted once."""
    from math import prod

    from octavo.spec.graph import role_shape, roles

    return sum(prod(role_shape(spec, role)) for role in roles(spec))


def _shares(
    receipt: Receipt, result: BenchResult, wanted: Sequence[SpeedTest], config: RuntimeConfig
) -> list[Share]:
    from octavo.evals.throughput import speed_share

    return [speed_share(result, test, receipt, config.max_tokens) for test in wanted]


def _lines(
    receipt: Receipt, result: BenchResult, wanted: Sequence[SpeedTest], config: RuntimeConfig
) -> Iterator[str]:
    """What the speeds are shares of, and which kernels ran."""
    for test, share in zip(wanted, _shares(receipt, result, wanted, config), strict=True):
        yield f"{test.name}: {share.bound}-bound, {share}"
    yield _limits_line(receipt, result)
    if not result.steady:
        yield (
            f"NOT STEADY: the memory probes of the steadiest of {result.attempts} runs differ by "
            f"{result.spread:.0%}: something else uses this machine; take no figure from it"
        )
    for use in receipt.kernels:
        slow = f" (FALLBACK: {use.fallback})" if use.fallback else ""
        yield f"{use.role}: {use.kernel}, {use.format}, activations {use.activations}{slow}"
    yield from receipt.notes


def _limits_line(receipt: Receipt, result: BenchResult) -> str:
    roofs, probe = result.roofs(), result.bandwidth[0]
    size = human_decimal(receipt.bytes_per_token)
    peaks = ", ".join(f"{kind} {rate / 1e9:.0f} Gop/s" for kind, rate in roofs.peaks)
    return (
        f"limits in the same run, {probe.threads} threads: {roofs.memory / 1e9:.1f} GB/s "
        f"({probe.probe} probe, cyclic buffer of {size}, spread {result.spread:.0%}); {peaks}"
    )


def _as_json(
    model: str, spec: DecoderSpec, receipt: Receipt, result: BenchResult, shares: Sequence[Share]
) -> object:
    from octavo.evals.throughput import stage_milliseconds

    return {
        "model": model,
        "parameters": parameters(spec),
        "receipt": receipt,
        "tests": [
            {
                "test": speed.test,
                "tokens_per_second": speed.mean,
                "deviation": speed.deviation,
                "samples": list(speed.samples),
                "stages": stage_milliseconds(speed),
                "bound": share.bound,
                "share": share.value,
                "memory_share": share.memory,
                "compute_share": share.compute,
            }
            for speed, share in zip(result.speeds, shares, strict=True)
        ],
        "bandwidth": list(result.bandwidth),
        "peaks": list(result.peaks),
        "spread": result.spread,
        "steady": result.steady,
        "attempts": result.attempts,
    }
