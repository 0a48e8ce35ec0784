"""Requests as the engine sees them: token ids in, token ids out. Validated once, at creation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


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

    # __post_init__ with the range checks: engine's owner


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt. `id` is unique among live requests; `eos` are the model's own end tokens."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    eos: tuple[int, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a token and of the most likely ones, (token, logprob), best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """What a step brought to one choice of a request."""

    request_id: str
    choice: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish: FinishReason | None = None
    stop_reason: int | None = None  # the stop token that ended it
    error: str = field(default="")
