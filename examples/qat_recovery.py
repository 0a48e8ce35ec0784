"""How much of what post-training quantization loses does training win back?

python examples/qat_recovery.py MODEL --format int3_g64 --steps 200 [--code] [--work DIRECTORY]

Every post-training method, then quantization-aware training from the best of them, at the same
bits and on the same calibration text; perplexities are the native executor's on held-out text:
Wikipedia's odd articles, or with --code odd modules of Python's standard library. DIRECTORY keeps
every artifact and the training's last checkpoint: the same command given again goes on there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from octavo.backends.base import RuntimeConfig
from octavo.backends.native.backend import load
from octavo.compress.base import Encoded, TrainTask
from octavo.compress.job import Material, compress, read_material
from octavo.compress.methods.qat import Qat
from octavo.compress.recipe import Calibration, Recipe, Step
from octavo.evals.perplexity import window_nll
from octavo.evals.scorer import ExecutorScorer
from octavo.evals.statistics import Blocks, Estimate, estimate
from octavo.evals.windows import split
from octavo.formats.quantized import QuantizedTensor
from octavo.io.checkpoint import open_model
from octavo.io.corpora import stdlib_code
from octavo.io.hub import resolve_model
from octavo.io.memory_views import CodedView, FloatView
from octavo.io.weights import TensorView, WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import linear_roles, role_shape, roles

CONTEXT = 512
F64 = npt.NDArray[np.float64]
TRANSFORMS = {"awq": "awq_clip"}  # method: the encoder that follows it


@dataclass(frozen=True, slots=True)
class Run:
    """One model on the held-out text: nats per token, and the minutes that making it took."""

    name: str
    losses: F64
    minutes: float

    def perplexity(self) -> Estimate:
        blocks = Blocks(len(self.losses))
        replicates = np.exp(blocks.mean_replicates(self.losses))
        return estimate(float(np.exp(self.losses.mean())), replicates)


def recovered(base: Run, before: Run, after: Run) -> Estimate:
    """(before - after) / (before - base) in perplexity; the draws of all three are the same."""
    blocks = Blocks(len(base.losses))
    full, lost, won = (np.exp(blocks.mean_replicates(r.losses)) for r in (base, before, after))
    values = [np.exp(run.losses.mean()) for run in (base, before, after)]
    share = (values[1] - values[2]) / (values[1] - values[0])
    return estimate(float(share), (lost - won) / (lost - full))


def score(path: Path, material: Material) -> F64:
    """Of the model or artifact as the native executor serves it."""
    with open_model(path) as opened:
        return score_source(opened.source, opened.spec, material)


def score_source(source: WeightSource, spec: DecoderSpec, material: Material) -> F64:
    text = material.held_out[0]
    executor = load(spec, source, RuntimeConfig(context=CONTEXT, max_seqs=1))
    with closing(ExecutorScorer(executor, source.describe())) as scorer:
        windows = split(text.tokens, CONTEXT, None, text.begin)
        return np.concatenate([window_nll(scorer, window) for window in windows])


class Replaced:
    """A source with some of its tensors replaced by trained ones."""

    def __init__(self, source: WeightSource, views: dict[Role, TensorView]) -> None:
        self._source, self._views = source, views

    def tensor(self, role: Role) -> TensorView:
        return self._views.get(role) or self._source.tensor(role)

    def has(self, role: Role) -> bool:
        return self._source.has(role)

    def describe(self) -> str:
        return f"{self._source.describe()}, trained"


def trained(artifact: Path, material: Material, options: argparse.Namespace, work: Path) -> Run:
    """What the step `qat` of a recipe makes of an artifact's blocks, or of all its matrices."""
    method = Qat(
        options.steps, options.rate, options.batch, options.context,
        precision=options.precision, patience=options.patience,
    )  # fmt: skip
    began = time.perf_counter()
    with open_model(options.path) as source, open_model(artifact) as made:
        spec = made.spec
        linear = dict.fromkeys((Role("embed"), *linear_roles(spec)))
        chosen = [role for role in linear if options.whole or role.layer is not None]
        vectors = [role for role in roles(spec) if len(role_shape(spec, role)) == 1]
        task = TrainTask(
            source=source.source,
            spec=spec,
            encoded={role: Encoded(partial(whole, made.source, role)) for role in chosen},
            vectors={role: partial(vector, made.source, role) for role in vectors},
            tokens=material.tokens,
            directory=work,
            seed=0,
        )
        views: dict[Role, TensorView] = {}
        for role, tensor in method.train(task).items():
            if isinstance(tensor, QuantizedTensor):
                views[role] = CodedView(tensor)
            else:
                views[role] = FloatView(tensor.detach().numpy())
        minutes = (time.perf_counter() - began) / 60
        print(f"| held-out divergence by step: {divergences(work)} |", flush=True)
        losses = score_source(Replaced(made.source, views), spec, material)
    run = Run(f"{artifact.name}, then qat ({options.steps} steps)", losses, minutes)
    print(line(run), flush=True)
    return run


