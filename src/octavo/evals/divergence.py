"""What a model lost against its base: both run in lock step over a text, no logits file.

For each scored token, with p the base's distribution and q the model's, both from fp64 log-softmax:
KL(p || q) in nats, the change of the true token's probability, and whether both find the same token
likeliest. The figures and their names are those of llama-perplexity's KL block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.core.errors import UserError
from octavo.evals.logprobs import check_finite, log_softmax, row_blocks
from octavo.evals.perplexity import perplexity_of
from octavo.evals.scorer import Scorer, block_rows
from octavo.evals.statistics import Blocks, Estimate, estimate
from octavo.evals.windows import Window

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """Per scored token, [tokens] each: losses of both in nats, KL, true token's p, same top."""

    nll: F64
    base_nll: F64
    kl: F64
    p: F64
    base_p: F64
    same_top: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DivergenceReport:
    """KL is KL(base || model) in nats; `delta_p` is model minus base, of the true token.

    ln_ratio   mean of ln(PPL(model) / PPL(base)): paired, token by token.
    """

    tokens: int
    windows: int
    perplexity: Estimate
    base_perplexity: Estimate
    ln_ratio: Estimate
    ratio: Estimate
    difference: Estimate
    correlation: float
    kl_mean: Estimate
    kl_median: Estimate
    kl_99: Estimate
    kl_999: Estimate
    kl_max: float
    same_top: Estimate
    rms_delta_p: Estimate
    mean_delta_p: Estimate


Progress = Callable[[int, int], None]


def divergence(
    model: Scorer, base: Scorer, windows: Sequence[Window], progress: Progress | None = None
) -> DivergenceReport:
    """Run both over every window and compare. `progress` gets (windows done, windows).

    Raises UserError when the vocabularies differ in size: then no token means the same in both.
    """
    if model.vocab != base.vocab:
        raise UserError(
            f"{model.name} has {model.vocab} tokens and {base.name} has {base.vocab}: "
            "compare models that share a tokenizer"
        )
    records = []
    for done, window in enumerate(windows, 1):
        records.append(compare_window(model, base, window))
        if progress:
            progress(done, len(windows))
    return report(_joined(records), len(windows))


def compare_window(model: Scorer, base: Scorer, window: Window) -> TokenRecord:
    """One window, both models in lock step, a block of rows at a time."""
    tokens, rows = window.tokens[:-1].tolist(), block_rows(model.vocab)
    targets = window.tokens[window.first + 1 :]
    blocks = zip(
        model.logits(tokens, window.first, rows),
        base.logits(tokens, window.first, rows),
        strict=True,
    )
    records, done = [], 0
    for logits, base_logits in blocks:
        check_finite(logits, model.name)
        check_finite(base_logits, base.name)
        block_targets = targets[done : done + len(logits)]
        for part in row_blocks(*logits.shape):
            records.append(compare_rows(logits[part], base_logits[part], block_targets[part]))
        done += len(logits)
    return _joined(records)


def compare_rows(logits: F32, base_logits: F32, targets: I32) -> TokenRecord:
    """Both models' logits [rows, vocab] and the true tokens [rows]."""
    q, p = log_softmax(logits), log_softmax(base_logits)
    row = np.arange(len(targets))
    lost, base_lost = -q[row, targets], -p[row, targets]
    weight = np.exp(p)
    with np.errstate(invalid="ignore"):  # -inf minus -inf, where the weight is 0
        gap = np.where(weight > 0, p - q, 0.0)
    return TokenRecord(
        nll=lost,
        base_nll=base_lost,
        kl=np.einsum("rv,rv->r", weight, gap),
        p=np.exp(-lost),
        base_p=np.exp(-base_lost),
        same_top=logits.argmax(axis=1) == base_logits.argmax(axis=1),
    )


def report(tokens: TokenRecord, windows: int) -> DivergenceReport:
    """Figures with intervals from per-token values."""
    blocks = Blocks(len(tokens.nll))
    ratio = tokens.nll - tokens.base_nll
    delta = tokens.p - tokens.base_p
    ln_ratio = blocks.mean(ratio)
    replicates = blocks.mean_replicates(ratio)
    return DivergenceReport(
        tokens=len(tokens.nll),
        windows=windows,
        perplexity=perplexity_of(tokens.nll, blocks),
        base_perplexity=perplexity_of(tokens.base_nll, blocks),
        ln_ratio=ln_ratio,
        ratio=estimate(float(np.exp(ln_ratio.value)), np.exp(replicates)),
        difference=_difference(tokens, blocks),
        correlation=_correlation(blocks, tokens),
        kl_mean=blocks.mean(tokens.kl),
        kl_median=blocks.quantile(tokens.kl, 0.5),
        kl_99=blocks.quantile(tokens.kl, 0.99),
        kl_999=blocks.quantile(tokens.kl, 0.999),
        kl_max=float(tokens.kl.max()),
        same_top=blocks.mean(tokens.same_top.astype(np.float64)),
        rms_delta_p=_root(delta, blocks),
        mean_delta_p=blocks.mean(delta),
    )


def _difference(tokens: TokenRecord, blocks: Blocks) -> Estimate:
    """PPL(model) - PPL(base), from the same resampled texts."""
    pair = tokens.nll, tokens.base_nll
    value, base = (float(np.exp(losses.mean())) for losses in pair)
    drawn, base_drawn = (np.exp(blocks.mean_replicates(losses)) for losses in pair)
    return estimate(value - base, drawn - base_drawn)


def _root(delta: F64, blocks: Blocks) -> Estimate:
    square = delta * delta
    return estimate(float(np.sqrt(square.mean())), np.sqrt(blocks.mean_replicates(square)))


def _correlation(blocks: Blocks, tokens: TokenRecord) -> float:
    """Correlation of ln PPL of the two models over resampled texts; 1 for equal models."""
    left, right = blocks.mean_replicates(tokens.nll), blocks.mean_replicates(tokens.base_nll)
    if not (left.std() > 0 and right.std() > 0):
        return 1.0
    return float(np.corrcoef(left, right)[0, 1])


def _joined(records: Sequence[TokenRecord]) -> TokenRecord:
    return TokenRecord(
        nll=np.concatenate([r.nll for r in records]),
        base_nll=np.concatenate([r.base_nll for r in records]),
        kl=np.concatenate([r.kl for r in records]),
        p=np.concatenate([r.p for r in records]),
        base_p=np.concatenate([r.base_p for r in records]),
        same_top=np.concatenate([r.same_top for r in records]),
    )
