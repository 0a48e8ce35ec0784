"""One small training loop: AdamW, a cosine schedule, exact resume, early stop on held-out loss."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo.backends.reference.weights import Weights
from octavo.core.errors import ConfigError, NumericsError
from octavo.train.checkpoints import Checkpoint, Curve, load, save
from octavo.train.data import I64, Corpus, batches
from octavo.train.qat import QatModel


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train. Raises ConfigError for a value out of range.

    steps             updates of the weights; 0 leaves them as they are
    learning_rate     the peak, after `warmup` steps; a cosine then takes it to `final` of it
    weight_decay      AdamW's (arXiv 1711.05101), on matrices only
    batch             windows per forward pass; accumulate  forward passes per update
    clip              largest norm of an update's gradient, 0: any
    evaluate_every    steps between held-out losses (also taken before the first step)
    patience          held-out losses without a new best before the run stops, which then keeps the
                      best weights; 0: never stop early, keep the last
    checkpoint_every  steps between checkpoints, where the trainer has a directory
    """

    steps: int
    learning_rate: float = 1e-4
    warmup: int = 0
    final: float = 0.1
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    batch: int = 8
    accumulate: int = 1
    clip: float = 1.0
    evaluate_every: int = 100
    patience: int = 0
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 0, "warmup": 0, "patience": 0, "batch": 1, "accumulate": 1, "seed": 0}
        for name, bound in (*least.items(), ("evaluate_every", 1), ("checkpoint_every", 1)):
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {bound}")
        for name in ("learning_rate", "weight_decay", "clip", "final", "beta1", "beta2"):
            value = getattr(self, name)
            if value < 0 or not math.isfinite(value):
                raise ConfigError(f"{name} is {value}; give a number from 0 on")
        if self.final > 1 or self.beta1 >= 1 or self.beta2 >= 1:
            raise ConfigError("final is at most 1, beta1 and beta2 are less than 1")

    def rate(self, step: int) -> float:
        """The learning rate of update number `step`, from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        share = self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
        return self.learning_rate * share


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run came to. Curves are (step, nats per token); `train` has every step's loss."""

    steps: int
    stopped_early: bool
    best_step: int
    train: Curve
    held_out: Curve


