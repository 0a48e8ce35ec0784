"""`octavo eval`: what a model lost against its base, over a text."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octavo.cli.options import json_option, read_text, runtime_config, runtime_options
from octavo.cli.output import emit_json, fields
from octavo.cli.scorers import load_tokenizer_of, open_reference, open_scorer

if TYPE_CHECKING:
    from octavo.backends.base import RuntimeConfig
    from octavo.evals.divergence import DivergenceReport
    from octavo.evals.perplexity import PerplexityReport
    from octavo.evals.scorer import Scorer
    from octavo.evals.statistics import Estimate
    from octavo.evals.windows import Protocol, Window
    from octavo.io.tokenizer import Tokenizer

WINDOW = 512
TEXT_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.option("--against", metavar="REF", help="The base. [default: MODEL in its own format]")
@click.option("--text", "text_file", type=TEXT_FILE, required=True, help="A UTF-8 text file.")
@click.option("--stride", type=click.IntRange(1), help="Tokens between windows. [default: context]")
@click.option(
    "--protocol",
    type=click.Choice(["standard", "llama.cpp"]),
    default="standard",
    help="llama.cpp scores the second half of every window, as llama-perplexity does.",
)
@click.option("--tokens", "limit", type=click.IntRange(2), help="Use only so much of the text.")
@click.option("--reference", is_flag=True, help="Run the base in fp32 by the torch decoder.")
@runtime_options
@json_option
def command(
    model: str,
    against: str | None,
    text_file: Path,
    stride: int | None,
    protocol: Protocol,
    limit: int | None,
    reference: bool,
    as_json: bool,
) -> None:
    """Measure perplexity, KL divergence and flipped tokens of MODEL against a base.

    Both run in lock step over the text, in windows of --context tokens (512 by default). Runtime
    options such as --format count for MODEL; the base keeps its own format. MODEL and REF may be
    written llama.cpp:FILE.gguf, which is then scored by llama.cpp; REF may be logits:FILE, as
    llama-perplexity writes with --kl-divergence-base (with --protocol llama.cpp). Where MODEL is to
    be compared with nothing but itself (no --against, no --format), only its perplexity is
    measured.
    """
    config = runtime_config()
    window = config.context or WINDOW
    config = dataclasses.replace(config, context=window, max_seqs=1)
    base = against or (model if reference or config.format != "source" else None)
    text = read_text(text_file)
    windows = _windows(load_tokenizer_of(model), text, window, stride, protocol, limit)
    compared = _measure(model, base, config, reference, windows)
    conditions = {
        "text": str(text_file), "context": window, "stride": stride, "protocol": protocol,
    }  # fmt: skip
    if as_json:
        emit_json({"model": compared.model, "base": compared.base, **conditions,
                   "report": compared.report})  # fmt: skip
    else:
        click.echo(_heading(compared, conditions))
        click.echo(fields(_lines(compared.report)))


@dataclass(frozen=True, slots=True)
class _Compared:
    """A report with the names of what was compared."""

    model: str
    base: str | None
    report: PerplexityReport | DivergenceReport


def _windows(
    tokenizer: Tokenizer,
    text: str,
    context: int,
    stride: int | None,
    protocol: Protocol,
    limit: int | None,
) -> tuple[Window, ...]:
    """The text's windows; each begins with BOS where the tokenizer puts one before a text."""
    from octavo.evals.windows import split

    plain = tokenizer.encode(text, add_special=False)[:limit]
    begins = tokenizer.encode("a")[:1] == [tokenizer.bos_id]
    return split(plain, context, stride, tokenizer.bos_id if begins else None, protocol)


def _measure(
    model: str, base: str | None, config: RuntimeConfig, reference: bool, windows: Sequence[Window]
) -> _Compared:
    from octavo.evals.divergence import divergence
    from octavo.evals.perplexity import perplexity

    with closing(open_scorer(model, config)) as scorer:
        if base is None:
            return _Compared(scorer.name, None, perplexity(scorer, windows))
        plain = dataclasses.replace(config, format="source", keep=(), activations="auto")
        with closing(_base_scorer(base, plain, reference)) as other:
            report = divergence(scorer, other, windows, _progress)
            return _Compared(scorer.name, other.name, report)


def _base_scorer(name: str, config: RuntimeConfig, reference: bool) -> Scorer:
    return open_reference(name, config) if reference else open_scorer(name, config)


def _progress(done: int, windows: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\rwindow {done} of {windows}", err=True, nl=done == windows)


def _heading(compared: _Compared, conditions: Mapping[str, object]) -> str:
    report = compared.report
    against = f" against {compared.base}" if compared.base else ""
    return (
        f"{compared.model}{against}: {report.tokens} tokens scored in {report.windows} windows of "
        f"{conditions['context']}, {conditions['protocol']} protocol, text {conditions['text']}"
    )


def _lines(report: PerplexityReport | DivergenceReport) -> dict[str, str]:
    """llama-perplexity's names, with 95 % intervals."""
    from octavo.evals.perplexity import PerplexityReport

    if isinstance(report, PerplexityReport):
        return {"PPL": _interval(report.perplexity), "NLL (nats)": _interval(report.nll)}
    return {
        "Mean PPL(Q)": _interval(report.perplexity),
        "Mean PPL(base)": _interval(report.base_perplexity),
        "Cor(ln(PPL(Q)), ln(PPL(base)))": f"{report.correlation:.2%}",
        "Mean ln(PPL(Q)/PPL(base))": _interval(report.ln_ratio),
        "Mean PPL(Q)/PPL(base)": _interval(report.ratio),
        "Mean PPL(Q)-PPL(base)": _interval(report.difference),
        "Mean KLD": _interval(report.kl_mean),
        "Maximum KLD": f"{report.kl_max:.6f}",
        "99.9% KLD": _interval(report.kl_999),
        "99.0% KLD": _interval(report.kl_99),
        "Median KLD": _interval(report.kl_median),
        "Mean Δp": _percent(report.mean_delta_p),
        "RMS Δp": _percent(report.rms_delta_p),
        "Same top p": _percent(report.same_top),
    }


def _interval(figure: Estimate) -> str:
    return f"{figure.value:.6f} ± {figure.error:.6f}   95 %: {figure.low:.6f} to {figure.high:.6f}"


def _percent(figure: Estimate) -> str:
    parts = (figure.value, figure.error, figure.low, figure.high)
    value, error, low, high = (f"{100 * part:.3f}" for part in parts)
    return f"{value} ± {error} %   95 %: {low} to {high} %"
