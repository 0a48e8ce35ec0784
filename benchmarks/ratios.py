"""From samples of interleaved rounds to ratios, and to verdicts on the bars. Nothing is timed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Samples = Sequence[float]
Record = Mapping[str, Any]
MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
STEADY = 0.15  # probes that spread wider than this make a section be run again
BYTES_APART = 0.02  # the two sides of a pair may differ by so much in bytes per token


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median and range of the ratio taken round by round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Samples, theirs: Samples) -> Ratio:
    """Neighbours' noise hits both sides of a round, so rounds are divided before the median.

    Raises ValueError without a common round.
    """
    by_round = [a / b for a, b in zip(ours, theirs, strict=False)]
    if not by_round:
        raise ValueError("no round has both sides")
    return Ratio(statistics.median(by_round), min(by_round), max(by_round))


def spread(samples: Samples) -> float:
    """(largest - smallest) / median; 0 of one sample."""
    return (max(samples) - min(samples)) / statistics.median(samples)


Unit = Literal["times", "share"]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a model's run must reach: `goals` in the order of MODELS.

    ours, rivals  contenders; the rival with the best median counts.
    section, task where their samples are.
    """

    name: str
    section: str
    task: str
    ours: str
    rivals: tuple[str, ...]
    goals: tuple[float, float, float]
    unit: Unit = "times"


BARS = (
    Bar("decode, (a), against llama.cpp", "decode", "decode",
        "octavo a", ("llama.cpp a",), (1.5, 1.2, 1.05)),
    Bar("decode, (b), against llama.cpp", "decode", "decode",
        "octavo b", ("llama.cpp b",), (1.75, 1.2, 1.05)),
    Bar("decode, (a), against ik_llama.cpp", "decode", "decode",
        "octavo a", ("ik_llama.cpp a",), (1.3, 1.05, 1.0)),
    Bar("decode, (b), against ik_llama.cpp", "decode", "decode",
        "octavo b", ("ik_llama.cpp b",), (1.3, 1.05, 1.0)),
    Bar("prefill 512 against llama.cpp", "prefill", "prefill",
        "octavo a", ("llama.cpp a",), (2.5, 2.2, 2.2)),
    Bar("prefill 512 against OpenVINO GenAI", "prefill", "prefill",
        "octavo a", ("openvino",), (1.25, 1.25, 1.25)),
    Bar("16 sequences against the best rival", "together", "x16",
        "octavo a", ("llama.cpp a", "ik_llama.cpp a", "openvino", "transformers bf16"),
        (3.0, 2.0, 2.0)),
    Bar("decode at 4096, 16-bit KV, llama.cpp", "depth", "d4096",
        "octavo a", ("llama.cpp a",), (2.5, 2.0, 1.2)),
    Bar("decode at 4096, 8-bit KV, llama.cpp", "depth", "d4096",
        "octavo a kv8", ("llama.cpp a kv8",), (3.0, 2.2, 1.2)),
    Bar("share of the bandwidth probe, decode", "decode", "bandwidth",
        "octavo a", (), (0.80, 0.88, 0.92), "share"),
    Bar("share of the int8 peak, prefill 512", "prefill", "int8",
        "octavo a", (), (0.40, 0.45, 0.50), "share"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar as measured. `miss`: how far below, as a part of the bar; "" when there is no figure
    a reason stands in `figure`."""

    model: str
    bar: str
    goal: str
    figure: str
    met: bool | None
    miss: str


def best_rival(rates: Mapping[str, Mapping[str, Samples]], names: Sequence[str], task: str) -> str:
    """The one with the highest median that has this task; "" when none has."""
    able = [name for name in names if rates.get(name, {}).get(task)]
    return max(able, key=lambda name: statistics.median(rates[name][task]), default="")


def judge(bar: Bar, model: str, sections: Mapping[str, Record]) -> Verdict:
    """One bar against the records of one model, by section."""
    goal = bar.goals[MODELS.index(model)]
    shown = f"{goal:.0%}" if bar.unit == "share" else f"{goal:g} times"
    record = sections.get(bar.section)
    if record is None:
        return Verdict(model, bar.name, shown, f"section {bar.section} was not run", None, "")
    if bar.unit == "share":
        shares = record["shares"].get(bar.task, [])
        return _verdict(bar, model, shown, _share(shares), "")
    rates = record["rates"]
    rival = best_rival(rates, bar.rivals, bar.task)
    ours = rates.get(bar.ours, {}).get(bar.task, [])
    if not rival or not ours:
        missing = bar.ours if not ours else " or ".join(bar.rivals)
        return Verdict(model, bar.name, shown, f"no figure of {missing}", None, "")
    note = f", {rival}" if len(bar.rivals) > 1 else ""
    return _verdict(bar, model, shown, ratio(ours, rates[rival][bar.task]), note)


def _share(shares: Samples) -> Ratio | None:
    if not shares:
        return None
    return Ratio(statistics.median(shares), min(shares), max(shares))


def _verdict(bar: Bar, model: str, shown: str, found: Ratio | None, note: str) -> Verdict:
    if found is None:
        return Verdict(model, bar.name, shown, "no probe", None, "")
    goal = bar.goals[MODELS.index(model)]
    met = found.median >= goal
    if bar.unit == "share":
        figure = f"{found.median:.0%} ({found.low:.0%} to {found.high:.0%})"
    else:
        figure = f"{found}{note}"
    miss = "" if met else f"{1 - found.median / goal:.0%}"
    return Verdict(model, bar.name, shown, figure, met, miss)


def judge_bytes(model: str, pair: str, ours: int, theirs: int) -> Verdict:
    """Bytes per token of the two sides of a pair."""
    apart = ours / theirs - 1
    met = abs(ours - theirs) <= BYTES_APART * theirs
    figure = f"{ours / 1e6:.2f} and {theirs / 1e6:.2f} MB ({apart:+.2%})"
    goal = f"within {BYTES_APART:.0%}"
    miss = "" if met else f"{abs(apart) - BYTES_APART:.1%}"
    return Verdict(model, f"bytes per token, ({pair})", goal, figure, met, miss)


def judge_quality(model: str, pair: str, quality: Record) -> Verdict:
    """Mean KL of both from one source, and the paired interval of their difference.

    Met unless ours is surely larger: the whole interval above 0.
    """
    gap = quality["difference"]
    figure = (
        f"{quality['ours']['value']:.4f} and {quality['theirs']['value']:.4f}, "
        f"difference {gap['value']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})"
    )
    met = gap["low"] <= 0
    miss = "" if met else f"{gap['value'] / quality['theirs']['value']:.0%}"
    return Verdict(model, f"mean KL, ({pair})", "no worse", figure, met, miss)


PAIRS: Mapping[str, str] = MappingProxyType(
    {
        "a": "every tensor 4-bit, against --pure Q4_0",
        "b": "body 4-bit and head int8_g32, against llama.cpp's default Q4_0",
    }
)


def verdicts(model: str, sections: Mapping[str, Record]) -> list[Verdict]:
    """Every bar of the model, in the order of the issue's table."""
    found = [judge(bar, model, sections) for bar in BARS]
    for pair, quality in sections.get("quality", {}).get("pairs", {}).items():
        found.append(judge_quality(model, pair, quality))
    for pair, (ours, theirs) in sections.get("bytes", {}).get("pairs", {}).items():
        found.append(judge_bytes(model, pair, ours, theirs))
    return found
