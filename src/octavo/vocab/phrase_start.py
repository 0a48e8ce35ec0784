"""How likely phrases are before anything is trained: as often as the text has them.

A row made of its parts' rows gives a phrase about the logit of its first part. Hundreds of phrases
may begin with one token, so together they take hundreds of times what it had. What is wanted is
P(phrase) = P(first part) n(phrase) / n(first part), with n counted in the text as it is cut with
phrases; over all that begins with a part, the part alone included, this sums to what it had. A head
has no bias to hold the logarithm of that share: a direction u stands in, with u h ~ 1 for all
hidden states h that the head reads, by least squares (C + damping) u = E[h], C = E[h h'].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.io.phrases import PhraseTable
from octavo.vocab.lowrank import second_moment

F32 = npt.NDArray[np.float32]

_DAMPING = 1e-4  # of C's mean diagonal: a rare direction is no part of a constant
_UNSEEN = 0.5  # occurrences that everything begins with: a logarithm of 0 is none


@dataclass(frozen=True, slots=True)
class Start:
    """direction float32 [hidden]: u; log_share float32 [vocab + phrases], at most 0: what a token
    takes of its first part's probability. Rows begin with `log_share * direction` added."""

    direction: F32
    log_share: F32

    @property
    def shifts(self) -> F32:
        """float32 [vocab + phrases, hidden], to add to the head's rows."""
        return self.log_share[:, None] * self.direction


def start(states: F32, joined: Sequence[int], phrases: PhraseTable) -> Start:
    """From hidden states float32 [n, hidden] behind the final norm, and a text cut with phrases.

    Raises NumericsError when a state isn't finite.
    """
    return Start(constant_direction(states), log_shares(joined, phrases))


def constant_direction(states: F32) -> F32:
    """u, float32 [hidden]."""
    moment = second_moment(states)
    damped = moment + _DAMPING * np.trace(moment) / len(moment) * np.eye(len(moment))
    mean = states.mean(axis=0, dtype=np.float64)
    return np.asarray(np.linalg.solve(damped, mean), np.float32)


def log_shares(joined: Sequence[int], phrases: PhraseTable) -> F32:
    """Of every token, float32 [vocab + phrases]; 0 where no phrase begins with it."""
    count = phrases.first + len(phrases)
    first = np.array([phrases.parts(token)[0] for token in range(count)])
    seen = np.bincount(np.asarray(joined, np.int64), minlength=count) + _UNSEEN
    begun = np.bincount(first, weights=seen, minlength=phrases.first)
    return np.asarray(np.log(seen / begun[first]), np.float32)
