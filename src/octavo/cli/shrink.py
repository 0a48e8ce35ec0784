"""`octavo shrink`: whole layers, heads, channels or experts less, as an ordinary smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from octavo.cli.options import json_option
from octavo.cli.output import emit_json, human_decimal
from octavo.core.errors import UserError


@click.command()
@click.argument("model")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="A new directory."
)
@click.option("--layers", type=click.IntRange(1), help="That many stay, by block influence.")
@click.option("--groups", type=click.IntRange(1), help="Key/value heads of a layer that stay.")
@click.option("--channels", type=click.IntRange(1), help="Of each MLP that stay.")
@click.option("--experts", type=click.IntRange(1), help="Of each layer that stay.")
@click.option("--calibration", metavar="TEXTFILE", default="", help="[default: Wikipedia]")
@click.option("--sequences", type=click.IntRange(1), default=8, help="Of the text. [default: 8]")
@click.option("--length", type=click.IntRange(8), default=512, help="Of each. [default: 512]")
@click.option("--tokens", type=click.IntRange(2), default=4096, help="Of the text measured.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default="bf16")
@json_option
def command(
    model: str,
    out: Path,
    layers: int | None,
    groups: int | None,
    channels: int | None,
    experts: int | None,
    calibration: str,
    sequences: int,
    length: int,
    tokens: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Write what matters most of MODEL as the smaller model OUT, and measure what that cost.

    One half of the text says what matters, the other half measures. The result is a checkpoint like
    any other: compress it, train it, run it.
    """
    from octavo.compress.recipe import Calibration
    from octavo.compress.shrink import Sizes
    from octavo.compress.shrink_job import Asked, shrink
    from octavo.io.hub import resolve_model

    sizes = Sizes(layers, groups, channels, experts)
    if sizes == Sizes():
        raise UserError("say what is to stay: --layers, --groups, --channels or --experts")
    kind = cast(Literal["fp32", "bf16", "fp16"], dtype)
    asked = Asked(sizes, Calibration(calibration, sequences, length), tokens, kind)
    done = shrink(resolve_model(model), out, asked)
    if as_json:
        emit_json({"model": model, "out": str(out), **done.to_dict()})
        return
    click.echo(
        f"{out}: {human_decimal(done.parameters)} weights of {human_decimal(done.before)}; layers "
        f"{', '.join(map(str, done.layers))} of {done.of_layers} stay"
    )
    for name, found in done.quality.texts:
        kl = found.kl_mean
        click.echo(
            f"  {name}: mean KL {kl.value:.4f} (95 %: {kl.low:.4f} to {kl.high:.4f}), perplexity "
            f"{found.perplexity.value:.3f} from {found.base_perplexity.value:.3f}"
        )
