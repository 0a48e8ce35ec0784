"""A scorer made of a function from tokens to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


class FunctionScorer:
    """`logits_of(tokens)` -> float32 [len(tokens), vocab]; position i sees tokens[: i + 1]."""

    def __init__(
        self, logits_of: Callable[[Sequence[int]], F32], vocab: int, name: str = "made up"
    ) -> None:
        self._logits_of, self.vocab, self.name = logits_of, vocab, name
        self.runs: list[tuple[int, int]] = []
        self.closed = False

    def logits(self, tokens: Sequence[int], first: int, rows: int) -> Iterator[F32]:
        self.runs.append((len(tokens), first))
        table = self._logits_of(tokens)
        for begin in range(first, len(tokens), rows):
            yield table[begin : begin + rows]

    def close(self) -> None:
        self.closed = True


def bigram_scorer(table: F32, name: str = "bigram") -> FunctionScorer:
    """Logits depend on the last token only: row `token` of `table` [vocab, vocab]."""
    return FunctionScorer(lambda tokens: table[np.asarray(tokens)], table.shape[1], name)
