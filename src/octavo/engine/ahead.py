"""How many tokens one call of the executor may bring, where nobody needs to look in between.

Between two calls the engine spends some hundred microseconds on books: 5 % of a step of a small
model. A new request, an abort and a reader of the stream then wait for the end of the call, so that
one lasts 10 ms at most; large models run one token a call, and lose nothing by it.
"""

from __future__ import annotations

SECONDS = 0.01  # of a call, at most
MOST = 8  # tokens of a sequence in a call


class Ahead:
    """The choice for one executor, from what its last step of decodes took."""

    def __init__(self, most: int = MOST, seconds: float = SECONDS) -> None:
        self.most, self._seconds = most, seconds
        self._step = seconds  # nothing is known yet: one token

    @property
    def times(self) -> int:
        """Tokens that every sequence may get in the next call, 1 to `most`."""
        fitting = self._seconds / self._step if self._step > 0 else self.most
        return max(1, min(self.most, int(fitting)))

    def note(self, seconds: float, times: int) -> None:
        """A call for `times` tokens of every sequence took `seconds`."""
        self._step = seconds / times
