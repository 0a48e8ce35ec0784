"""The slow twin of native sampling: the definition, in plain numpy, kept forever.

Order: bias, penalties, temperature, top-k, top-p, min-p. Candidates are sorted by (logit
descending, id ascending). Logits, bias, penalties and all parameters are fp32; probabilities and
the walk are fp64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.backends.base import F32
from octavo.core.rng import uniform
from octavo.engine.request import SamplingParams, TokenLogprobs

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Counts(NamedTuple):
    """How often each token stands in the prompt and in the output: integers [vocab] each."""

    prompt: npt.NDArray[np.integer]
    output: npt.NDArray[np.integer]


class Draw(NamedTuple):
    """What decides a draw: position is the new token's own."""

    seed: int
    position: int
    choice: int = 0


class Sampled(NamedTuple):
    """margin: how far the draw and the cuts lie from the nearest boundary, in probability; another
    implementation may choose another token only where it is below 2^-20. Infinite when greedy."""

    token: int
    logprobs: TokenLogprobs
    margin: float


class Candidates(NamedTuple):
    """Token ids by (logit descending, id ascending), their probabilities, and the nearest cut."""

    tokens: I64
    probabilities: F64
    margin: float


def sample_reference(
    logits: F32, params: SamplingParams, counts: Counts | None, draw: Draw
) -> Sampled:
    """Choose a token from raw logits [vocab]. Log-probabilities are of the raw distribution."""
    scores = penalize(add_bias(logits, params), params, counts)
    if params.temperature == 0:
        token, margin = int(np.argmax(scores)), math.inf  # argmax gives the lowest id of a tie
    else:
        token, margin = pick(candidates(scores, params), uniform(*draw))
    return Sampled(token, raw_logprobs(logits, token, params.logprobs or 0), margin)


def add_bias(logits: F32, params: SamplingParams) -> F32:
    scores = logits.astype(np.float32, copy=True)
    for token, value in params.logit_bias:
        scores[token] += np.float32(value)
    return scores


def penalize(scores: F32, params: SamplingParams, counts: Counts | None) -> F32:
    """Repetition over prompt and output, then frequency and presence over the output only."""
    if counts is None or not params.penalized:
        return scores
    seen = (counts.prompt > 0) | (counts.output > 0)
    factor = np.float32(params.repetition_penalty)
    repeated = np.where(scores > 0, scores / factor, scores * factor)
    scores = np.where(seen, repeated, scores).astype(np.float32)
    scores = scores - np.float32(params.frequency_penalty) * counts.output.astype(np.float32)
    return scores - np.float32(params.presence_penalty) * (counts.output > 0).astype(np.float32)


def candidates(scores: F32, params: SamplingParams) -> Candidates:
    """What may be drawn, after temperature and the three cuts."""
    tokens = np.lexsort((np.arange(scores.size), -scores.astype(np.float64)))
    if params.top_k:
        tokens = tokens[: params.top_k]
    logits = scores[tokens].astype(np.float64)
    weights = np.exp((logits - logits[0]) / float(np.float32(params.temperature)))
    probabilities = weights / weights.sum()
    keep_p, margin_p = _top_p(probabilities, params.top_p)
    keep_min, margin_min = _min_p(probabilities, params.min_p)
    keep = min(keep_p, keep_min)
    kept = probabilities[:keep]
    return Candidates(tokens[:keep], kept / kept.sum(), min(margin_p, margin_min))


def _top_p(probabilities: F64, top_p: float) -> tuple[int, float]:
    """How many to keep: the shortest prefix that reaches top_p, the token that crosses included."""
    top_p = float(np.float32(top_p))
    if top_p >= 1:
        return probabilities.size, math.inf
    cumulative = np.cumsum(probabilities)
    keep = min(int(np.searchsorted(cumulative, top_p, side="left")) + 1, probabilities.size)
    return keep, float(np.abs(cumulative - top_p).min())


def _min_p(probabilities: F64, min_p: float) -> tuple[int, float]:
    """How many have at least min_p of the largest probability."""
    min_p = float(np.float32(min_p))
    if min_p <= 0:
        return probabilities.size, math.inf
    ratios = probabilities / probabilities[0]
    others = np.abs(ratios[1:] - min_p)
    return int((ratios >= min_p).sum()), float(others.min(initial=math.inf))


def pick(choices: Candidates, draw: float) -> tuple[int, float]:
    """The first candidate whose cumulative probability exceeds the draw, and the margin."""
    cumulative = np.cumsum(choices.probabilities)
    total = cumulative[-1]
    index = int(np.searchsorted(cumulative, draw * total, side="right"))
    index = min(index, cumulative.size - 1)
    inner = np.abs(cumulative[:-1] / total - draw)
    margin = min(choices.margin, float(inner.min(initial=math.inf)))
    return int(choices.tokens[index]), margin


def raw_logprobs(logits: F32, token: int, count: int) -> TokenLogprobs:
    """Log-softmax of the raw logits: the token's, and the `count` best."""
    wide = logits.astype(np.float64)
    peak = wide.max()
    logs = wide - (peak + math.log(np.exp(wide - peak).sum()))
    best = np.lexsort((np.arange(logs.size), -wide))[:count]
    top = tuple((int(i), float(logs[i])) for i in best)
    return TokenLogprobs(token, float(logs[token]), top)
