"""Token ids to text while they arrive: whole characters only, and nothing beyond a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol


class Vocabulary(Protocol):
    """What detokenizing needs of a tokenizer (`octavo.io.tokenizer.Tokenizer` has it)."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def strips_space(self) -> bool: ...

    def token_bytes(self, token: int) -> bytes: ...


class Detokenizer:
    """Text of one answer. All pushed texts and `finish()` together are `decode` of all ids.

    `stop`: the text ends before the first of these to be completed (the longest, when several end
    at once), however tokens cut it; `stopped` then names it. Text that may be the beginning of one
    is held back. `continues`: the ids continue a text, so a leading space is theirs and stays.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop: tuple[str, ...] = (),
        skip_special: bool = True,
        continues: bool = False,
    ) -> None:
        self.stopped: str | None = None
        self._vocabulary = vocabulary
        self._skipped = vocabulary.special_ids if skip_special else frozenset()
        self._stop = tuple(text for text in stop if text)
        self._strip = vocabulary.strips_space and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these ids make certain (it may be empty, or that of earlier ids)."""
        kept = (i for i in token_ids if i not in self._skipped)
        data = b"".join(map(self._vocabulary.token_bytes, kept))
        return self._release(self._utf8.decode(data), last=False)

    def finish(self) -> str:
        """What was held back: an unfinished character becomes U+FFFD, a partial stop is text."""
        return self._release(self._utf8.decode(b"", final=True), last=True)

    def _release(self, text: str, last: bool) -> str:
        if self.stopped is not None:
            return ""
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        text = self._held + text
        if (found := self._first_stop(text)) is not None:
            start, self.stopped = found
            self._held = ""
            return text[:start]
        keep = 0 if last else self._partial(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """(start, stop string) of the match that ends first; then of the one that starts first."""
        found = ((text.find(stop), stop) for stop in self._stop)
        matches = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        return min(matches)[1:] if matches else None

    def _partial(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
