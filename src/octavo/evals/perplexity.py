"""Perplexity of one model over a text's windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.evals.logprobs import check_finite, log_softmax, row_blocks
from octavo.evals.scorer import Scorer, block_rows
from octavo.evals.statistics import Blocks, Estimate, estimate
from octavo.evals.windows import Window

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PerplexityReport:
    """exp of the mean negative log-likelihood (nats) of `tokens` scored tokens."""

    tokens: int
    windows: int
    perplexity: Estimate
    nll: Estimate


def perplexity(scorer: Scorer, windows: Sequence[Window]) -> PerplexityReport:
    """Score every window's tokens. Raises what the scorer raises."""
    losses = np.concatenate([window_nll(scorer, window) for window in windows])
    blocks = Blocks(len(losses))
    return PerplexityReport(
        tokens=len(losses),
        windows=len(windows),
        perplexity=perplexity_of(losses, blocks),
        nll=blocks.mean(losses),
    )


def perplexity_of(losses: F64, blocks: Blocks) -> Estimate:
    """exp(mean) of [tokens] losses in nats, with the interval carried through."""
    return estimate(float(np.exp(losses.mean())), np.exp(blocks.mean_replicates(losses)))


def window_nll(scorer: Scorer, window: Window) -> F64:
    """Negative log-likelihood (nats) of each scored token of a window: [window.scored]."""
    tokens = window.tokens
    losses = np.empty(window.scored)
    done, rows = 0, block_rows(scorer.vocab)
    for block in scorer.logits(tokens[:-1].tolist(), window.first, rows):
        check_finite(block, scorer.name)
        targets = tokens[window.first + done + 1 :][: len(block)]
        for part in row_blocks(*block.shape):
            logp = log_softmax(block[part])
            losses[done:][part] = -logp[np.arange(len(logp)), targets[part]]
        done += len(block)
    return losses
