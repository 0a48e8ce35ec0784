"""Telling a user's text that looks like a control token from the template's own control tokens.

A private-use character, the mark, is put inside every control token that a user's value spells, and
at the edges of values that could complete one with their neighbours. In the rendered text a token
with a mark within is the user's and becomes plain text; all other marks just go. A template that
escapes characters (`tojson`, a printed list) turns the mark into letters, which breaks the token:
an attack then ends as odd text, never as a control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_MARK = "\U000f0000"


@dataclass(frozen=True, slots=True)
class ForgeryGuard:
    """`heads` and `tails` are the proper beginnings and ends of control tokens."""

    pattern: re.Pattern[str]
    heads: frozenset[str]
    tails: frozenset[str]
    longest: int

    def mark(self, value: Any) -> Any:
        """A copy of user-supplied JSON with the mark in all its strings that need it."""
        if isinstance(value, str):
            return self._marked(value.replace(_MARK, ""))
        if isinstance(value, Mapping):
            return {self.mark(key): self.mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        return value

    def _marked(self, text: str) -> str:
        inside = self.pattern.sub(lambda match: _split(match.group()), text)
        lengths = range(1, min(self.longest, len(text) + 1))
        before = _MARK if any(text[:n] in self.tails for n in lengths) else ""
        after = _MARK if any(text[-n:] in self.heads for n in lengths) else ""
        return before + inside + after

    def pieces(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """The rendered text without marks, in order, as (text, whether it is a forged token)."""
        parts = rendered.split(_MARK)
        text = "".join(parts)
        marks = _Positions(parts)
        start = 0
        for match in self.pattern.finditer(text):
            if marks.within(match.start(), match.end()):
                if start < match.start():
                    yield text[start : match.start()], False
                yield match.group(), True
                start = match.end()
        if start < len(text):
            yield text[start:], False


class _Positions:
    """Where marks were, as offsets into the text without them; asked in ascending order."""

    def __init__(self, parts: list[str]) -> None:
        self._offsets: list[int] = []
        self._next = 0
        end = 0
        for part in parts[:-1]:
            end += len(part)
            self._offsets.append(end)

    def within(self, start: int, end: int) -> bool:
        """Whether a mark lies inside [start, end], or before it if it is one character."""
        first = start if end - start == 1 else start + 1
        while self._next < len(self._offsets) and self._offsets[self._next] < first:
            self._next += 1
        return self._next < len(self._offsets) and self._offsets[self._next] < end


def _split(token: str) -> str:
    # A token of one character has no inside: its mark stands before it.
    return _MARK + token if len(token) == 1 else token[0] + _MARK + token[1:]


@lru_cache(maxsize=16)
def forgery_guard(tokens: tuple[str, ...]) -> ForgeryGuard:
    """The guard for these control tokens. Longer ones win over those they contain."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return ForgeryGuard(
        pattern=re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"),
        heads=frozenset(token[:n] for token in tokens for n in range(1, len(token))),
        tails=frozenset(token[n:] for token in tokens for n in range(1, len(token))),
        longest=max(map(len, tokens), default=0),
    )
