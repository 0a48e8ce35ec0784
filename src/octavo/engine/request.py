"""Requests as the engine sees them: token ids in, token ids out. Validated once, at creation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from octavo.core.errors import OctavoError, RequestError

FinishReason = Literal["stop", "length", "abort", "error"]
CacheWrite = Literal["all", "marks", "none"]

MAX_LOGPROBS = 20  # alternatives that a request may ask for
MAX_CHOICES = 128  # answers to one prompt


class _Range(NamedTuple):
    """Bounds of a field, both included unless `open_low`."""

    field: str
    low: float
    high: float
    whole: bool = False
    open_low: bool = False

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a number"
        if self.high == math.inf:
            return f"{kind} {'above' if self.open_low else 'of at least'} {self.low}"
        return f"{kind} in {'(' if self.open_low else '['}{self.low}, {self.high}]"

    def admits(self, value: object) -> bool:
        kinds = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high


_MOST = (
    2**31 - 1
)  # of anything that is counted, and of token ids: they travel as fixed-size integers

_LARGE = 1e6  # beyond it nothing changes any more; kernels compute in fp32

_RANGES = (
    _Range("max_tokens", 1, _MOST, whole=True),
    _Range("temperature", 0, _LARGE),
    _Range("top_k", 0, _MOST, whole=True),
    _Range("top_p", 0, 1, open_low=True),
    _Range("min_p", 0, 1),
    _Range("repetition_penalty", 1 / _LARGE, _LARGE),
    _Range("presence_penalty", -2, 2),
    _Range("frequency_penalty", -2, 2),
    _Range("n", 1, MAX_CHOICES, whole=True),
    _Range("min_tokens", 0, _MOST, whole=True),
)
_SEED = _Range("seed", 0, 2**64 - 1, whole=True)
_LOGPROBS = _Range("logprobs", 0, MAX_LOGPROBS, whole=True)
_BIAS = _Range("logit_bias", -100, 100)
_PRIORITY = _Range("priority", -(2**31), 2**31 - 1, whole=True)
_TIMEOUT = _Range("timeout", 0, math.inf)
_TOKEN = _Range("stop_token_ids", 0, _MOST, whole=True)


def _check_range(bounds: _Range, value: object) -> None:
    if not bounds.admits(value):
        raise RequestError(f"{bounds.field} must be {bounds}, got {value!r}", param=bounds.field)


def _check_tuple(field_name: str, value: object, of: str) -> None:
    if not isinstance(value, tuple):
        raise RequestError(f"{field_name} must be a tuple of {of}, got {value!r}", param=field_name)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Order of operations: bias, penalties, temperature, top-k, top-p, min-p.

    temperature 0 is greedy (ties go to the lowest id). top_k 0 is off. Penalties follow the
    field's definitions: repetition (over prompt and output: positive logits divided, negative
    multiplied), presence and frequency (over the output only, subtracted). Randomness is a counter:
    (seed, choice, position) decides a draw, whatever else runs. seed None: drawn once, reported.
    Raises RequestError naming the field when a value is out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # None: none; 0..20: the chosen token's and that many alternatives
    prompt_logprobs: bool = False
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for bounds in _RANGES:
            _check_range(bounds, getattr(self, bounds.field))
        if self.seed is not None:
            _check_range(_SEED, self.seed)
        if self.logprobs is not None:
            _check_range(_LOGPROBS, self.logprobs)
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) is more than max_tokens ({self.max_tokens})",
                param="min_tokens",
            )
        self._check_stops()
        self._check_bias()

    def _check_stops(self) -> None:
        _check_tuple("stop", self.stop, "strings")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError(f"stop needs non-empty strings, got {text!r}", param="stop")
        _check_tuple("stop_token_ids", self.stop_token_ids, "token ids")
        for token in self.stop_token_ids:
            _check_range(_TOKEN, token)

    def _check_bias(self) -> None:
        _check_tuple("logit_bias", self.logit_bias, "(token id, bias) pairs")
        seen: set[int] = set()
        for pair in self.logit_bias:
            _check_tuple("logit_bias", pair, "(token id, bias) pairs")
            if len(pair) != 2 or not _TOKEN.admits(pair[0]) or not _BIAS.admits(pair[1]):
                raise RequestError(
                    f"logit_bias needs pairs of a token id and a number in [-100, 100],"
                    f" got {pair!r}",
                    param="logit_bias",
                )
            if pair[0] in seen:
                raise RequestError(f"logit_bias names token {pair[0]} twice", param="logit_bias")
            seen.add(pair[0])

    @property
    def penalized(self) -> bool:
        """Whether token counts are needed."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class Mark:
    """Keep the first `tokens` prompt tokens (rounded down to whole blocks) for `ttl` seconds at
    least. A `name` makes it the application's own prefix, replaced by the next of that name."""

    tokens: int
    ttl: float
    name: str = ""

    def __post_init__(self) -> None:
        if self.tokens < 1 or not self.ttl > 0:
            raise RequestError(
                f"a cache mark needs at least 1 token and a time above 0 s, got {self}",
                param="cache",
            )


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What a request reads from and leaves in the prefix cache. Never shows in the tokens.

    write  "all": every full block; "marks": prefixes up to the last mark; "none"
    salt   requests with different salts share nothing (tenants)
    key    requests that belong together: what the next miss is compared with
    """

    read: bool = True
    write: CacheWrite = "all"
    salt: str = ""
    key: str = ""
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What the prefix cache did for a request's prompt, and why not more.

    read     prompt tokens that had been computed before, whole blocks
    written  prompt tokens that this request leaves for others
    reason   "hit" (all that the comparison shares), "first" (nothing to compare with),
             "input_changed" (the prompts part at token `diverged`), "evicted" (shared, but no
             longer held), "not_read" (the request doesn't read, or asked for prompt_logprobs)
    diverged index of the first prompt token that differs from the nearest earlier prompt; -1: none
    """

    read: int
    written: int
    reason: str
    diverged: int = -1


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt. `id` is unique among live requests; `eos` are the model's own end tokens.

    priority  lower goes first, and may take the place of higher
    tenant    who is asked to be fair to; "" is one of them
    timeout   seconds from submission after which it ends with a DeadlineError; 0: never
    pooled    the mean of the prompt's hidden states is wanted, and no answer
    grammar   what the answer must match (engine.grammar writes it); "": anything. The grammar says
              where the answer may end, so min_tokens must be 0
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    eos: tuple[int, ...] = ()
    priority: int = 0
    tenant: str = ""
    timeout: float = 0.0
    cache: CachePolicy = CachePolicy()
    pooled: bool = False
    grammar: str = ""

    def __post_init__(self) -> None:
        _check_tuple("prompt", self.prompt, "token ids")
        if not self.prompt:
            raise RequestError("the prompt is empty; give at least one token", param="prompt")
        if min(self.prompt) < -_MOST or max(self.prompt) > _MOST:  # the engine knows its vocabulary
            raise RequestError("the prompt holds numbers that no token id has", param="prompt")
        _check_range(_PRIORITY, self.priority)
        _check_range(_TIMEOUT, self.timeout)
        if self.grammar and self.params.min_tokens:
            raise RequestError(
                "min_tokens can't be kept where a grammar says how the answer ends; leave it out",
                param="min_tokens",
            )
        if self.pooled and (self.params.n != 1 or self.params.prompt_logprobs):
            raise RequestError("a pooled request has one result and no log-probabilities", "n")
        longest = max((mark.tokens for mark in self.cache.marks), default=0)
        if longest > len(self.prompt):
            raise RequestError(
                f"a cache mark stands at token {longest}, behind the prompt's {len(self.prompt)}",
                param="cache",
            )

    def belonging_to(self, tenant: str, priority: int) -> Request:
        """The same for a tenant. Raises RequestError for a priority out of range."""
        return dataclasses.replace(self, tenant=tenant, priority=priority)

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end the answer."""
        eos = () if self.params.ignore_eos else self.eos
        return frozenset((*eos, *self.params.stop_token_ids))


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a token and of the most likely ones, (token, logprob), best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """What a step brought to one choice of a request.

    A stop token that ended the answer is the last of `tokens`, and `stop_reason`. prompt_logprobs
    are those of prompt[1:], in order, over as many steps as the prefill takes; choice 0 has them.
    `error` is what failed, when finish is "error": its type tells whose fault it was. `cache` comes
    with a choice's first token.
    """

    request_id: str
    choice: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish: FinishReason | None = None
    stop_reason: int | None = None  # the stop token that ended it
    error: OctavoError | None = None
    cache: CacheUse | None = None
    pooled: bytes = b""  # of a pooled request: the mean state, float64 [hidden]
