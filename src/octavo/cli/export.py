"""`octavo export`: a model as other engines read it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal, cast

import click

from octavo.cli.options import json_option
from octavo.cli.output import emit_json
from octavo.core.errors import UserError


@click.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="What to write.")
@click.option(
    "--to", "target", type=click.Choice(["compressed-tensors", "hf", "gguf"]), required=True,
    help="A directory for vLLM and transformers, with or without its codes; a file for llama.cpp.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default=None,
    help="Of what is stored as floats in a directory; fp32, the default, keeps every value.",
)  # fmt: skip
@click.option(
    "--requantize", is_flag=True,
    help="With gguf: encode anew what no type holds exactly, and say what that cost.",
)  # fmt: skip
@json_option
def command(
    model: str, out: Path, target: str, dtype: str | None, requantize: bool, as_json: bool
) -> None:
    """Write MODEL as OUT for another engine.

    compressed-tensors keeps the codes of the layers (vLLM, transformers); hf dequantizes all of it;
    gguf is one file with each tensor in the type that holds it (llama.cpp). A format that the
    target can't say is refused, never rounded unless --requantize says so.
    """
    from octavo.io.hub import resolve_model

    if target == "gguf":
        _gguf(resolve_model(model), out, dtype, requantize, as_json)
        return
    if requantize:
        raise UserError("--requantize is for --to gguf; the other targets never round codes")
    from octavo.compress.export import export_compressed_tensors, export_hf

    write = export_hf if target == "hf" else export_compressed_tensors
    write(resolve_model(model), out, cast(Literal["fp32", "bf16", "fp16"], dtype or "fp32"))
    if as_json:
        emit_json({"out": str(out), "to": target, "dtype": dtype or "fp32"})
    else:
        click.echo(f"{out}: {target}")


def _gguf(model: Path, out: Path, dtype: str | None, requantize: bool, as_json: bool) -> None:
    from octavo.compress.export_gguf import export_gguf

    if dtype is not None:
        raise UserError("--dtype is not for --to gguf: floats keep the type they have")
    rounded = export_gguf(model, out, requantize)
    if as_json:
        emit_json({"out": str(out), "to": "gguf", "requantized": [asdict(r) for r in rounded]})
        return
    click.echo(f"{out}: gguf")
    for tensor in rounded:
        click.echo(
            f"  {tensor.name}: {tensor.format} to {tensor.type}, "
            f"{100 * tensor.error:.4f} % of its energy lost"
        )
