"""What an artifact lost against its source, on texts it was not calibrated on.

Both run in the executor that will serve them: the native one, or the reference in fp32 where a
model isn't planned natively (the record says which).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import UserError
from octavo.evals.divergence import DivergenceReport, divergence
from octavo.evals.scorer import ExecutorScorer, Scorer
from octavo.evals.windows import Window, split
from octavo.io.checkpoint import open_model
from octavo.spec.decoder import DecoderSpec

Progress = Callable[[int, int], None]
CONTEXT = 512
COLLAPSED = 0.5  # share of equal top tokens below which a result has nothing of its source


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A text to measure on, as tokens without the begin token."""

    name: str
    tokens: tuple[int, ...]
    begin: int | None = None


@dataclass(frozen=True, slots=True)
class Quality:
    """One report per text, in the order given. `executor` ran both models."""

    executor: str
    context: int
    texts: tuple[tuple[str, DivergenceReport], ...]

    @property
    def kl(self) -> float:
        """The largest mean KL of the texts, in nats."""
        return max(report.kl_mean.value for _, report in self.texts)

    @property
    def collapsed(self) -> bool:
        return any(report.same_top.value < COLLAPSED for _, report in self.texts)

    def to_dict(self) -> dict[str, object]:
        """quality.json: `kl.mean` with its interval, and everything else per text."""
        return {
            "executor": self.executor,
            "context": self.context,
            "collapsed": self.collapsed,
            "texts": [_record(name, report) for name, report in self.texts],
        }


def measure(
    artifact: Path, source: Path, texts: Sequence[HeldOut], progress: Progress | None = None
) -> Quality:
    """Run both over every text. Raises UserError for a text that leaves nothing to score."""
    with open_model(source) as model:
        context = context_of(model.spec)
    config = RuntimeConfig(context=context, max_seqs=1)
    found = []
    with closing(_scorer(artifact, config)) as ours, closing(_scorer(source, config)) as base:
        for text in texts:
            report = divergence(ours, base, windows_of(text, context), progress)
            found.append((text.name, report))
        return Quality(ours.name, context, tuple(found))


def context_of(spec: DecoderSpec) -> int:
    """Tokens of a window."""
    return min(CONTEXT, spec.max_positions)


def windows_of(text: HeldOut, context: int) -> tuple[Window, ...]:
    """What is scored of a text. Raises UserError, naming it, when that is nothing."""
    try:
        return split(text.tokens, context, None, text.begin)
    except UserError as error:
        raise UserError(f"{text.name}: {error}") from error


def _scorer(path: Path, config: RuntimeConfig) -> Scorer:
    from octavo.backends.native.backend import NativeBackend
    from octavo.engine.loading import load_executor

    with open_model(path) as model:
        if NativeBackend().supports(model.spec, config).ok:
            executor = load_executor(model.spec, model.source, config)
            receipt = executor.receipt()
            isa = f" {receipt.isa}" if receipt.backend == "native" else ""
            name = f"{receipt.backend}{isa}, kv {receipt.kv_format}"
            return ExecutorScorer(executor, name)
        from octavo.backends.reference.executor import load_reference

        return ExecutorScorer(load_reference(model.source, model.spec, config), "reference")


def _record(name: str, report: DivergenceReport) -> dict[str, object]:
    values = asdict(report)
    figures = {key: values.pop(f"kl_{key}") for key in ("mean", "median", "99", "999", "max")}
    return {"text": name, "kl": figures, **values}
