"""The library's front door: load a model once, then generate, stream or chat."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from octavo.backends.base import F32, Executor, Receipt, RuntimeConfig
from octavo.core.closing import Closing
from octavo.core.errors import ConfigError, RequestError
from octavo.engine import named
from octavo.engine.answers import Answer, Answers, Completion
from octavo.engine.beam import Beam, BeamParams, beam_search, expander
from octavo.engine.client import InProcessClient
from octavo.engine.constraint import vocabulary_of
from octavo.engine.detokenize import Detokenizer
from octavo.engine.engine import Engine
from octavo.engine.named import KeptPrefix
from octavo.engine.pool import embed, pooled_request
from octavo.engine.prefixes import NamedPrefix
from octavo.engine.request import (
    Request,
    SamplingParams,
)
from octavo.engine.store import PrefixStore, identity
from octavo.spec.decoder import DecoderSpec

if TYPE_CHECKING:
    from octavo.io.tokenizer import Tokenizer

Prompts = str | Sequence[str] | Sequence[Sequence[int]]
Message = Mapping[str, Any]


class LLM(Closing):
    """A loaded model. Any thread may call it; requests at the same time share its steps.

    `model` is a directory, a .gguf file, a hub id, or a demo model's name. `format` names a number
    format to requantize to; "source" loses nothing. Raises the errors of octavo.core.errors: a
    UserError's message says what to change.

    An artifact marked `collapsed` (fewer than half of its top tokens are its source's) is refused
    unless `config.allow_collapsed`.

    `prefix_store` is a directory that keeps named prefixes (`prefix`) over a restart.

    `SamplingParams()` is greedy for every model; what a model's own files suggest is
    `default_params()`, and used only when passed.
    """

    _unread_keys: tuple[str, ...] = ()

    def __init__(
        self,
        model: str,
        *,
        format: str = "source",
        config: RuntimeConfig | None = None,
        prefix_store: str | Path | None = None,
    ) -> None:
        from octavo.engine.loading import load_executor
        from octavo.io.checkpoint import open_model
        from octavo.io.collapse import refuse_collapsed
        from octavo.io.hub import resolve_model
        from octavo.io.tokenizer import load_tokenizer

        wanted = _with_format(config or RuntimeConfig(), format)
        path = resolve_model(model)
        with open_model(path) as opened:
            if not wanted.allow_collapsed:
                refuse_collapsed(opened)
            metadata = opened.metadata if opened.kind == "gguf" else None
            tokenizer = load_tokenizer(path, metadata)
            executor = load_executor(opened.spec, opened.source, wanted)
            eos, generation = opened.eos_ids, dict(opened.generation)
            unread = opened.unread_keys
        try:
            store = None
            if prefix_store is not None:
                store = PrefixStore(Path(prefix_store), identity(executor, path))
            self._set_up(executor, tokenizer, (*eos, *tokenizer.eos_ids), generation, store)
            self._unread_keys = unread
        except BaseException:
            executor.close()
            raise

    @classmethod
    def from_parts(
        cls,
        executor: Executor,
        tokenizer: Tokenizer,
        eos: Sequence[int] = (),
        generation: Mapping[str, float] | None = None,
        store: PrefixStore | None = None,
    ) -> LLM:
        """From an executor and a tokenizer made elsewhere. `close` closes the executor."""
        llm = cls.__new__(cls)
        llm._set_up(executor, tokenizer, eos, generation or {}, store)
        return llm

    def _set_up(
        self,
        executor: Executor,
        tokenizer: Tokenizer,
        eos: Sequence[int],
        generation: Mapping[str, float],
        store: PrefixStore | None,
    ) -> None:
        self._executor, self._tokenizer = executor, tokenizer
        self._eos = tuple(dict.fromkeys(eos))
        self._generation = dict(generation)
        end = self._eos
        self._engine = Engine(
            executor,
            vocabulary=lambda: vocabulary_of(tokenizer, end),
            store=store,
            pin_share=1.0,  # who pins is who asks
        )
        self._client = InProcessClient(self._engine)
        self._ids = count()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def executor(self) -> Executor:
        """What runs the steps. Do not step it while requests run."""
        return self._executor

    @property
    def spec(self) -> DecoderSpec:
        return self._executor.spec

    @property
    def unread_keys(self) -> tuple[str, ...]:
        """Keys of the model's config that nothing here knows: what they ask for is not done."""
        return self._unread_keys

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._engine.limits.context

    @property
    def step_rows(self) -> int:
        """Rows of prefill that a step has now: as many as are done in about 250 ms, so that others
        and Ctrl-C needn't wait. Never shows in an answer."""
        return self._engine.pace.rows

    def receipt(self) -> Receipt:
        """What really runs: kernels, formats, bytes per token."""
        return self._executor.receipt()

    def default_params(self) -> SamplingParams:
        """The sampling that the model's files suggest; greedy where they suggest nothing."""
        suggested = self._generation
        if not suggested:
            return SamplingParams()
        plain = SamplingParams(temperature=1.0)
        return SamplingParams(
            temperature=suggested.get("temperature", plain.temperature),
            top_k=int(suggested.get("top_k", plain.top_k)),
            top_p=suggested.get("top_p", plain.top_p),
            min_p=suggested.get("min_p", plain.min_p),
            repetition_penalty=suggested.get("repetition_penalty", plain.repetition_penalty),
        )

    def generate(
        self, prompts: Prompts, params: SamplingParams | None = None, grammar: str = ""
    ) -> list[Completion]:
        """Answer prompts together: texts, or token ids (nothing is added to ids).

        Returns the prompts' answers in order, params.n for each. Greedy when params is None. With a
        `grammar` (engine.grammar makes one of a JSON schema, a regex, ...) every answer matches it,
        unless max_tokens cuts it off. Raises RequestError, before anything runs, for a prompt that
        can't be served.
        """
        encoded = self._encoded(prompts)
        wanted = params or SamplingParams()
        with self._start(encoded, wanted, continues=True, grammar=grammar) as answers:
            for _ in answers:
                pass
            return answers.completions()

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        grammar: str = "",
    ) -> Answers:
        """One prompt's answer as it comes. Closing it (or leaving a `with` of it) ends the answer,
        and the step that runs if that is for this answer alone. Ctrl-C does so too."""
        encoded = [self._encode(prompt)]
        return self._start(encoded, params or SamplingParams(), continues=True, grammar=grammar)

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        stream: Literal[False] = False,
        grammar: str = "",
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        stream: Literal[True],
        grammar: str = "",
    ) -> Answers: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None,
        stream: Literal[True],
        grammar: str = "",
    ) -> Answers: ...

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        stream: bool = False,
        grammar: str = "",
    ) -> Completion | Answers:
        """The next turn of a conversation, [{"role": ..., "content": ...}, ...].

        Raises TokenizerError when the model has no chat template or the template refuses.
        """
        from octavo.io.chat_template import render_chat

        params = params or SamplingParams()
        if params.n != 1:
            raise RequestError("a conversation has one next turn: n must be 1", param="n")
        tokens = tuple(render_chat(self._tokenizer, messages))
        answers = self._start([tokens], params, continues=False, grammar=grammar)
        if stream:
            return answers
        with answers:
            for _ in answers:
                pass
            return answers.completions()[0]

    def prefix(
        self,
        name: str,
        text: str | Sequence[int] | Sequence[Message],
        ttl: float = math.inf,
    ) -> KeptPrefix:
        """Compute a prefix once and keep it: prompts and chats that begin with it find it.

        `text` is a text, token ids, or messages (as the template writes them when others follow).
        Whole blocks of the cache are kept, for `ttl` seconds at least, in place of what had that
        name; with a `prefix_store` over a restart too. Raises RequestError when it doesn't fit.
        """
        tokens = self._prefix_tokens(text)
        return named.keep(self._client, f"prefix-{next(self._ids)}", name, tokens, ttl)

    def _prefix_tokens(self, text: str | Sequence[int] | Sequence[Message]) -> tuple[int, ...]:
        from octavo.io.chat_template import render_chat

        if text and not isinstance(text, str) and isinstance(text[0], Mapping):
            messages = [message for message in text if isinstance(message, Mapping)]
            return tuple(render_chat(self._tokenizer, messages, add_generation_prompt=False))
        return self._encode(text)

    def beam_search(
        self,
        prompt: str | Sequence[int],
        width: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
    ) -> list[Beam]:
        """The `width` best answers that a beam search finds, best first. Their score is the
        log-probability over length**length_penalty. Raises RequestError for a width beyond what
        alternatives are reported (20 less the end tokens), or a prompt that can't be served.
        """
        tokens = self._encode(prompt)
        room = max(1, self.context - len(tokens))
        params = BeamParams(width, min(max_tokens, room), length_penalty, self._eos)
        new_id = (f"beam-{number}" for number in self._ids).__next__
        expand = expander(self._client, tokens, new_id, params.alternatives)
        return [self._with_text(beam) for beam in beam_search(expand, params)]

    def _with_text(self, beam: Beam) -> Beam:
        shown = beam.tokens[:-1] if beam.finished else beam.tokens
        return dataclasses.replace(beam, text=self._tokenizer.decode(shown))

    def embed(self, texts: Prompts) -> F32:
        """Unit vectors of texts (or token ids), float32 [texts, hidden]: the mean over all tokens
        of the hidden states behind the final norm, scaled to length 1. The same bits whatever else
        runs. Raises RequestError for an empty text, or one that doesn't fit into the context.
        """
        requests = [
            pooled_request(f"embed-{next(self._ids)}", prompt) for prompt in self._encoded(texts)
        ]
        for index, request in enumerate(requests if len(requests) > 1 else ()):
            self._validate(request, index)
        width = self.spec.hidden
        return np.array(embed(self._client, requests), np.float32).reshape(len(requests), width)

    def prefixes(self) -> list[NamedPrefix]:
        """All that are kept, in memory or in the store."""
        return named.prefixes(self._client)

    def drop_prefix(self, name: str) -> bool:
        """Let a prefix go, from the store too; whether there was one."""
        return named.drop(self._client, name)

    def _encoded(self, prompts: Prompts) -> list[tuple[int, ...]]:
        if isinstance(prompts, str):
            prompts = [prompts]
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: object) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self._tokenizer.encode(prompt))
        if isinstance(prompt, Sequence) and all(type(token) is int for token in prompt):
            return tuple(prompt)
        raise RequestError(
            f"a prompt is a text or a sequence of token ids, got {_kind(prompt)}"
            " (several prompts of ids are a list of lists; an array's ids are array.tolist())",
            param="prompt",
        )

    def _start(
        self, prompts: list[tuple[int, ...]], params: SamplingParams, continues: bool, grammar: str
    ) -> Answers:
        requests = [self._request(prompt, params, grammar) for prompt in prompts]
        for index, request in enumerate(requests if len(requests) > 1 else ()):
            self._validate(request, index)
        begin = time.perf_counter()
        stream = self._client.submit(requests)
        answers = [
            Answer(request, choice, Detokenizer(self._tokenizer, params.stop, True, continues))
            for request in stream.requests
            for choice in range(params.n)
        ]
        return Answers(self._client, stream, answers, begin)

    def _request(self, prompt: tuple[int, ...], params: SamplingParams, grammar: str) -> Request:
        name = f"request-{next(self._ids)}"
        return Request(name, prompt, params, self._eos, grammar=grammar)

    def _validate(self, request: Request, index: int) -> None:
        try:
            self._engine.validate(request)
        except RequestError as error:
            message = f"prompt {index} (counted from 0): {error}"
            raise RequestError(message, error.param, error.code) from error

    def close(self) -> None:
        """End what runs and free the model. Idempotent."""
        self._client.close()
        self._executor.close()


def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a model reference alone, without its weights."""
    from octavo.io import tokenizer
    from octavo.io.hub import resolve_model

    return tokenizer.load_tokenizer(resolve_model(model))


def _kind(value: object) -> str:
    """The type's name, and those of a sequence's items."""
    name = type(value).__name__
    if not isinstance(value, Sequence):
        return name
    return f"{name} of {' and '.join(sorted({type(item).__name__ for item in value}))}"


def _with_format(config: RuntimeConfig, format: str) -> RuntimeConfig:
    if format == "source" or format == config.format:
        return config
    if config.format != "source":
        raise ConfigError(
            f"format={format!r} and config.format={config.format!r} differ; give one of them"
        )
    return dataclasses.replace(config, format=format)
