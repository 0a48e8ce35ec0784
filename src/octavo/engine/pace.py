"""How much prefill a step may have, so that a step lasts about a quarter of a second.

A step can't be left in the middle by another request, and an interrupt may have to wait for its
end. A prefill can be cut anywhere (results don't depend on it), so the choice is made from what the
last steps took. It starts small, since nothing is known of the model yet: two or three steps find
the rows that fit.
"""

from __future__ import annotations

import math

from octavo.core.errors import InternalError

STEP_SECONDS = 0.25  # what a person takes for at once
_FIRST = 64
_LEAST = 16  # smaller steps do little but read the weights, again and again
_CHANGE = 4.0  # at most, from one step: what a busy machine does to one is not the model's fault


class Pace:
    """The choice for one executor. `rows` is how many rows a step may have besides its decodes."""

    def __init__(self, most: int, seconds: float = STEP_SECONDS) -> None:
        """`most`: rows of a step at most, 1 or more; `seconds`: how long one should last."""
        if most < 1 or not seconds > 0:
            raise InternalError(f"a pace of {most} rows in {seconds} s")
        self._most, self._seconds = most, seconds
        self.rows = min(most, _FIRST)

    @property
    def step_seconds(self) -> float:
        """How long a step should last."""
        return self._seconds

    @classmethod
    def fixed(cls, rows: int) -> Pace:
        """A pace that never changes, for an executor whose last bits depend on chunking."""
        pace = cls(rows, math.inf)
        pace.rows = rows
        return pace

    def note(self, rows: int, sequences: int, seconds: float, *, full: bool) -> None:
        """A step of `rows` rows of `sequences` sequences took `seconds`. Only one that was `full`,
        with as many rows as it was allowed, says that more would have fitted."""
        if seconds <= self._seconds and not full:
            return
        least, most = self.rows / _CHANGE, self.rows * _CHANGE
        fitting = rows * self._seconds / seconds - sequences if seconds > 0 else most
        bounded = int(min(max(fitting, least), most))
        self.rows = min(self._most, max(_LEAST, bounded // _LEAST * _LEAST))
