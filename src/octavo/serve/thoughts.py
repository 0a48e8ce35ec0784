"""How much of an answer is a thought."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.io.tokenizer import Tokenizer
from octavo.serve.answering import Piece
from octavo.serve.calls import THINK, THOUGHT


class ThoughtTokens:
    """How many tokens of a call's answers are of the thoughts that they begin with, both marks
    among them. `opened`: the prompt ends in the first mark."""

    def __init__(self, tokenizer: Tokenizer, opened: bool) -> None:
        self._tokenizer, self._opened = tokenizer, opened
        self._answers: dict[tuple[int, int], _Opening] = {}

    @property
    def count(self) -> int:
        return sum(answer.tokens for answer in self._answers.values() if answer.thinking)

    def add(self, piece: Piece) -> None:
        key = piece.request, piece.choice
        if key not in self._answers:
            self._answers[key] = _Opening(self._opened)
        for token in piece.tokens:
            self._answers[key].push(self._tokenizer.token_bytes(token))


@dataclass(slots=True)
class _Opening:
    """An answer up to the end of its thought. `thinking`: it has one."""

    thinking: bool
    tokens: int = 0
    ended: bool = False
    _seen: bytes = b""  # as much as a mark can reach back

    def push(self, data: bytes) -> None:
        if self.ended:
            return
        self.tokens += 1
        self._seen += data
        if not self.thinking:
            start, mark = self._seen.lstrip(), THINK.encode()
            self.thinking = start.startswith(mark)
            self.ended = not self.thinking and not mark.startswith(start)
        if self.thinking:
            self.ended = THOUGHT.encode() in self._seen
            self._seen = self._seen[-len(THOUGHT) :]
