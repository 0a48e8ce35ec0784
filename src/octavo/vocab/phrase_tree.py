"""The phrases of a table as a tree: a token's children are the phrases that go on from it.

A text is cut into the longest phrases (`octavo.io.phrases`), so which token comes is decided step
by step: a first part, and at every token on the way what is next: one of the parts that lead to a
child, or the rest (to stop there, or a phrase that goes on by several parts at once).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.io.phrases import PhraseTable

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """What may follow a token that phrases go on from.

    parts    int64 [k]: next parts that lead to a child
    tokens   int64 [m]: the token itself and all phrases that begin with its parts
    classes  int64 [m]: which of the next parts each of them has; k where it is of the rest
    """

    parts: I64
    tokens: I64
    classes: I64


class PhraseTree:
    """choices  of every token that phrases go on from"""

    def __init__(self, phrases: PhraseTable) -> None:
        self.phrases = phrases
        self._ids = {parts: phrases.first + i for i, parts in enumerate(phrases.phrases)}
        behind: dict[int, list[int]] = {}
        for parts in phrases.phrases:
            *before, phrase = self.way(parts)
            for token in before:
                behind.setdefault(token, []).append(phrase)
        self.choices = {token: self._choice(token, found) for token, found in behind.items()}

    def way(self, parts: Sequence[int]) -> Iterator[int]:
        """The tokens that are beginnings of a token's parts, itself the last."""
        yield parts[0]
        for size in range(2, len(parts) + 1):
            if (found := self._ids.get(tuple(parts[:size]))) is not None:
                yield found

    def chosen(self, token: int) -> Iterator[tuple[int, int]]:
        """The choices that lead to a token: (which token they follow, its number of parts)."""
        for step in self.way(self.phrases.parts(token)):
            if step in self.choices:
                yield step, len(self.phrases.parts(step))

    def _choice(self, token: int, behind: Sequence[int]) -> Choice:
        begun = self.phrases.parts(token)
        nexts = [self.phrases.parts(phrase)[len(begun)] for phrase in behind]
        children = [part for part in dict.fromkeys(nexts) if (*begun, part) in self._ids]
        place = {part: i for i, part in enumerate(children)}
        classes = [len(children), *(place.get(part, len(children)) for part in nexts)]
        return Choice(*(np.array(x, np.int64) for x in (children, [token, *behind], classes)))