def divergences(work: Path) -> str:
    """On the last tenth of the calibration sequences, which also chooses among the weights."""
    found = json.loads((work / "state.json").read_text(encoding="utf-8"))["held_out"]
    return ", ".join(f"{step}: {loss:.4f}" for step, loss in found)


def whole(source: WeightSource, role: Role) -> QuantizedTensor:
    view = source.tensor(role)
    return view.quantized(0, view.shape[0])


def vector(source: WeightSource, role: Role) -> torch.Tensor:
    return torch.from_numpy(source.tensor(role).float32().copy())


def encoding(method: str, options: argparse.Namespace) -> tuple[Step, ...]:
    target, around = options.format, Step("rtn", options.outside, ("embed", "head"))
    blocks = (Step(method), Step(TRANSFORMS[method], target)) if method in TRANSFORMS else ()
    own = {"iterations": options.iterations} if method == "autoround" else {}
    first, *rest = blocks or (Step(method, target, options=own),)
    return (first, around, *rest) if method in TRANSFORMS else (around, first)


def made(method: str, material: Material, options: argparse.Namespace, out: Path) -> Run:
    recipe = Recipe(encoding(method, options), calibration=settings(options))
    began = time.perf_counter()
    if not out.exists():
        compress(options.path, recipe, out, Material(material.tokens, (), material.name))
    minutes = (time.perf_counter() - began) / 60
    run = Run(method, score(out, material), minutes)
    print(line(run), flush=True)
    return run


def settings(options: argparse.Namespace) -> Calibration:
    return Calibration(options.text, options.sequences, options.length, options.precision)


def code(scratch: Path) -> str:
    """A file of the even modules: its first half calibrates, none of it is judged on."""
    path = scratch / "even-modules.py"
    path.write_text(stdlib_code("calibration"), encoding="utf-8")
    return str(path)


def judged_on(material: Material, options: argparse.Namespace) -> Material:
    """Material with the one text that is scored: of two held-out ones the second is code."""
    return replace(
        material, held_out=material.held_out[1:] if options.code else material.held_out[:1]
    )


def line(run: Run) -> str:
    found = run.perplexity()
    interval = f"{found.low:.3f} to {found.high:.3f}"
    return f"| {run.name} | {found.value:.3f} ({interval}) | {run.minutes:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--format", default="int3_g64")
    parser.add_argument("--whole", action="store_true", help="embedding and head in it, too")
    parser.add_argument("--methods", default="rtn,gptq,hqq,awq")
    parser.add_argument("--iterations", type=int, default=200, help="of autoround")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=255)
    parser.add_argument("--precision", default="fp32", help="of calibration and training")
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--code", action="store_true")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=8192)
    parser.add_argument("--work", type=Path, help="kept, and gone on with; else nothing is")
    options = parser.parse_args()
    options.path = resolve_model(options.model)
    options.outside = options.format if options.whole else "int8_g64"
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        options.text = code(work) if options.code else ""
        check_same(options, work)
        compare(options, work)


def check_same(options: argparse.Namespace, work: Path) -> None:
    """What is found there is only gone on with by the options that made it."""
    names = ("path", "format", "outside", "text", "sequences", "length", "iterations", "precision")
    mine = {name: str(getattr(options, name)) for name in names}
    file = work / "options.json"
    if file.exists() and (found := json.loads(file.read_text(encoding="utf-8"))) != mine:
        raise SystemExit(f"{file}: made with {found}; give these, or another --work")
    file.write_text(json.dumps(mine), encoding="utf-8")


def compare(options: argparse.Namespace, scratch: Path) -> None:
    probe = Recipe(encoding("gptq", options), calibration=settings(options))
    material = judged_on(read_material(options.path, probe, limit=options.held_out), options)
    base = Run("as it came", score(options.path, material), 0.0)
    print(f"| {options.format} | perplexity (95 %) | minutes |\n|---|---|---|")
    print(line(base), flush=True)
    runs = {
        method: made(method, material, options, scratch / method)
        for method in options.methods.split(",")
    }
    best = min(runs, key=lambda method: float(runs[method].losses.mean()))
    after = trained(scratch / best, material, options, scratch / "training")
    share = recovered(base, runs[best], after)
    print(
        f"\nrecovered {share.value:.1%} ({share.low:.1%} to {share.high:.1%}) of what {best} "
        f"loses; {material.held_out[0].name}, {len(base.losses)} tokens scored, "
        f"{options.sequences} x {options.length} to calibrate and train on, "
        f"{options.steps} steps of {options.batch} x {options.context} tokens at {options.rate:g}"
    )


if __name__ == "__main__":
    main()
