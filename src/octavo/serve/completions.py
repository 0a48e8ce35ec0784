"""POST /v1/completions: plain prompts, as texts or token ids, several at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from octavo.core.errors import RequestError
from octavo.engine.request import Request, TokenLogprobs
from octavo.io.tokenizer import Tokenizer
from octavo.serve.answering import Answering, Piece, Pieces
from octavo.serve.chat import merge
from octavo.serve.errors import ApiError
from octavo.serve.formats import grammar_of
from octavo.serve.protocol import CompletionRequest
from octavo.serve.sampling import engine_request, sampling_params
from octavo.serve.served import ServedModel
from octavo.serve.wording import DONE, Tally, TextLogprobs, event, new_id

_DEFAULT_TOKENS = 16  # OpenAI's
_MOST_PROMPTS = 2048


class Completions:
    """One call. Making it checks everything that can be wrong with the request."""

    def __init__(self, body: CompletionRequest, model: ServedModel) -> None:
        self.body, self.model = body, model
        self.id, self.created = new_id("cmpl"), int(time.time())
        self.name = model.check_name(body.model)
        if body.suffix:
            raise RequestError("suffix is not supported: no text is filled in here", "suffix")
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise RequestError("best_of must equal n", "best_of")
        self.prompts = _prompts(body, model.tokenizer)
        self._grammar = grammar_of(body)
        self.requests = [self._request(i, prompt) for i, prompt in enumerate(self.prompts)]
        self.tally = Tally([len(prompt) for prompt in self.prompts])
        self.n = self.requests[0].params.n

    @property
    def _scored(self) -> bool:
        return self.body.echo and self.body.logprobs is not None

    @property
    def _silent(self) -> bool:
        """Only the prompt is wanted; one token is made and dropped."""
        return self.body.max_tokens == 0 and self.body.echo

    def _request(self, index: int, prompt: tuple[int, ...]) -> Request:
        wanted = self.body.max_tokens
        room = max(1, self.model.context - len(prompt))
        most = _DEFAULT_TOKENS if wanted is None else wanted
        params = sampling_params(
            self.body,
            self.model,
            max_tokens=1 if self._silent else min(most, room) if wanted is None else most,
            logprobs=self.body.logprobs,
            scored=self._scored,
        )
        name = f"{self.id}-{index}"
        return engine_request(name, prompt, params, self.body, self.model, grammar=self._grammar)

    @property
    def prompt_sizes(self) -> list[int]:
        return [len(prompt) for prompt in self.prompts]

    def start(self) -> Answering:
        """Raises what refuses the request."""
        return Answering(
            self.model.client,
            self.requests,
            self.model.tokenizer,
            skip_special=self.body.skip_special_tokens,
            continues=True,
        )

    def _writers(self) -> dict[tuple[int, int], _Writer]:
        return {
            (i, choice): _Writer(self, i, choice)
            for i in range(len(self.prompts))
            for choice in range(self.n)
        }

    def failure(self, error: ApiError) -> bytes:
        return event(error.body())

    async def answer(self, answering: Pieces) -> dict[str, Any]:
        """The whole answer as JSON."""
        writers = self._writers()
        pieces = [piece async for group in answering for piece in group]
        for piece in merge(pieces):
            self._count(piece)
            writers[piece.request, piece.choice].add(piece)
        return {
            **self._head(),
            "choices": [writer.take() for writer in writers.values()],
            "usage": self.tally.usage(),
            "prompt_cache_diagnostics": self.tally.diagnostics(),
        }

    def _count(self, piece: Piece) -> None:
        if self._silent:
            piece.text, piece.tokens, piece.logprobs = "", (), ()
        self.tally.add(piece)

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.name,
            "system_fingerprint": None,
        }

    async def stream(self, answering: Pieces) -> AsyncIterator[bytes]:
        """Server-sent events."""
        head, options = self._head(), self.body.stream_options
        if options is not None and options.include_usage:
            head["usage"] = None
        writers = self._writers()
        async for pieces in answering:
            for piece in merge(pieces):
                self._count(piece)
                writer = writers[piece.request, piece.choice]
                writer.add(piece)
                if writer.ready:
                    yield event({**head, "choices": [writer.take()]})
        if options is not None and options.include_usage:
            yield event({**head, "choices": [], "usage": self.tally.usage()})
        yield DONE


class _Writer:
    """One choice of one prompt. With echo and log-probabilities it waits for the whole prompt."""

    def __init__(self, call: Completions, index: int, choice: int) -> None:
        body, tokenizer = call.body, call.model.tokenizer
        self._index = index * call.n + choice
        self._prompt = call.prompts[index]
        self._owed = len(self._prompt) - 1 if call._scored and choice == 0 else 0
        self._scores: list[TokenLogprobs] = []
        self._echo = body.echo
        self._ids = body.return_token_ids
        self._texts: list[str] = [_echoed(tokenizer, self._prompt)] if body.echo else []
        self._logprobs = None if body.logprobs is None else TextLogprobs(tokenizer)
        self._held: list[tuple[int, TokenLogprobs]] = []
        self._tokens: list[int] = []
        self._finish: str | None = None
        self._stop_reason: int | str | None = None

    @property
    def ready(self) -> bool:
        return not self._owed or self._finish is not None

    def add(self, piece: Piece) -> None:
        self._texts.append(piece.text)
        self._tokens += piece.tokens
        self._scores += piece.prompt_logprobs
        self._owed = max(0, self._owed - len(piece.prompt_logprobs))
        self._held += zip(piece.tokens, piece.logprobs, strict=False)
        if piece.finish is not None:
            self._finish = "stop" if piece.finish == "abort" else piece.finish
            self._stop_reason = piece.stop_reason
        if self._logprobs is not None and self.ready:
            self._write_logprobs(self._logprobs)

    def _write_logprobs(self, logprobs: TextLogprobs) -> None:
        if self._echo:
            scores = [None, *self._scores, *[None] * len(self._prompt)]
            for token, entry in zip(self._prompt, scores, strict=False):
                logprobs.add(token, entry)
            self._echo = False
        for token, entry in self._held:
            logprobs.add(token, entry)
        self._held = []

    def take(self) -> dict[str, Any]:
        """What has come since the last call, as a choice."""
        texts, self._texts = self._texts, []
        tokens, self._tokens = self._tokens, []
        choice: dict[str, Any] = {
            "index": self._index,
            "text": "".join(texts),
            "logprobs": None if self._logprobs is None else self._logprobs.take(),
            "finish_reason": self._finish,
            "stop_reason": self._stop_reason,
        }
        if self._ids:
            choice["token_ids"] = tokens
        return choice


def _echoed(tokenizer: Tokenizer, prompt: tuple[int, ...]) -> str:
    return tokenizer.decode(prompt, skip_special=False)


def _prompts(body: CompletionRequest, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    given = body.prompt
    if isinstance(given, str):
        return [tuple(tokenizer.encode(given))]
    if not given:
        raise RequestError("prompt is empty; give a text or token ids", "prompt")
    if isinstance(given[0], int):
        return [tuple(token for token in given if isinstance(token, int))]
    if len(given) > _MOST_PROMPTS:
        raise RequestError(f"{len(given)} prompts; at most {_MOST_PROMPTS} in a call", "prompt")
    return [
        tuple(tokenizer.encode(item) if isinstance(item, str) else item)
        for item in given
        if not isinstance(item, int)
    ]
