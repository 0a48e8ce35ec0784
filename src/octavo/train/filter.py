"""Which generated texts are worth learning, and how they are mixed with written ones.

A text is refused for the first of these reasons that holds, in this order:

empty       shorter than one window of `shingle` tokens
repetition  too few of its runs of `run` tokens are different ones: it goes in circles
evaluation  it shares a run of `overlap` tokens with text that is evaluated on
duplicate   too many of its runs of `shingle` tokens occur in texts kept before
unlikely    the teacher finds its tokens less likely than `nats` on average: it isn't the teacher's
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from octavo.core.errors import ConfigError, UserError
from octavo.train.data import I64

Reason = Literal["empty", "repetition", "evaluation", "duplicate", "unlikely"]
Likelihood = Callable[[Sequence[int]], float]


@dataclass(frozen=True, slots=True)
class Limits:
    """nats      the most per token, by the teacher, on average
    distinct  share of different runs of `run` tokens, at least
    copied    share of runs of `shingle` tokens that texts kept before have, at most
    overlap   tokens in a row that no evaluation text may share
    """

    nats: float = 6.0
    distinct: float = 0.6
    run: int = 4
    copied: float = 0.5
    shingle: int = 8
    overlap: int = 13

    def __post_init__(self) -> None:
        if min(self.run, self.shingle, self.overlap) < 1 or not self.nats > 0:
            raise ConfigError("runs are of at least 1 token, and nats above 0")
        if not 0 <= self.distinct <= 1 or not 0 <= self.copied <= 1:
            raise ConfigError("distinct and copied are shares from 0 to 1")


@dataclass(frozen=True, slots=True)
class Sifted:
    """kept: numbers of the texts that stay, ascending; refused: how many went for each reason."""

    kept: tuple[int, ...]
    refused: Counter[str]


def sift(
    texts: Sequence[Sequence[int]],
    limits: Limits,
    evaluation: Iterable[Sequence[int]] = (),
    likelihood: Likelihood | None = None,
) -> Sifted:
    """Judge texts given as tokens. `likelihood` gives the teacher's mean negative log-likelihood of
    one in nats per token (None: not asked)."""
    tested = {run for text in evaluation for run in _runs(text, limits.overlap)}
    seen: set[tuple[int, ...]] = set()
    kept: list[int] = []
    refused: Counter[str] = Counter()
    for number, text in enumerate(texts):
        reason = _reason(text, limits, tested, seen, likelihood)
        if reason is not None:
            refused[reason] += 1
            continue
        kept.append(number)
        seen.update(_runs(text, limits.shingle))
    return Sifted(tuple(kept), refused)


def mix(original: I64, generated: I64, share: float, count: int) -> I64:
    """`count` windows of which `share` are generated: the first ones of each, spread evenly.

    Raises UserError when there are too few of either, or their contexts differ.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share is {share}; give a number from 0 to 1")
    wanted = round(share * count)
    for name, windows, need in (
        ("generated", generated, wanted), ("original", original, count - wanted)
    ):  # fmt: skip
        if len(windows) < need:
            raise UserError(
                f"{need} {name} windows are wanted and there are {len(windows)}: make more, or ask "
                "for fewer or another share"
            )
    if original.shape[1] != generated.shape[1]:
        raise UserError("original and generated windows have different contexts: cut them alike")
    made = np.diff(np.arange(count + 1) * wanted // max(1, count)) > 0
    mixed = np.empty((count, original.shape[1]), np.int64)
    mixed[made] = generated[: int(made.sum())]
    mixed[~made] = original[: int((~made).sum())]
    return mixed


def _reason(
    text: Sequence[int],
    limits: Limits,
    tested: set[tuple[int, ...]],
    seen: set[tuple[int, ...]],
    likelihood: Likelihood | None,
) -> Reason | None:
    shingles = list(_runs(text, limits.shingle))
    runs = list(_runs(text, limits.run))
    if not shingles or not runs:
        return "empty"
    if len(set(runs)) < limits.distinct * len(runs):
        return "repetition"
    if any(run in tested for run in _runs(text, limits.overlap)):
        return "evaluation"
    if sum(run in seen for run in shingles) > limits.copied * len(shingles):
        return "duplicate"
    if likelihood is not None and not likelihood(text) <= limits.nats:
        return "unlikely"
    return None


def _runs(text: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    row = tuple(int(token) for token in text)
    return (row[i : i + size] for i in range(len(row) - size + 1))
