"""`octavo distill`: a teacher's smaller student, trained on what the teacher predicts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import cast

import click

from octavo.cli.output import emit_json
from octavo.core.errors import UnsupportedError

DIRECTORY = click.Path(path_type=Path)


@click.command()
@click.argument("teacher")
@click.option("-o", "--out", type=DIRECTORY, required=True, help="The new directory.")
@click.option("--text", required=True, metavar="TEXTFILE", help="UTF-8; its end is held out.")
@click.option("--keep", type=click.IntRange(1), required=True, help="Layers of the student.")
@click.option("--loss", "kind", type=click.Choice(["forward", "reverse", "jsd"]),
              default="forward", show_default=True)  # fmt: skip
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--on-policy", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Share of windows that the student writes.")  # fmt: skip
@click.option("--steps", type=click.IntRange(0), default=200, show_default=True)
@click.option("--context", type=click.IntRange(8), default=128, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    teacher: str,
    out: Path,
    text: str,
    keep: int,
    kind: str,
    temperature: float,
    on_policy: float,
    steps: int,
    context: int,
    as_json: bool,
) -> None:
    """Distil TEACHER into itself with fewer layers, and write the student as a checkpoint."""
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("distilling needs torch: `pip install 'octavo[torch]'`")
    from octavo.compress.artifact import write_config, write_tokenizer
    from octavo.compress.calibration import read_whole
    from octavo.io.checkpoint import open_model
    from octavo.io.hub import resolve_model
    from octavo.io.new_directory import new_directory
    from octavo.train import TrainConfig
    from octavo.train.distill import Divergence, Kind
    from octavo.train.distill_run import DistillPlan, distil
    from octavo.train.hf_export import save_masters
    from octavo.vocab.measure import tokenizer_of

    settings = TrainConfig(steps, 5e-4, batch=4, evaluate_every=max(1, steps))
    divergence = Divergence(cast(Kind, kind), temperature=temperature)
    plan = DistillPlan(keep, settings, divergence, on_policy, context)
    with open_model(resolve_model(teacher)) as model, new_directory(out) as directory:
        ids = tokenizer_of(model).encode(read_whole(text), add_special=False)
        student, report = distil(model.source, model.spec, plan, ids)
        write_config(directory, model, {"num_hidden_layers": keep})
        write_tokenizer(directory, model)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        save_masters(student, config, directory)
    before, after = report.held_out[0][1], report.held_out[-1][1]
    if as_json:
        emit_json({"model": teacher, "out": str(out), "kl_before": before, "kl_after": after})
        return
    click.echo(f"{out}: {keep} layers; held-out {report.watched} KL {before:.4f} -> {after:.4f}")
