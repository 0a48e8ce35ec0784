"""Distil a model into itself with fewer layers, four ways at equal tokens, and compare.

python examples/distill_smollm2.py MODEL [--keep 4] [--steps 60] [--volumes 32 128] [--svg OUT.svg]
    [--precision bf16] [--code]

labels, data (half of it written by the teacher, filtered), logits, on-policy: each student sees the
same number of tokens, and is judged by KL(teacher || student) on text that none has seen: articles
of Wikipedia, or with --code modules of Python's standard library.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from octavo.backends.base import RuntimeConfig
from octavo.backends.native.backend import load
from octavo.backends.reference.options import ReferenceOptions
from octavo.evals.statistics import Blocks, Estimate
from octavo.formats.number_format import FP32
from octavo.io.checkpoint import open_model
from octavo.io.corpora import stdlib_code, wikipedia
from octavo.io.hub import resolve_model
from octavo.io.tokenizer import load_tokenizer
from octavo.train import Labels, ModelTeacher, QatModel, TrainConfig, Trainer
from octavo.train.data import I64, Corpus, make_corpus
from octavo.train.distill import DistillLoss, Divergence
from octavo.train.filter import Limits, mix, sift
from octavo.train.generate import Writing, student_writer, write
from octavo.train.losses import Loss
from octavo.train.policy import Policy, PolicyCorpus
from octavo.train.source import TrainedSource
from octavo.train.students import drop_layers, evenly

PROMPT = 16
SHARE = 0.5  # of generated windows, and of windows that the student writes


@dataclass(frozen=True)
class Setting:
    """What all students share."""

    teacher: QatModel
    taught: ModelTeacher
    text: Corpus
    kept: tuple[int, ...]
    config: TrainConfig
    runtime: RuntimeConfig

    def student(self) -> QatModel:
        spec, masters = drop_layers(self.teacher.spec, self.teacher.masters, self.kept)
        return QatModel(spec, masters, dict.fromkeys(masters, FP32), self.teacher.options)


def read(options: argparse.Namespace) -> Setting:
    path = resolve_model(options.model)
    with open_model(path) as opened:
        gguf = opened.metadata if opened.kind == "gguf" else None
        tokenizer = load_tokenizer(path, gguf)
        plain = ReferenceOptions(format="fp32")
        teacher = QatModel.load(opened.source, opened.spec, plain)
    ids = [
        tokenizer.encode(text[: options.characters], add_special=False)
        for text in texts(options.code)
    ]
    text = make_corpus(*ids, options.context)
    text = Corpus(text.train, text.held_out[: options.held_out])
    config = TrainConfig(
        options.steps, options.rate, warmup=max(1, options.steps // 12), batch=options.batch,
        evaluate_every=options.steps, precision=options.precision,
    )  # fmt: skip
    runtime = RuntimeConfig(
        context=options.context + 1, max_seqs=16, kv_tokens=16 * (options.context + 32), threads=1
    )
    kept = evenly(len(teacher.spec.layers), options.keep)
    return Setting(teacher, ModelTeacher(teacher), text, kept, config, runtime)


def texts(code: bool) -> tuple[str, str]:
    """To train on and to judge on."""
    corpus = stdlib_code if code else wikipedia
    return corpus("calibration"), corpus("evaluation")


def written(setting: Setting, count: int) -> I64:
    """Windows by the teacher behind the beginnings of windows of text, filtered."""
    prompts = setting.text.train[:count, :PROMPT].tolist()
    length = setting.text.context + 1 - PROMPT
    source = TrainedSource(setting.teacher)
    with closing(load(setting.teacher.spec, source, setting.runtime)) as executor:
        texts = write(executor, prompts, Writing(length, top_p=0.95, seed=1))
    weights = {role: w.detach() for role, w in setting.teacher.prepared().items()}

    def nats(text: Sequence[int]) -> float:
        with torch.no_grad():
            return float(setting.teacher.loss(np.array([text]), weights))

    found = sift(texts, Limits(), setting.text.held_out.tolist(), nats)
    print(f"  {len(texts)} written, {len(found.kept)} kept, refused {dict(found.refused)}")
    return np.array([texts[i] for i in found.kept], np.int64)


def mixed(setting: Setting, generated: I64) -> Corpus:
    """Text and generated windows, half and half, as many of each as there are generated."""
    count = min(2 * len(generated), 2 * len(setting.text.train))
    return Corpus(mix(setting.text.train, generated, SHARE, count), setting.text.held_out)


def judged(setting: Setting, student: QatModel) -> Estimate:
    """Mean KL(teacher || student) of held-out predictions, with its 95 % interval."""
    loss, batch = DistillLoss(setting.taught), Corpus.holding_out(setting.text)
    rows = []
    with torch.no_grad():
        weights = student.prepared()
        for i in range(len(batch.tokens)):
            one = batch[i : i + 1]
            logits = student.logits(one.tokens[:, :-1], weights).view(1, setting.text.context, -1)
            rows.append(loss.per_token(logits, one).double().numpy().ravel())
    values = np.concatenate(rows)
    return Blocks(len(values)).mean(values)


def trained(setting: Setting, corpus: Callable[[QatModel], Corpus], loss: Loss) -> Estimate:
    student = setting.student()
    Trainer(student, corpus(student), setting.config, loss=loss).run()
    return judged(setting, student)


def svg(points: Sequence[tuple[int, Estimate]]) -> str:
    """Held-out KL against the number of generated windows (logarithmic), with intervals."""
    low, high = min(p.low for _, p in points), max(p.high for _, p in points)
    first, last = np.log2(points[0][0]), np.log2(points[-1][0])
    across = [60 + 320 * (np.log2(n) - first) / max(last - first, 1) for n, _ in points]

    def up(value: float) -> float:
        return 220 - 180 * (value - low) / (high - low)

    marks = [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(p.low):.1f}" y2="{up(p.high):.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{up(p.value):.1f}" r="3"/>'
        f'<text x="{x:.1f}" y="240" stroke="none" text-anchor="middle">{n}</text>'
        for x, (n, p) in zip(across, points, strict=True)
    ]
    line = " ".join(f"{x:.1f},{up(p.value):.1f}" for x, (_, p) in zip(across, points, strict=True))
    labels = [
        f'<text x="50" y="{up(v):.1f}" stroke="none" text-anchor="end">{v:.3f}</text>'
        for v in (low, high)
    ]
    title = "held-out KL (nats) against windows that the teacher wrote"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 420 260" font-size="11" '
        f'font-family="sans-serif" stroke="black"><text x="60" y="20" stroke="none">{title}</text>'
        f'<polyline points="{line}" fill="none"/>{"".join(marks)}{"".join(labels)}</svg>\n'
    )


def report(name: str, found: Estimate, start: float) -> None:
    seconds = time.perf_counter() - start
    interval = f"{found.low:.4f} to {found.high:.4f}"
    print(f"| {name} | {found.value:.4f} | {interval} | {seconds:.0f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--keep", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--characters", type=int, default=600_000)
    parser.add_argument("--volumes", type=int, nargs="*", default=[16, 64, 120])
    parser.add_argument("--code", action="store_true")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    setting = read(options)
    print(f"layers {setting.kept} of {len(setting.teacher.spec.layers)}")
    print(f"{options.steps} steps of {options.batch} x {options.context} tokens")
    print("| student | held-out KL | 95 % | time |\n|---|---|---|---|")
    start = time.perf_counter()
    report("untrained", judged(setting, setting.student()), start)
    text, logits = setting.text, DistillLoss(setting.taught)
    report("labels", trained(setting, lambda _: text, Labels()), start)
    report("logits (forward KL)", trained(setting, lambda _: text, logits), start)
    policy = Policy(SHARE, PROMPT)
    own = DistillLoss(setting.taught, Divergence("jsd", 0.5))

    def on_policy(student: QatModel) -> Corpus:
        writer = student_writer(student, setting.runtime)
        return PolicyCorpus(text.train, text.held_out, policy=policy, writer=writer)

    report("on-policy (JSD)", trained(setting, on_policy, own), start)
    generated = written(setting, max(options.volumes))
    points = []
    for volume in options.volumes:
        corpus = mixed(setting, generated[:volume])
        found = trained(setting, lambda _, corpus=corpus: corpus, Labels())
        points.append((min(volume, len(generated)), found))
        report(f"data, {points[-1][0]} windows", found, start)
    if options.svg:
        options.svg.write_text(svg(points), encoding="utf-8")


if __name__ == "__main__":
    main()
