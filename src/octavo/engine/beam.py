"""Beam search: the likeliest answers that a search of bounded width finds.

Each step lengthens every live beam by each token. Walking these continuations from the likeliest
on, those with an end token are done, the others live on, until `width` of them do. An answer's
score is its log-probability over length**length_penalty.

A beam is a request of its own for one token: beams share the full blocks of what they have in
common through the prefix cache, and compute only the tail block that they write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.core.errors import RequestError
from octavo.engine.client import EngineClient
from octavo.engine.request import MAX_LOGPROBS, Request, SamplingParams

Tokens = tuple[int, ...]
Expand = Callable[[Sequence[Tokens]], list[tuple[tuple[int, float], ...]]]


@dataclass(frozen=True, slots=True)
class Beam:
    """One answer. logprob: of all its tokens together; finished: whether its last token ends it."""

    tokens: Tokens
    logprob: float
    score: float
    finished: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class BeamParams:
    """Raises RequestError when more alternatives are needed than an executor reports."""

    width: int
    max_tokens: int
    length_penalty: float
    eos: Tokens

    def __post_init__(self) -> None:
        most = MAX_LOGPROBS - len(self.eos)
        if not 1 <= self.width <= most:
            raise RequestError(f"width must be from 1 to {most}, got {self.width}", param="width")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be 1 or more, got {self.max_tokens}", "max_tokens")

    @property
    def alternatives(self) -> int:
        """Continuations that a beam can contribute at most: all others live, and every end."""
        return self.width + len(self.eos)

    def beam(self, tokens: Tokens, logprob: float) -> Beam:
        score: float = logprob / len(tokens) ** self.length_penalty
        return Beam(tokens, logprob, score, tokens[-1] in self.eos)

    def best(self, beams: Sequence[Beam]) -> list[Beam]:
        """The `width` best; of equals the lower token ids."""
        return sorted(beams, key=lambda beam: (-beam.score, beam.tokens))[: self.width]

    def settled(self, done: Sequence[Beam], live: Sequence[tuple[Tokens, float]]) -> bool:
        """Whether nothing that lives can still be among the best: log-probabilities only fall."""
        if self.length_penalty < 0 or len(done) < self.width:
            return False
        most: float = max(logprob for _, logprob in live) / self.max_tokens**self.length_penalty
        return min(beam.score for beam in self.best(done)) > most


def beam_search(expand: Expand, params: BeamParams) -> list[Beam]:
    """The best answers, best first. `expand` gives the likeliest next tokens of each answer so far,
    `params.alternatives` of them, with their log-probabilities."""
    live: list[tuple[Tokens, float]] = [((), 0.0)]
    done: list[Beam] = []
    for _ in range(params.max_tokens):
        nexts = expand([tokens for tokens, _ in live])
        found = [
            ((*tokens, token), logprob + more)
            for (tokens, logprob), tops in zip(live, nexts, strict=True)
            for token, more in tops
        ]
        live = []
        for tokens, logprob in sorted(found, key=lambda item: (-item[1], item[0])):
            if tokens[-1] in params.eos:
                done.append(params.beam(tokens, logprob))
            else:
                live.append((tokens, logprob))
            if len(live) == params.width:
                break
        if not live or params.settled(done, live):
            break
    return params.best([*done, *(params.beam(*item) for item in live)])


def expander(client: EngineClient, prompt: Tokens, new_id: Callable[[], str], count: int) -> Expand:
    """The engine's continuations of a prompt, all answers of a step together."""
    params = SamplingParams(max_tokens=1, logprobs=count, ignore_eos=True)

    def expand(answers: Sequence[Tokens]) -> list[tuple[tuple[int, float], ...]]:
        requests = [Request(new_id(), (*prompt, *answer), params) for answer in answers]
        found: dict[str, tuple[tuple[int, float], ...]] = {}
        with client.submit(requests) as stream:
            for output in stream:
                if output.error is not None:
                    raise output.error
                found[output.request_id] = output.logprobs[0].top
        return [found[request.id] for request in requests]

    return expand
