"""The answers of a call as they grow: text, counts and times, from the engine's outputs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass

from octavo.core.closing import Closing
from octavo.engine.client import InProcessClient, OutputStream
from octavo.engine.detokenize import Detokenizer
from octavo.engine.request import CacheUse, FinishReason, Output, Request, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    text           without the stop token or stop string that ended it
    tokens         ids, a stop token included
    prompt_tokens  how many tokens the prompt has
    cache          what of them the prefix cache had, and why not more
    stop_reason    the stop token or stop string, when finish_reason is "stop"
    seed           what repeats the answer, with the choice's number; None when greedy
    time_to_first_token           seconds from the call
    prefill_tokens_per_second     prompt tokens over that time
    decode_tokens_per_second      tokens after the first over their time; 0 when there is none

    A batch shares the machine: rates are each answer's own, not the batch's.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    cache: CacheUse | None
    choice: int
    finish_reason: FinishReason
    stop_reason: int | str | None
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]
    seed: int | None
    time_to_first_token: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of an answer. The last one of a choice has its finish_reason and completion."""

    text: str
    tokens: tuple[int, ...]
    choice: int
    finish_reason: FinishReason | None = None
    completion: Completion | None = None


class Answer:
    """One choice while it grows."""

    def __init__(self, request: Request, choice: int, detokenizer: Detokenizer) -> None:
        self.request, self.choice = request, choice
        self._detokenizer = detokenizer
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._first = self._last = 0.0
        self._cache: CacheUse | None = None
        self.completion: Completion | None = None

    def take(self, output: Output, begin: float, now: float) -> Delta:
        """Add a step's output. `completion` is set when it was the last."""
        self._tokens += output.tokens
        self._cache = output.cache or self._cache
        self._logprobs += output.logprobs
        self._prompt_logprobs += output.prompt_logprobs
        if output.tokens:
            self._first = self._first or now
            self._last = now
        finish, reason = output.finish, output.stop_reason
        text = self._detokenizer.push(output.tokens if reason is None else output.tokens[:-1])
        if finish is not None:
            text += self._detokenizer.finish()
        if self._detokenizer.stopped is not None:
            finish = "stop"
        self._texts.append(text)
        if finish is not None:
            self.completion = self._complete(finish, self._detokenizer.stopped or reason, begin)
        return Delta(text, output.tokens, self.choice, finish, self.completion)

    def _complete(self, finish: FinishReason, reason: int | str | None, begin: float) -> Completion:
        to_first, after = self._first - begin, self._last - self._first
        size, more = len(self.request.prompt), len(self._tokens) - 1
        return Completion(
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            prompt_tokens=size,
            cache=self._cache,
            choice=self.choice,
            finish_reason=finish,
            stop_reason=reason,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            seed=self.request.params.seed,
            time_to_first_token=max(to_first, 0.0),
            prefill_tokens_per_second=size / to_first if to_first > 0 else 0.0,
            decode_tokens_per_second=more / after if after > 0 else 0.0,
        )


class Answers(Iterator[Delta], Closing):
    """The answers of one call, as they come. Closing it ends those that still run."""

    def __init__(
        self,
        client: InProcessClient,
        stream: OutputStream,
        answers: Iterable[Answer],
        begin: float,
    ) -> None:
        self._client, self._stream, self._begin = client, stream, begin
        self._answers = {(answer.request.id, answer.choice): answer for answer in answers}

    def __next__(self) -> Delta:
        while not self._done():
            output = next(self._stream)
            answer = self._answers[output.request_id, output.choice]
            if answer.completion is not None:
                continue  # stopped by a string while the next step was on its way
            if output.error is not None:
                self.close()
                raise copy(output.error) from output.error  # others may raise the same one
            delta = answer.take(output, self._begin, time.perf_counter())
            if delta.finish_reason is not None and output.finish is None:
                self._client.abort(output.request_id, output.choice)
            return delta
        self.close()
        raise StopIteration

    def _done(self) -> bool:
        return all(answer.completion is not None for answer in self._answers.values())

    def completions(self) -> list[Completion]:
        """Those that have ended, in the order of prompts and choices."""
        found = (answer.completion for answer in self._answers.values())
        return [completion for completion in found if completion is not None]

    def close(self) -> None:
        self._stream.close()
