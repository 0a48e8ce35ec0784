"""`octavo compress`: a smaller model in a directory of its own, and what that cost."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octavo.cli.options import KV_FORMATS, json_option, keep_option, kept_parts
from octavo.cli.output import emit_json, human_decimal
from octavo.core.errors import UnsupportedError, UserError

if TYPE_CHECKING:
    from octavo.compress.budgeted import Choice
    from octavo.compress.forecast import Forecast
    from octavo.compress.job import Material, Progress, Result
    from octavo.compress.quality import Quality
    from octavo.compress.recipe import Recipe
    from octavo.compress.report import CompressionReport

GATE_FAILED = 3
FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("-o", "--out", type=DIRECTORY, required=True, help="The new directory.")
@click.option("--recipe", "recipe_file", type=FILE, help="Steps as YAML (docs/compress.md).")
@click.option("--method", help="How the blocks are encoded. [default: rtn]")
@click.option("--format", "number_format", help="Of every matrix, such as int4_g64.")
@click.option(
    "--prune", metavar="METHOD:HOW", help="wanda:0.5, magnitude:2:4, sparsegpt:16x32:0.5."
)
@keep_option
@click.option("--activations", multiple=True, metavar="[PART=]A", help="a8, head=a16, ... (docs).")
@click.option("--kv", type=click.Choice(KV_FORMATS), help="Format of keys and values.")
@click.option(
    "--budget", metavar="HOW", help="4.25bpw, 90MB, kl:0.02: formats for all; 90MB@4096: KV too."
)
@click.option("--calibration", metavar="TEXTFILE", help="UTF-8 text. [default: Wikipedia]")
@click.option("--sequences", type=click.IntRange(1), help="Of the text. [default: 32]")
@click.option("--length", type=click.IntRange(8), help="Tokens of each. [default: 2048]")
@click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), help="Shifts the sequences.")
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="TEXTFILE",
    help="Measure on this too. [default: code]",
)
@click.option("--tokens", type=click.IntRange(2), default=4096, help="Of each text measured.")
@click.option("--max-kl", type=click.FloatRange(0), help="Exit with status 3 above this mean KL.")
@json_option
def command(
    model: str,
    out: Path,
    recipe_file: Path | None,
    method: str | None,
    number_format: str | None,
    prune: str | None,
    activations: tuple[str, ...],
    kv: str | None,
    budget: str | None,
    calibration: str | None,
    sequences: int | None,
    length: int | None,
    seed: int | None,
    texts: tuple[str, ...],
    tokens: int,
    max_kl: float | None,
    as_json: bool,
) -> int:
    """Compress MODEL into the directory OUT, and measure what that cost.

    By a recipe, or by flags: --method encodes the blocks in --format; embedding and head are
    rounded to it; --keep makes exceptions; --budget chooses a format for every matrix. Half of the
    calibration text calibrates, the other half measures: KL divergence against MODEL, as both run
    natively. A run that was interrupted goes on
    where it ended when the same command is given again.
    """
    _need_torch()
    from octavo.compress.budgeted import keep
    from octavo.compress.job import check_output, compress, read_material
    from octavo.core.allocator import keep_freed_memory
    from octavo.io.hub import resolve_model

    keep_freed_memory()
    if budget is None:
        recipe = _recipe(recipe_file, method, number_format, kept_parts(), prune)
        if method not in (None, "rtn"):
            _say_outside(number_format, kept_parts())
    else:
        recipe = _text_of_budget(
            budget, method, recipe_file or number_format or prune or kept_parts(), kv
        )
    recipe = _with_runtime(recipe, activations, kv)
    recipe = _with_calibration(recipe, calibration, sequences, length, seed)
    check_output(out)
    path = resolve_model(model)
    material = read_material(path, recipe, texts, tokens)
    with _progress_bar() as progress:
        choice = None
        if budget is not None:
            recipe, choice = _chosen(path, recipe, budget, method, material, out, progress)
        result = compress(path, recipe, out, material, progress)
    if choice is not None:
        keep(out, choice)
    assert result.quality is not None
    if as_json:
        emit_json({"model": model, "out": str(out), "report": result.report.to_dict(),
                   "quality": result.quality.to_dict(), "forecast": result.forecast})  # fmt: skip
    else:
        click.echo("\n".join(_lines(result, result.quality)))
    return _gate(result.quality, max_kl)


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("compressing needs torch: `pip install 'octavo[torch]'`")


def _recipe(
    file: Path | None,
    method: str | None,
    number_format: str | None,
    keep: tuple[tuple[str, str], ...],
    prune: str | None,
) -> Recipe:
    from octavo.compress.recipe import Recipe, from_flags

    if file is not None:
        if method or number_format or keep or prune:
            raise UserError("--recipe says all: leave --method, --format, --keep and --prune out")
        return Recipe.load(file)
    if number_format is None:
        raise UserError("give --format, such as int4_g64, or a --recipe")
    if prune is None:
        return from_flags(method or "rtn", number_format, keep)
    from octavo.compress.pruning import pruned_recipe

    return pruned_recipe(prune, method, number_format, keep)


def _say_outside(number_format: str | None, keep: tuple[tuple[str, str], ...]) -> None:
    """On stderr, where embedding and head are not in the format that was asked for."""
    from octavo.compress.recipe import outside_format

    if number_format is None or outside_format(number_format) == number_format:
        return
    left = [part for part in ("embed", "head") if part not in dict(keep)]
    if left:
        click.echo(
            f"octavo: {' and '.join(left)}: {outside_format(number_format)}, since the levels of "
            f"{number_format} are learned; --keep {left[0]}=F chooses another format",
            err=True,
        )


def _with_runtime(recipe: Recipe, activations: tuple[str, ...], kv: str | None) -> Recipe:
    """The recipe, with what flags say of activations and of keys and values."""
    pairs = [word.rpartition("=") for word in activations]
    for_all = [name for part, _, name in pairs if not part]
    if len(for_all) > 1:
        raise UserError(f"--activations {' and '.join(for_all)}: give one for all, then PART=A")
    return replace(
        recipe,
        activations=for_all[0] if for_all else recipe.activations,
        keep_activations=(
            *recipe.keep_activations, *((part, name) for part, _, name in pairs if part),
        ),
        kv=kv or recipe.kv,
    )  # fmt: skip


def _text_of_budget(budget: str, method: str | None, other: object, kv: str | None) -> Recipe:
    """Checks what goes with --budget, before anything is read."""
    from octavo.compress.budgeted import Budget, check_method, placeholder

    if other:
        raise UserError(
            "--budget chooses the formats: leave --recipe, --format, --keep and --prune out"
        )
    if Budget.parse(budget).tokens and kv:
        raise UserError(f"--budget {budget} chooses the format of keys and values: leave --kv out")
    check_method(method or "")
    return placeholder()


def _chosen(
    model: Path,
    recipe: Recipe,
    budget: str,
    method: str | None,
    material: Material,
    out: Path,
    progress: Progress | None,
) -> tuple[Recipe, Choice]:
    from octavo.compress.budgeted import Budget, budgeted, sensitivity_file

    assert material.tokens is not None
    kept, tokens = sensitivity_file(out), material.tokens
    return budgeted(model, recipe, Budget.parse(budget), tokens, kept, method or "", progress)


def _with_calibration(
    recipe: Recipe, text: str | None, sequences: int | None, length: int | None, seed: int | None
) -> Recipe:
    """The recipe, with what flags say of its text."""
    old = recipe.calibration
    new = replace(
        old,
        text=old.text if text is None else text,
        sequences=sequences or old.sequences,
        length=length or old.length,
    )
    return replace(recipe, calibration=new, seed=recipe.seed if seed is None else seed)


@contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    """A bar on a terminal's stderr; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {"compressing": bar.add_task("compressing", total=None)}

        def show(stage: str, done: int, total: int) -> None:
            name = stage if stage in ("measuring", "sensitivity") else "compressing"
            if name not in tasks:
                tasks[name] = bar.add_task(name)
            bar.update(tasks[name], completed=done, total=total)

        yield show


