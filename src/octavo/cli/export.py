"""`octavo export`: a model as other engines read it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from octavo.cli.options import json_option
from octavo.cli.output import emit_json


@click.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="What to write.")
@click.option(
    "--to", "target", type=click.Choice(["compressed-tensors", "hf"]), required=True,
    help="A directory for vLLM and transformers, with or without its codes.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True,
    help="Of what is stored as floats; fp32 keeps every value.",
)  # fmt: skip
@json_option
def command(model: str, out: Path, target: str, dtype: str, as_json: bool) -> None:
    """Write MODEL as OUT for another engine.

    compressed-tensors keeps the codes of the layers (vLLM, transformers); hf dequantizes all of it.
    A format that the target can't say is refused, never rounded.
    """
    from octavo.compress.export import export_compressed_tensors, export_hf
    from octavo.io.hub import resolve_model

    write = export_hf if target == "hf" else export_compressed_tensors
    write(resolve_model(model), out, cast(Literal["fp32", "bf16", "fp16"], dtype))
    if as_json:
        emit_json({"out": str(out), "to": target, "dtype": dtype})
    else:
        click.echo(f"{out}: {target}")
