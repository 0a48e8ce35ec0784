"""Phrases: runs of a vocabulary's tokens that a model knows as single tokens as well.

A text is first cut as the vocabulary itself does it. From left to right, the longest run of these
tokens that is a phrase then counts as one: never longer than before, and the bytes are the same.
The shortest way of all would save half a percent more, but which token stands at a place would hang
on what comes long after it, and what a model without phrases says would no longer tell what one
with them should say (`octavo.vocab.phrase_tree`).

`phrases.json` beside tokenizer.json: {"format": 2, "first": id of the first phrase, "phrases":
[[token, ...], ...]}. A phrase's id is `first` plus its place. The file is written when the phrases'
rows are trained, never before: a model without them has no such ids to emit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from octavo.core.errors import TokenizerError

PHRASES = "phrases.json"
PHRASES_FORMAT = 2  # 1 was cut the shortest way
MAX_TOKENS = 64  # of one phrase


class PhraseTable:
    """Phrases by id. Raises TokenizerError for a phrase of fewer than two tokens, of more than
    MAX_TOKENS, of a token that is itself a phrase, or that is there twice."""

    def __init__(self, first: int, phrases: Iterable[Sequence[int]]) -> None:
        self.first = first
        self.phrases = tuple(tuple(phrase) for phrase in phrases)
        self._ids = {phrase: first + i for i, phrase in enumerate(self.phrases)}
        self._check()
        # By the token a phrase begins with: the ends that are worth a look, longest first.
        lengths: dict[int, set[int]] = {}
        for phrase in self.phrases:
            lengths.setdefault(phrase[0], set()).add(len(phrase))
        self._lengths = {token: sorted(found, reverse=True) for token, found in lengths.items()}

    def __len__(self) -> int:
        return len(self.phrases)

    def parts(self, token: int) -> tuple[int, ...]:
        """The tokens of a phrase; of any other token, itself."""
        place = token - self.first
        return self.phrases[place] if 0 <= place < len(self.phrases) else (token,)

    def joined(self, tokens: Sequence[int]) -> list[int]:
        """`tokens`, from left to right, the longest phrase wherever one begins. Time grows with
        their number alone."""
        row, found, at = tuple(tokens), [], 0
        while at < len(row):
            sizes = self._lengths.get(row[at], ())
            fits = (size for size in sizes if row[at : at + size] in self._ids)
            size = next(fits, 1)
            found.append(row[at] if size == 1 else self._ids[row[at : at + size]])
            at += size
        return found

    def split(self, tokens: Iterable[int]) -> list[int]:
        """`joined`'s inverse: every phrase as its tokens."""
        return [part for token in tokens for part in self.parts(token)]

    def to_json(self) -> dict[str, object]:
        return {
            "format": PHRASES_FORMAT,
            "first": self.first,
            "phrases": [list(phrase) for phrase in self.phrases],
        }

    def _check(self) -> None:
        for phrase in self.phrases:
            if not 2 <= len(phrase) <= MAX_TOKENS:
                raise TokenizerError(f"a phrase of {len(phrase)} tokens: 2 to {MAX_TOKENS} are one")
            if not all(0 <= token < self.first for token in phrase):
                raise TokenizerError(f"a phrase holds a token that isn't below {self.first}")
        if len(self._ids) != len(self.phrases):
            raise TokenizerError("a phrase is there twice")


def read_phrases(directory: Path) -> PhraseTable | None:
    """The table of a model directory, None when it has none. Raises TokenizerError when the file is
    damaged."""
    path = directory / PHRASES
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != PHRASES_FORMAT or type(content["first"]) is not int:
            raise ValueError(f"format {content['format']!r}")
        phrases = content["phrases"]
        if any(type(token) is not int for phrase in phrases for token in phrase):
            raise ValueError("a phrase is no list of integers")
        return PhraseTable(content["first"], phrases)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenizerError(
            f"{path.name} is damaged ({error}): copy the model again, or make its phrases anew"
        ) from error