class Trainer:
    """Trains a model's masters in place.

    directory  where checkpoints go, and where a run is taken up again; None: nowhere
    on_step    told (step, loss) after every update
    """

    def __init__(
        self,
        model: QatModel,
        corpus: Corpus,
        config: TrainConfig,
        directory: Path | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> None:
        self.model, self.corpus, self.config = model, corpus, config
        self._directory, self._on_step = directory, on_step
        self._parameters = model.parameters()
        self._optimizer = _adamw(self._parameters, config)
        self._start = _digest(self._parameters) if directory else ""
        self._step = 0
        self._train: list[tuple[int, float]] = []
        self._held_out: list[tuple[int, float]] = []
        self._best: dict[str, Tensor] = {}

    def run(self) -> TrainReport:
        """Train to the end, from the directory's checkpoint if it has one.

        Raises NumericsError naming the step and the place when numbers leave the finite ones; the
        last checkpoint stays. UserError when the checkpoint is damaged or from another recipe.
        """
        with _deterministic():
            self._resume()
            if not self._held_out:
                self._evaluate()
            self._loop()
        if self.config.patience:
            self._restore(self._best)
        best = min(self._held_out, key=lambda point: point[1])[0]
        early = self._step < self.config.steps
        return TrainReport(self._step, early, best, tuple(self._train), tuple(self._held_out))

    def held_out_loss(self) -> float:
        """Mean nats per token of the held-out windows, as the model would be served now."""
        with torch.no_grad():
            weights = self._prepared()
            size = self.config.batch
            windows = self.corpus.held_out
            sums = [
                float(self.model.loss(windows[i : i + size], weights)) * len(windows[i : i + size])
                for i in range(0, len(windows), size)
            ]
        return math.fsum(sums) / len(windows)

    def _loop(self) -> None:
        config = self.config
        feed = batches(self.corpus.train, config.batch, config.seed, self._step * config.accumulate)
        while self._step < config.steps and not self._exhausted():
            loss = self._update(feed)
            self._step += 1
            self._train.append((self._step, loss))
            last = self._step == config.steps
            if last or self._step % config.evaluate_every == 0:
                self._evaluate()
            if last or self._exhausted() or self._step % config.checkpoint_every == 0:
                self._save()
            if self._on_step:
                self._on_step(self._step, loss)

    def _update(self, feed: Iterator[I64]) -> float:
        """One step of AdamW. Weights are rounded once; every pass adds to the gradients of the
        rounded ones, which then go through the straight-through estimator in one sweep."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.rate(self._step)
        self._optimizer.zero_grad()
        prepared = self._prepared()
        leaves = {role: w.detach().requires_grad_() for role, w in prepared.items()}
        losses = []
        for _ in range(self.config.accumulate):
            tokens = next(feed)
            loss = self.model.loss(tokens, leaves) / self.config.accumulate
            self._check_loss(loss, tokens, leaves)
            torch.autograd.backward([loss])
            losses.append(loss.item())
        used = [role for role in prepared if leaves[role].grad is not None]
        torch.autograd.backward([prepared[r] for r in used], [leaves[r].grad for r in used])
        self._clip()
        self._optimizer.step()
        return math.fsum(losses)

    def _prepared(self) -> Weights:
        try:
            return self.model.prepared()
        except NumericsError as error:
            raise self._broken(str(error)) from error

    def _check_loss(self, loss: Tensor, tokens: I64, weights: Weights) -> None:
        if torch.isfinite(loss):
            return
        with torch.no_grad():
            where = self.model.first_broken(tokens, weights)
        raise self._broken(f"the loss is {loss.item()}, first wrong in the output of {where}")

    def _clip(self) -> None:
        norm = torch.nn.utils.clip_grad_norm_(
            self._parameters.values(), self.config.clip or math.inf
        )
        if torch.isfinite(norm):
            return
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise self._broken(f"the gradient of {name} is not finite")
        raise self._broken("the gradient's norm is not finite")

    def _broken(self, what: str) -> NumericsError:
        kept = f"; the last checkpoint in {self._directory} is kept" if self._directory else ""
        return NumericsError(
            f"training stopped at step {self._step}: {what}; "
            f"lower learning_rate ({self.config.learning_rate:g}) or clip{kept}"
        )

    def _evaluate(self) -> None:
        loss = self.held_out_loss()
        if not math.isfinite(loss):
            raise self._broken(f"the held-out loss is {loss}")
        if self.config.patience and all(loss < point[1] for point in self._held_out):
            self._best = {name: w.detach().clone() for name, w in self._parameters.items()}
        self._held_out.append((self._step, loss))

    def _exhausted(self) -> bool:
        if not self.config.patience:
            return False
        losses = [loss for _, loss in self._held_out]
        return len(losses) - 1 - losses.index(min(losses)) >= self.config.patience

    def _save(self) -> None:
        if self._directory is None:
            return
        tensors = {f"master/{name}": w for name, w in self._parameters.items()}
        tensors |= {f"best/{name}": w for name, w in self._best.items()}
        for name, parameter in self._parameters.items():
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"{kind}/{name}": x for kind, x in state.items()}
        arrays = {name: x.detach().cpu().numpy() for name, x in tensors.items()}
        checkpoint = Checkpoint(self._step, arrays, tuple(self._train), tuple(self._held_out))
        save(self._directory, checkpoint, self._recipe())

    def _resume(self) -> None:
        found = load(self._directory, self._recipe()) if self._directory else None
        if found is None:
            return
        self._step = found.step
        self._train, self._held_out = list(found.train), list(found.held_out)
        tensors = {name: torch.from_numpy(x) for name, x in found.tensors.items()}
        self._restore(_under("master", tensors))
        self._best = _under("best", tensors)
        for name, parameter in self._parameters.items():
            kinds = ("step", "exp_avg", "exp_avg_sq")
            state = {k: tensors[f"{k}/{name}"] for k in kinds if f"{k}/{name}" in tensors}
            if state:
                self._optimizer.state[parameter] = state

    def _restore(self, named: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(named[name])

    def _recipe(self) -> dict[str, object]:
        model = self.model
        return {
            **asdict(self.config),
            "context": self.corpus.context,
            "text": self.corpus.digest(),
            "weights": self._start,
            "learn_steps": bool(model.factors),
            "activations": model.options.activations,
            "kv_format": model.options.kv_format,
            "formats": {
                str(role): str(model.formats[role]) for role in sorted(model.coded, key=str)
            },
        }


def _adamw(parameters: dict[str, Tensor], config: TrainConfig) -> torch.optim.AdamW:
    matrices = [w for w in parameters.values() if w.ndim == 2]
    others = [w for w in parameters.values() if w.ndim != 2]  # norms, biases, factors of steps
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))


def _digest(parameters: dict[str, Tensor]) -> str:
    """A hash of the weights that a run begins with."""
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _under(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{kind}/"
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


@contextmanager
def _deterministic() -> Iterator[None]:
    """torch may otherwise add gradients of repeated tokens in the order of its threads."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
