"""What thin and trimmed vocabularies cost, language by language, in bits per byte.

python examples/thin_vocabulary.py MODEL DIRECTORY [--ranks 512] [--heads int4_g32:rtn int4_g32:64]
    [--states 4096] [--curve --measured 1024 --svg OUT.svg]

DIRECTORY keeps the models that are made. Trimmed to the English sentences alone: the others are
spelled in bytes where their tokens are gone. With --curve: the divergence of every rank (factors
in int8_g32) and every head from the whole head on articles of Wikipedia that nothing was fitted to,
the bytes that a token reads, and the speed of decoding, all models in turns. A head is
FORMAT:METHOD, or FORMAT:COLUMNS: factors of full rank in that format whose first columns are stored
twice.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from octavo.backends.base import WANT_TOKEN, RuntimeConfig
from octavo.backends.native.backend import load
from octavo.evals.scorer import SingleSequence
from octavo.io.checkpoint import open_model
from octavo.io.hub import resolve_model
from octavo.vocab.head import HeadPlan, Method, head_model
from octavo.vocab.job import FactorPlan, factor_model, trim_model
from octavo.vocab.material import read_texts
from octavo.vocab.measure import TextLoss, difference, text_losses

SENTENCES = {
    "English": [
        "The baker opens her shop at six, long before the street wakes up.",
        "If it rains tomorrow, we will move the table into the kitchen.",
        "Nobody could say who had left the window open that night.",
    ],
    "German": [
        "Die Bäckerin öffnet ihren Laden um sechs, lange bevor die Straße erwacht.",
        "Wenn es morgen regnet, stellen wir den Tisch in die Küche.",
        "Niemand konnte sagen, wer in jener Nacht das Fenster offen gelassen hatte.",
    ],
    "French": [
        "La boulangère ouvre sa boutique à six heures, bien avant que la rue ne s'éveille.",
        "S'il pleut demain, nous mettrons la table dans la cuisine.",
        "Personne ne pouvait dire qui avait laissé la fenêtre ouverte cette nuit-là.",
    ],
    "Spanish": [
        "La panadera abre su tienda a las seis, mucho antes de que despierte la calle.",
        "Si mañana llueve, pondremos la mesa en la cocina.",
        "Nadie supo decir quién había dejado la ventana abierta aquella noche.",
    ],
    "Russian": [
        "Пекарь открывает свою лавку в шесть, задолго до того, как проснётся улица.",
        "Если завтра пойдёт дождь, мы поставим стол на кухню.",
        "Никто не мог сказать, кто в ту ночь оставил окно открытым.",
    ],
    "Chinese": [
        "面包师六点就开店，那时街道还没有醒来。",
        "如果明天下雨，我们就把桌子搬到厨房里。",
        "没有人知道那天晚上是谁没有关窗户。",
    ],
    "Python": [
        "def mean(values):\n    return sum(values) / len(values)\n",
        "for name in sorted(names):\n    print(name, counts[name])\n",
        "class Empty(Exception):\n    pass\n",
    ],
}


STEPS = 12  # timed of each model in a round


@dataclass(frozen=True, slots=True)
class Point:
    """One head: mean KL from the whole one with its interval, bytes that a token reads, and the
    speed of decoding as a multiple of the whole model's (nan: not timed)."""

    name: str
    kl: tuple[float, float, float]
    same_top: float
    bytes_per_token: int
    speed: float


def losses(path: Path) -> tuple[TextLoss, ...]:
    return text_losses(path, list(SENTENCES.items()), 256)


