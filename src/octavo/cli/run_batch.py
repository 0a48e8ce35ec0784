"""`octavo run-batch`: a file of requests, answered line by line."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octavo.cli.options import json_option, runtime_config, runtime_options
from octavo.cli.output import emit_json
from octavo.cli.progress import progress_of

if TYPE_CHECKING:
    from octavo.serve.batch import BatchReport


@click.command()
@click.argument("requests", type=click.Path(dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="Where the answers go; an earlier run's is continued.")  # fmt: skip
@click.option("--model", required=True, help="The model that answers.")
@click.option("--max-num-seqs", "max_seqs", type=click.IntRange(1, 1024), default=16,
              show_default=True, help="Requests that run together.")  # fmt: skip
@runtime_options
@json_option
def command(requests: Path, output: Path, model: str, max_seqs: int, as_json: bool) -> None:
    """Answer every line of REQUESTS (JSONL in OpenAI's batch format) into OUTPUT.

    Requests run ordered by shared prefix. A run that was stopped, even by kill -9, goes on where it
    was; every line is answered, or explained with an error of its own. The exit status is 1 when
    some line failed.
    """
    from octavo.serve.batch import Batch, BatchReport, pending, read_lines
    from octavo.serve.launch import serve_model

    lines = read_lines(requests)
    left = pending(lines, output)
    report = BatchReport()
    if left:
        config = dataclasses.replace(runtime_config(), max_seqs=max_seqs)
        served = serve_model(model, config, max_waiting=0)
        try:
            with output.open("ab") as out, progress_of("requests", len(left)) as advance:
                batch = Batch(served, out, advance)
                report = asyncio.run(batch.run(left, parallel=2 * max_seqs))
        finally:
            served.client.close()
    report.before = len(lines) - len(left)
    _tell(report, as_json)
    if report.failed:
        click.get_current_context().exit(1)


def _tell(report: BatchReport, as_json: bool) -> None:
    fields = dataclasses.asdict(report)
    if as_json:
        emit_json(fields)
    else:
        click.echo(
            "   ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields.items())
        )
