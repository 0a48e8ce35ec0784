"""From what a client sent to the engine's request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from octavo.core.errors import RequestError
from octavo.engine.request import CachePolicy, Mark, Request, SamplingParams
from octavo.serve.prompts import Breakpoint
from octavo.serve.protocol import PromptCacheOptions, Sampling
from octavo.serve.served import ServedModel

T = TypeVar("T")

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def sampling_params(
    body: Sampling, model: ServedModel, *, max_tokens: int, logprobs: int | None, scored: bool
) -> SamplingParams:
    """Raises RequestError naming the field. `scored`: log-probabilities of the prompt too."""
    suggested = model.generation
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_or(body.temperature, suggested.get("temperature", 1.0)),
        top_k=max(0, _or(body.top_k, int(suggested.get("top_k", 0)))),  # vLLM's users write -1
        top_p=_or(body.top_p, suggested.get("top_p", 1.0)),
        min_p=_or(body.min_p, suggested.get("min_p", 0.0)),
        repetition_penalty=_or(body.repetition_penalty, suggested.get("repetition_penalty", 1.0)),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        logit_bias=_bias(body.logit_bias),
        logprobs=logprobs,
        prompt_logprobs=scored,
        n=_or(body.n, 1),
        seed=None if body.seed is None else body.seed % 2**64,
        stop=_stops(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        min_tokens=_or(body.min_tokens, 0),
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _bias(bias: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    pairs = []
    for token, value in (bias or {}).items():
        if not re.fullmatch(r"\d{1,10}", token):
            raise RequestError(
                f"logit_bias has the key {token!r}; keys are token ids", "logit_bias"
            )
        pairs.append((int(token), value))
    return tuple(pairs)


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def cache_policy(body: Sampling, marks: Sequence[Breakpoint] = ()) -> CachePolicy:
    options = body.prompt_cache_options or PromptCacheOptions()
    parse_ttl(options.ttl)
    kept = [(tokens, parse_ttl(ttl or options.ttl)) for tokens, ttl in marks if tokens > 0]
    return CachePolicy(
        write="marks" if options.mode == "explicit" else "all",
        salt=body.cache_salt or "",
        key=body.prompt_cache_key or "",
        marks=tuple(Mark(tokens, seconds) for tokens, seconds in kept),
    )


def parse_ttl(text: str) -> float:
    """Seconds of "90s", "30m", "1h"."""
    found = re.fullmatch(r"(\d{1,6})([smh])", text)
    if found is None or int(found[1]) == 0:
        raise RequestError(
            f'a time to live is a number of seconds, minutes or hours ("30m"), got {text!r}',
            "prompt_cache_options",
        )
    return int(found[1]) * _SECONDS[found[2]]


def engine_request(
    id_: str, prompt: tuple[int, ...], params: SamplingParams, body: Sampling, model: ServedModel,
    marks: Sequence[Breakpoint] = (), grammar: str = "",
) -> Request:  # fmt: skip
    if not prompt:
        raise RequestError("the prompt is empty; give at least one token", "prompt")
    _check_length(prompt, model)
    return Request(
        id_, prompt, params, model.eos,
        priority=_or(body.priority, 0),
        tenant=body.user or "",
        cache=cache_policy(body, marks),
        grammar=grammar,
    )  # fmt: skip


def _check_length(prompt: tuple[int, ...], model: ServedModel) -> None:
    if len(prompt) >= model.context:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and the context holds {model.context}, the answer"
            " included; shorten the prompt or start the server with a larger --context",
            param="messages",
            code="context_length_exceeded",
        )