def _gate(quality: Quality, max_kl: float | None) -> int:
    if max_kl is None or quality.kl <= max_kl:
        return 0
    click.echo(f"octavo: mean KL {quality.kl:.4f} exceeds --max-kl {max_kl:g}", err=True)
    return GATE_FAILED


def _lines(result: Result, quality: Quality) -> Iterator[str]:
    report = result.report
    yield (
        f"{result.out}: {human_decimal(report.bytes)} of weights, "
        f"{report.bits_per_weight:.2f} bits each; the source has "
        f"{human_decimal(report.source_bytes)}"
    )
    if result.storage != "octavo":
        yield f"  stored as {result.storage}: engines that read it load this directory too"
    yield from _encoded(report)
    yield from _cast(report)
    for matrix in report.fallbacks():
        yield f"  {matrix.name} by {matrix.method} instead: {matrix.fallback}"
    for fold in report.rolled_back():
        yield f"  {fold.method} at {fold.producer} rolled back: {fold.reason}"
    yield from (f"  {note}" for note in report.notes())
    yield _forecast(result.forecast)
    yield f"against the source ({quality.executor}, windows of {quality.context} tokens):"
    for name, found in quality.texts:
        kl, top = found.kl_mean, found.same_top
        yield (
            f"  {name}: mean KL {kl.value:.4f} (95 %: {kl.low:.4f} to {kl.high:.4f}), "
            f"same top token {top.value:.1%}, perplexity {found.perplexity.value:.3f} "
            f"from {found.base_perplexity.value:.3f}, {found.tokens} tokens"
        )
        yield (
            f"    99.9 % of KL below {found.kl_999.value:.3f}; the true token's probability moves "
            f"by {found.mean_delta_p.value:+.2%} on average, {found.rms_delta_p.value:.2%} RMS"
        )
    if quality.collapsed:
        yield "  collapsed: it agrees with the source on fewer than half of the top tokens"


