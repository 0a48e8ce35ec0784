"""Give a model phrases of Python's standard library: fewer tokens, at which loss, at which speed?

python examples/phrases.py MODEL DIRECTORY [--count 1500] [--steps 400] [--whole]

Mined and trained on the even modules, judged on pieces of odd ones, each from an empty context by
all models: tokens, bits per byte (paired intervals), and characters per second of both models in
one --format (a model trained whole is stored in fp32), each fed the same text token by token with
one thread, in turns, by the fastest of several times (--repeats 0: not timed).
DIRECTORY keeps the model with phrases, and with --whole the control: the base model (a checkpoint)
trained without phrases, as many steps on windows of as many characters.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo.backends.base import WANT_TOKEN, RuntimeConfig
from octavo.backends.native.backend import load
from octavo.backends.reference.options import ReferenceOptions
from octavo.evals.scorer import SingleSequence
from octavo.io.checkpoint import open_model
from octavo.io.corpora import stdlib_code
from octavo.io.hub import resolve_model
from octavo.train import QatModel, TrainConfig, Trainer
from octavo.train.data import split_corpus
from octavo.train.hf_export import save_masters
from octavo.vocab.measure import TextLoss, cut, difference, start_token, text_losses, tokenizer_of
from octavo.vocab.mine import MinePlan
from octavo.vocab.phrase_job import PhrasePlan, add_phrases

CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class Timing:
    """What is timed, how often, and the format that both models' weights are held in."""

    pieces: Sequence[str]
    repeats: int
    format: str


@contextmanager
def clock(path: Path, format: str, pieces: Sequence[str]) -> Iterator[Callable[[int], float]]:
    """Seconds that a piece takes, decoded token by token behind an empty context."""
    with open_model(path) as model:
        tokenizer = tokenizer_of(model)
        begin = start_token(model, tokenizer)
        tokens = [[begin, *tokenizer.encode(piece, add_special=False)] for piece in pieces]
        config = RuntimeConfig(context=CONTEXT, max_seqs=1, threads=1, format=format)
        with closing(load(model.spec, model.source, config)) as executor:
            sequence = SingleSequence(executor)

            def seconds(piece: int) -> float:
                sequence.restart()
                started = time.perf_counter()
                for token in tokens[piece][:-1]:
                    sequence.step([token], WANT_TOKEN)
                return time.perf_counter() - started

            yield seconds


def fastest(base: Path, made: Path, options: Timing) -> tuple[float, float]:
    """Characters per second of both, by the least time of each piece. They take turns at every
    piece: what else the machine does meets both."""
    pieces, times = options.pieces, []
    with clock(base, options.format, pieces) as one, clock(made, options.format, pieces) as other:
        for _ in range(options.repeats):
            times.append([(one(i), other(i)) for i in range(len(pieces))])
    least = np.min(times, axis=0).sum(axis=0)
    characters = sum(map(len, pieces))
    return characters / float(least[0]), characters / float(least[1])


def train_control(path: Path, out: Path, text: str, plan: PhrasePlan) -> None:
    """What training alone gives, to tell it from what phrases give."""
    with open_model(path) as model:
        tokenizer = tokenizer_of(model)
        plain = QatModel.load(model.source, model.spec, ReferenceOptions(format="fp32"))
        tokens = tokenizer.encode(text, add_special=False)
    Trainer(plain, split_corpus(tokens, plan.context, 0.03), plan.train).run()
    save_masters(plain, json.loads((path / "config.json").read_text(encoding="utf-8")), out)
    for file in path.glob("tokenizer*.json"):
        shutil.copy(file, out)


def report(name: str, base: TextLoss, phrases: TextLoss) -> None:
    gap = difference(phrases, base)
    ratio = phrases.tokens_per_byte / base.tokens_per_byte
    print(f"| | {name} | phrases | |\n|---|---|---|---|")
    print(
        f"| tokens per byte | {base.tokens_per_byte:.4f} | {phrases.tokens_per_byte:.4f} | "
        f"{ratio - 1:+.1%} |\n"
        f"| bits per byte | {base.bits_per_byte:.4f} | {phrases.bits_per_byte:.4f} | "
        f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}) |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--least", type=int, default=4, help="times that a phrase is used")
    parser.add_argument("--price", type=float, default=0.0, help="of a nat, in tokens saved")
    parser.add_argument("--taught", type=float, default=0.7, help="share of the loss")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--context", type=int, default=128, help="of windows, in base tokens")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--size", type=int, default=1024, help="characters of a judged piece")
    parser.add_argument("--pieces", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--format", default="int8_g32", help="of both models when they are timed")
    options = parser.parse_args()
    base = resolve_model(options.model)
    if not (options.directory / "phrases").exists():
        options.directory.mkdir(parents=True, exist_ok=True)
        text = stdlib_code("calibration")[: options.characters]
        config = TrainConfig(
            options.steps, options.rate, warmup=options.steps // 20, batch=options.batch,
            evaluate_every=options.steps, precision=options.precision,
        )  # fmt: skip
        phrases = MinePlan(options.count, least=options.least, price=options.price)
        plan = PhrasePlan(phrases, config, options.context, options.whole, options.taught)
        found = add_phrases(base, options.directory / "phrases", plan, text)
        if options.whole and not (options.directory / "control").exists():
            train_control(base, options.directory / "control", text, plan)
        print(
            f"{sum(row.phrases for row in found.savings)} phrases; {options.steps} steps of "
            f"{options.batch} windows of the text of {options.context} base tokens at "
            f"{options.rate:g}, {'all weights' if options.whole else 'new rows'}: "
            f"{found.before:.4f} to {found.after:.4f} nats per token"
        )
        print("words, phrases, uses, tokens saved:")
        for row in found.savings:
            print(f"| {row.words} | {row.phrases} | {row.uses} | {row.saved} |")
    judge(base, options)


def judge(base: Path, options: argparse.Namespace) -> None:
    made, control = options.directory / "phrases", options.directory / "control"
    pieces = cut(stdlib_code("evaluation"), options.size)
    chosen = pieces[:: max(1, len(pieces) // options.pieces)][: options.pieces]
    paths = [made, base, *([control] if control.exists() else [])]
    losses = [text_losses(path, [("code", chosen)], CONTEXT)[0] for path in paths]
    for name, loss in zip(("base", "base, trained as long"), losses[1:], strict=False):
        report(name, loss, losses[0])
    timed = chosen[: max(1, len(chosen) // 10)]
    if not options.repeats:
        return
    slow, fast = fastest(base, made, Timing(timed, options.repeats, options.format))
    print(f"| characters per second | {slow:.0f} | {fast:.0f} | {fast / slow - 1:+.1%} |")


if __name__ == "__main__":
    main()
