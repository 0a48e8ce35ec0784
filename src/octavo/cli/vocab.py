"""`octavo vocab`: a smaller vocabulary, and what that cost."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from octavo.cli.output import emit_json, human_decimal
from octavo.core.errors import UnsupportedError

if TYPE_CHECKING:
    from octavo.compress.quality import Quality

DIRECTORY = click.Path(path_type=Path)
_out = click.option("-o", "--out", type=DIRECTORY, required=True, help="The new directory.")


@click.group()
def command() -> None:
    """Make a model's vocabulary cheaper (docs/vocabulary.md)."""


@command.command()
@click.argument("model")
@_out
@click.option("--rank", type=click.IntRange(1), required=True, help="Of the thin tables.")
@click.option(
    "--tables",
    type=click.Choice(["head", "both", "shared"]),
    default="head",
    show_default=True,
    help="What is factored; shared: one thin table for both.",
)
@click.option("--format", "number_format", default="int8_g32", show_default=True)
@click.option("--twice", type=click.IntRange(0), default=0, show_default=True,
              help="Columns that are stored again, as what rounding left of them.")  # fmt: skip
@click.option("--refine", type=click.IntRange(0), default=0, help="Steps of descent on the KL.")
@click.option("--calibration", metavar="TEXTFILE", help="UTF-8 text. [default: Wikipedia]")
@click.option("--states", type=click.IntRange(64), default=8192, show_default=True,
              help="Tokens of it to fit to.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(2), default=4096, help="Of the text measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def factor(
    model: str,
    out: Path,
    rank: int,
    tables: str,
    number_format: str,
    twice: int,
    refine: int,
    calibration: str | None,
    states: int,
    tokens: int,
    as_json: bool,
) -> None:
    """Factor MODEL's head (and embedding) into thin tables that are served as such."""
    if refine and importlib.util.find_spec("torch") is None:
        raise UnsupportedError("--refine needs torch: `pip install 'octavo[torch]'`")
    from octavo.io.hub import resolve_model
    from octavo.vocab.job import FactorPlan, Tables, factor_model
    from octavo.vocab.material import read_texts

    plan = FactorPlan(rank, cast(Tables, tables), number_format, refine, twice)
    path = resolve_model(model)
    fitted, held_out = read_texts(path, calibration or "", states, tokens)
    quality = factor_model(path, out, plan, fitted, (held_out,))
    assert quality is not None
    if as_json:
        emit_json({"model": model, "out": str(out), "quality": quality.to_dict()})
        return
    click.echo(f"{out}: the vocabulary is two tables of rank {rank + twice}, {number_format}")
    click.echo(f"  {_told(quality)}")


@command.command()
@click.argument("model")
@_out
@click.option("--format", "number_format", required=True, help="Of the head: octavo formats.")
@click.option("--method", type=click.Choice(["rtn", "gptq"]), default="gptq", show_default=True)
@click.option("--calibration", metavar="TEXTFILE", help="UTF-8 text. [default: Wikipedia]")
@click.option("--states", type=click.IntRange(64), default=8192, show_default=True,
              help="Tokens of it to fit to.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(2), default=4096, help="Of the text measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def head(
    model: str,
    out: Path,
    number_format: str,
    method: str,
    calibration: str | None,
    states: int,
    tokens: int,
    as_json: bool,
) -> None:
    """Give MODEL's head a format of its own; the embedding keeps its codes."""
    if method == "gptq" and importlib.util.find_spec("torch") is None:
        raise UnsupportedError("gptq needs torch: `pip install 'octavo[torch]'`, or --method rtn")
    from octavo.io.hub import resolve_model
    from octavo.vocab.head import HeadPlan, Method, head_model
    from octavo.vocab.material import read_texts

    plan, path = HeadPlan(number_format, cast(Method, method)), resolve_model(model)
    fitted, held_out = read_texts(path, calibration or "", states, tokens)
    quality = head_model(path, out, plan, fitted, (held_out,))
    assert quality is not None
    if as_json:
        emit_json({"model": model, "out": str(out), "quality": quality.to_dict()})
        return
    click.echo(f"{out}: the head is in {number_format}, by {method}")
    click.echo(f"  {_told(quality)}")


def _told(quality: Quality) -> str:
    name, found = quality.texts[0]
    return (
        f"{name}: mean KL {found.kl_mean.value:.4f} (95 %: {found.kl_mean.low:.4f} to "
        f"{found.kl_mean.high:.4f}), same top token {found.same_top.value:.1%}, perplexity "
        f"{found.perplexity.value:.3f} from {found.base_perplexity.value:.3f}"
    )


@command.command()
@click.argument("model")
@_out
@click.option("--text", required=True, metavar="TEXTFILE", help="UTF-8, of one kind.")
@click.option("--count", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--words", type=click.IntRange(1), default=5, show_default=True, help="At most.")
@click.option(
    "--price", type=click.FloatRange(0), default=0.0, show_default=True,
    help="Tokens that a phrase must save for each nat that it costs.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=200, show_default=True)
@click.option("--context", type=click.IntRange(8), default=128, show_default=True)
@click.option("--whole", is_flag=True, help="Train every matrix, not the new rows alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def phrases(
    model: str,
    out: Path,
    text: str,
    count: int,
    words: int,
    price: float,
    steps: int,
    context: int,
    whole: bool,
    as_json: bool,
) -> None:
    """Give MODEL single tokens for phrases of a text, and train them."""
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("training phrases needs torch: `pip install 'octavo[torch]'`")
    from octavo.compress.calibration import read_whole
    from octavo.io.hub import resolve_model
    from octavo.train import TrainConfig
    from octavo.vocab.mine import MinePlan
    from octavo.vocab.phrase_job import PhrasePlan, add_phrases

    config = TrainConfig(steps, 1e-3, batch=4, evaluate_every=steps, warmup=min(10, steps))
    plan = PhrasePlan(MinePlan(count, words, price=price), config, context, whole)
    found = add_phrases(resolve_model(model), out, plan, read_whole(text))
    if as_json:
        emit_json({"model": model, "out": str(out), "saved": found.saved, **asdict(found)})
        return
    click.echo(f"{out}: {found.saved:.1%} fewer tokens of the text's last tenth")
    click.echo("words  phrases  uses  tokens saved")
    for row in found.savings:
        click.echo(f"{row.words:5}  {row.phrases:7}  {row.uses:4}  {row.saved:12}")
    click.echo(f"nats per token there: {found.before:.4f} before training, {found.after:.4f} after")


@command.command()
@click.argument("model")
@_out
@click.option("--text", "texts", multiple=True, required=True, metavar="TEXTFILE",
              help="UTF-8; its tokens are kept. May be repeated.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def trim(model: str, out: Path, texts: tuple[str, ...], as_json: bool) -> None:
    """Keep the tokens of MODEL that the texts need, and those that spell any byte."""
    from octavo.compress.calibration import read_whole
    from octavo.io.hub import resolve_model
    from octavo.vocab.job import trim_model

    before, after = trim_model(resolve_model(model), out, [read_whole(name) for name in texts])
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if as_json:
        emit_json({"model": model, "out": str(out), "tokens": after, "of": before, "bytes": size})
        return
    click.echo(f"{out}: {after:,} of {before:,} tokens, {human_decimal(size)} of weights")