def _forecast(forecast: Forecast) -> str:
    peak = "" if forecast.peak is None else f", {human_decimal(forecast.peak)} came"
    line = (
        f"  peak memory: {human_decimal(forecast.predicted_peak)} forecast{peak}, "
        f"{human_decimal(forecast.earlier_peak)} before, reading the text"
    )
    if forecast.seconds is None:
        return line
    said = forecast.predicted_seconds
    expected = "" if said is None else f" ({said:.0f} s forecast after two blocks)"
    return f"{line}; compressing took {forecast.seconds:.0f} s{expected}"


def _encoded(report: CompressionReport) -> Iterator[str]:
    from octavo.compress.report import by_format

    for (name, method), matrices in by_format(report.matrices()).items():
        errors = [matrix.weight_error for matrix in matrices]
        yield (
            f"  {len(matrices)} matrices as {name} by {method}: {_mean(m.bits for m in matrices)} "
            f"bits, {100 * sum(errors) / len(errors):.2f} % of the weights' energy lost"
        )


def _cast(report: CompressionReport) -> Iterator[str]:
    """What casts did, over all matrices of a format."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for matrix in report.matrices():
        for what, counts in (matrix.casts or {}).items():
            sums = found.setdefault((matrix.format, what), dict.fromkeys(counts, 0))
            for key, count in counts.items():
                sums[key] += count
    for (name, what), sums in found.items():
        yield (
            f"  {name}, {what}: of {sums['values']} values {sums['overflow']} overflow, "
            f"{sums['underflow']} become 0, {sums['rounded']} lose digits"
        )


def _mean(values: Sequence[float] | Iterator[float]) -> str:
    found = list(values)
    return f"{sum(found) / len(found):.2f}"
