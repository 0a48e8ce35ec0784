"""`octavo bench-serve`: a load on a server, and what it felt like."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import click

from octavo.cli.options import json_option
from octavo.cli.output import emit_json
from octavo.cli.progress import progress_of

if TYPE_CHECKING:
    from octavo.serve.load import LoadReport, Spread, Workload

_TIMEOUT = 600.0
_ROWS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}


def _number(name: str, default: int, text: str, low: int = 1) -> click.Option:
    return click.Option([name], type=click.IntRange(low), default=default, show_default=True,
                        help=text)  # fmt: skip


class _Command(click.Command):
    """The workload's options beside those of the call."""

    workload = (
        _number("--num-prompts", 64, "Requests in all."),
        _number("--max-concurrency", 16, "Requests at once at most."),
        _number("--input-len", 128, "Tokens of a prompt, about."),
        _number("--output-len", 128, "Tokens of an answer."),
        _number("--shared-prefix-len", 0, "Tokens that all prompts begin with.", low=0),
        _number("--turns", 1, "Turns of each conversation."),
        _number("--seed", 0, "Of prompts and arrivals.", low=0),
        click.Option(["--request-rate"], type=click.FloatRange(0, min_open=True),
                     help="Requests a second, Poisson. [default: no pause]"),
        click.Option(["--warm"], is_flag=True, help="Send every prompt once before it counts."),
    )  # fmt: skip

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*self.workload, *super().get_params(ctx)]

    def invoke(self, ctx: click.Context) -> object:
        names = [option.name for option in self.workload if option.name]
        ctx.meta["octavo.workload"] = {name: ctx.params.pop(name) for name in names}
        return super().invoke(ctx)


@click.command(cls=_Command)
@click.argument("url")
@click.option("--model", help="The model to ask for. [default: the first that is served]")
@click.option("--api-key", help="The server's key.")
@click.option("--goodput", type=(float, float), default=(1000.0, 100.0), show_default=True,
              help="Milliseconds to the first token, and a token, of a good request.")  # fmt: skip
@json_option
def command(
    url: str, model: str | None, api_key: str | None, goodput: tuple[float, float], as_json: bool
) -> None:
    """Load the server at URL with chats, and print throughput and latencies.

    The first token counts, not the first chunk. Prompts are random, so nothing is warm unless
    --shared-prefix-len, --turns or --warm make it so; what the server found cached is printed.
    """
    from octavo.serve.load import Load, ServerUnderLoad, report

    work = _workload()

    async def run() -> LoadReport:
        async with ServerUnderLoad(url, model, api_key, _TIMEOUT) as server:
            load = Load(work, server.send)
            with progress_of("requests", work.requests) as advance:
                samples, seconds = await load.run(advance)
        return report(samples, seconds, *goodput)

    found = asyncio.run(run())
    if as_json:
        emit_json({"workload": work, **dataclasses.asdict(found)})
    else:
        _print(work, found)
    if found.failed:
        click.get_current_context().exit(1)


def _workload() -> Workload:
    from octavo.serve.load import Workload

    kept = click.get_current_context().meta["octavo.workload"]
    return Workload(
        requests=kept["num_prompts"], concurrency=kept["max_concurrency"],
        rate=kept["request_rate"], prompt=kept["input_len"], output=kept["output_len"],
        shared=kept["shared_prefix_len"], turns=kept["turns"], seed=kept["seed"],
        warm=kept["warm"],
    )  # fmt: skip


def _print(work: Workload, found: LoadReport) -> None:
    rule = "=" * 50
    click.echo(f"{' Serving Benchmark Result ':=^50}")
    for name, value in (
        ("Successful requests:", str(found.completed)),
        ("Failed requests:", str(found.failed)),
        ("Maximum request concurrency:", str(work.concurrency)),
        ("Benchmark duration (s):", f"{found.duration:.2f}"),
        ("Total input tokens:", str(found.total_input)),
        ("Cached input tokens:", str(found.total_cached)),
        ("Total generated tokens:", str(found.total_output)),
        ("Request throughput (req/s):", f"{found.request_throughput:.2f}"),
        ("Request goodput (req/s):", f"{found.request_goodput:.2f}"),
        ("Output token throughput (tok/s):", f"{found.output_throughput:.2f}"),
        ("Total token throughput (tok/s):", f"{found.total_token_throughput:.2f}"),
    ):
        click.echo(f"{name:<40}{value:<10}")
    for field, title in _ROWS.items():
        times: Spread | None = getattr(found, field)
        if times is not None:
            _print_spread(field.upper(), title, times)
    click.echo(rule)
    for error in found.errors:
        click.echo(error, err=True)


def _print_spread(short: str, title: str, found: Spread) -> None:
    click.echo(f"{title:-^50}")
    for name, value in (
        ("Mean", found.mean), ("Median", found.median), ("P95", found.p95), ("P99", found.p99),
    ):  # fmt: skip
        label = f"{name} {short} (ms):"
        click.echo(f"{label:<40}{value:<10.2f}")