def made(path: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The models with other heads, by name; what DIRECTORY holds already is not made again."""
    found = {}
    for name in [*(f"rank {rank}" for rank in options.ranks), *options.heads]:
        found[name] = out = options.directory / name.replace(" ", "-").replace(":", "-")
        if out.exists():
            continue
        fitted, held_out = read_texts(path, "", options.states, options.measured)
        plan = plan_of(name, path)
        if isinstance(plan, FactorPlan):
            factor_model(path, out, plan, fitted, (held_out,))
        else:
            head_model(path, out, plan, fitted, (held_out,))
        print(f"{name}: {quality(out)[0][0]:.4f} nats from the whole head on Wikipedia", flush=True)
    return found


def plan_of(name: str, path: Path) -> FactorPlan | HeadPlan:
    if name.startswith("rank "):
        return FactorPlan(int(name[5:]))
    format, how = name.split(":")
    if not how.isdigit():
        return HeadPlan(format, cast(Method, how))
    with open_model(path) as model:
        return FactorPlan(model.spec.hidden, format=format, twice=int(how))


def quality(directory: Path) -> tuple[tuple[float, float, float], float]:
    """The mean KL with its interval and the share of equal top tokens, as they were measured when
    the model was made."""
    text = json.loads((directory / "quality.json").read_text(encoding="utf-8"))["texts"][0]
    mean = text["kl"]["mean"]
    return (mean["value"], mean["low"], mean["high"]), text["same_top"]["value"]


def decoding(paths: Sequence[Path], rounds: int, threads: int) -> tuple[list[int], list[float]]:
    """Bytes that a token reads, and seconds a step: the least of each step over the rounds, in
    which all models take turns."""
    with ExitStack() as stack:
        sequences, sizes = [], []
        for path in paths:
            model = stack.enter_context(open_model(path))
            config = RuntimeConfig(context=64, max_seqs=1, threads=threads)
            executor = stack.enter_context(closing(load(model.spec, model.source, config)))
            sequences.append(SingleSequence(executor))
            sizes.append(executor.receipt().bytes_per_token)
        times = [[_steps(sequence) for sequence in sequences] for _ in range(rounds)]
    if not times:
        return sizes, [math.nan] * len(paths)
    return sizes, [float(t) for t in np.min(times, axis=0).mean(axis=-1)]


def _steps(sequence: SingleSequence) -> list[float]:
    """Seconds of each of some steps behind a few tokens; the first is not timed."""
    sequence.restart()
    times = []
    for token in range(2, 3 + STEPS):
        started = time.perf_counter()
        sequence.step([token], WANT_TOKEN)
        times.append(time.perf_counter() - started)
    return times[1:]


def curve(path: Path, models: dict[str, Path], options: argparse.Namespace) -> list[Point]:
    """Of the whole head and all others."""
    sizes, times = decoding([path, *models.values()], options.rounds, options.threads)
    points = [Point("whole", (0.0, 0.0, 0.0), 1.0, sizes[0], 1.0)]
    for (name, out), size, seconds in zip(models.items(), sizes[1:], times[1:], strict=True):
        points.append(Point(name, *quality(out), size, times[0] / seconds))
    return points


def print_curve(points: Sequence[Point]) -> None:
    print("| head | MB a token | mean KL (95 %) | same top token | decode |\n|---|---|---|---|---|")
    for p in points:
        kl = "{:.4f} ({:.4f} to {:.4f})".format(*p.kl) if p.kl[0] else "0"
        size, speed = p.bytes_per_token / 1e6, "" if math.isnan(p.speed) else f"{p.speed:.2f} times"
        print(f"| {p.name} | {size:.1f} | {kl} | {p.same_top:.1%} | {speed} |", flush=True)


def svg(points: Sequence[Point]) -> str:
    """KL (logarithmic) against the bytes that a token reads: ranks as one line, heads as dots."""
    shown = [p for p in points if p.kl[0] > 0]
    low = math.log10(min(p.kl[1] for p in shown))
    high = math.log10(max(p.kl[2] for p in shown))
    most = max(p.bytes_per_token for p in points)
    least = min(p.bytes_per_token for p in points)

    def across(p: Point) -> float:
        return 70 + 480 * (p.bytes_per_token - least) / (most - least)

    def up(kl: float) -> float:
        return 320 - 270 * (math.log10(kl) - low) / (high - low)

    parts = []
    for p in shown:
        colour = "#c8553d" if p.name.startswith("rank") else "#1b6ca8"
        x, bottom, top = across(p), up(p.kl[1]), up(p.kl[2])
        parts.append(
            f'<g stroke="{colour}" fill="{colour}"><circle cx="{x:.1f}" cy="{up(p.kl[0]):.1f}" '
            f'r="3"/><line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"/>'
            f'<text x="{x + 6:.1f}" y="{up(p.kl[0]) - 4:.1f}" stroke="none">{p.name}</text></g>'
        )
    ranks = sorted((p for p in shown if p.name.startswith("rank")), key=across)
    line = " ".join(f"{across(p):.1f},{up(p.kl[0]):.1f}" for p in ranks)
    for value in (10.0**e * m for e in range(-4, 2) for m in (1, 2, 5)):
        if low <= math.log10(value) <= high:
            parts.append(
                f'<line x1="70" x2="550" y1="{up(value):.1f}" y2="{up(value):.1f}" stroke="#ddd"/>'
                f'<text x="64" y="{up(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
            )
    for size in range(math.ceil(least / 2e7) * 20, int(most / 1e6) + 1, 20):
        x = 70 + 480 * (size * 1e6 - least) / (most - least)
        parts.append(f'<text x="{x:.1f}" y="340" text-anchor="middle">{size}</text>')
    title = "mean KL from the whole head (nats) against MB of weights that a token reads"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" font-size="11" '
        'font-family="sans-serif"><rect width="640" height="360" fill="white"/>'
        f'<text x="70" y="24" font-size="13">{title}</text>{"".join(parts)}'
        f'<polyline points="{line}" fill="none" stroke="#c8553d"/></svg>\n'
    )


def by_language(path: Path, models: dict[str, Path], directory: Path) -> None:
    """Bits per byte of every language, whole and with each other vocabulary."""
    found = {"whole": losses(path)}
    trimmed = directory / "trimmed"
    if not trimmed.exists():
        before, after = trim_model(path, trimmed, SENTENCES["English"])
        print(f"trimmed: {after} of {before} tokens")
    for name, out in {"trimmed to English": trimmed, **models}.items():
        found[name] = losses(out)
    print("| language | " + " | ".join(found) + " |")
    print("|---" * (len(found) + 1) + "|")
    for i, language in enumerate(SENTENCES):
        cells = [f"{found['whole'][i].bits_per_byte:.3f}"]
        for name in list(found)[1:]:
            gap = difference(found[name][i], found["whole"][i])
            cells.append(f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")
        print(f"| {language} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ranks", type=int, nargs="*", default=[512])
    parser.add_argument("--heads", nargs="*", default=[], metavar="FORMAT:METHOD|COLUMNS")
    parser.add_argument("--states", type=int, default=4096, help="tokens to fit to")
    parser.add_argument("--measured", type=int, default=512, help="tokens that the KL is of")
    parser.add_argument("--curve", action="store_true", help="instead of the table by language")
    parser.add_argument("--rounds", type=int, default=0, help="of timing, of --curve")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    path = resolve_model(options.model)
    models = made(path, options)
    if not options.curve:
        by_language(path, models, options.directory)
        return
    points = curve(path, models, options)
    print_curve(points)
    if options.svg:
        options.svg.write_text(svg(points), encoding="utf-8")


if __name__ == "__main__":
    main()
