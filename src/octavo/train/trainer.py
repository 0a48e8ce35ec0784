"""One small training loop: AdamW, a cosine schedule, exact resume, early stop on held-out loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.backends.reference.weights import Weights
from octavo.core.errors import NumericsError, OctavoError
from octavo.train import memory, processes
from octavo.train.checkpoints import Checkpoint, load, save
from octavo.train.config import TrainConfig, TrainReport
from octavo.train.data import Batch, Corpus, batches
from octavo.train.losses import Labels, Loss
from octavo.train.optimizer import adamw, digest, named_state, take_state
from octavo.train.qat import QatModel

__all__ = ["TrainConfig", "TrainReport", "Trainer"]


class Trainer:
    """Trains a model's parameters in place; in a torchrun job together with the other processes.

    directory  where checkpoints go, and where a run is taken up again; None: nowhere
    on_step    told (step, loss) after every update
    loss       what is trained on; watched  what held-out windows are judged by (None: `loss`)
    """

    def __init__(
        self,
        model: QatModel,
        corpus: Corpus,
        config: TrainConfig,
        directory: Path | None = None,
        on_step: Callable[[int, float], None] | None = None,
        loss: Loss | None = None,
        watched: Loss | None = None,
    ) -> None:
        self.model, self.corpus, self.config = model, corpus, config
        self._directory, self._on_step = directory, on_step
        self._loss: Loss = loss or Labels()
        self._watched = watched or self._loss
        self._parameters = model.parameters()
        self._optimizer = adamw(self._parameters, config)
        self._start = digest(model.state()) if directory or processes.count() > 1 else ""
        self._step = 0
        self._train: list[tuple[int, float]] = []
        self._held_out: list[tuple[int, float]] = []
        self._best: dict[str, Tensor] = {}

    def run(self) -> TrainReport:
        """Train to the end, from the directory's checkpoint if it has one.

        Raises NumericsError naming the step and the place when numbers leave the finite ones; the
        last checkpoint stays. UserError when the checkpoint is damaged or from another recipe.
        ResourceError, saying what would fit, when memory doesn't suffice.
        """
        processes.check_equal(self._recipe(), "what they train")
        with _deterministic():
            self._resume()
            self._check_memory()
            if not self._held_out:
                self._evaluate()
            self._loop()
        if self.config.patience:
            self._restore(self._best)
        return self._report()

    def held_out_loss(self) -> float:
        """Mean nats per token of the held-out windows, as the model would be served now."""
        size, held_out = self.config.batch, self.corpus.holding_out()
        with torch.no_grad():
            weights = self._prepared()
            sums = [
                self._sum(self._watched, held_out[start : start + size], weights).item()
                for start in self._own(range(0, len(held_out.tokens), size))
            ]
        # in one order whatever the number of processes
        every = [part for parts in processes.gather(sums) for part in parts]
        return math.fsum(every) / float(held_out.weights.sum(dtype=float))

    def _own(self, starts: range) -> range:
        """This process's share of equal pieces of work."""
        return starts[processes.rank() :: processes.count()]

    def _loop(self) -> None:
        config, count = self.config, len(self.corpus.train)
        size = config.batch * config.accumulate * processes.count()
        feed = batches(count, size, config.seed, self._step)
        while self._step < config.steps and not self._exhausted():
            loss = self._update(self.corpus.training(next(feed)))
            self._step += 1
            self._train.append((self._step, loss))
            last = self._step == config.steps
            if last or self._step % config.evaluate_every == 0:
                self._evaluate()
            if last or self._exhausted() or self._step % config.checkpoint_every == 0:
                self._save()
            if self._on_step:
                self._on_step(self._step, loss)

    def _update(self, batch: Batch) -> float:
        """One step of AdamW. Weights are rounded once; every pass adds to the gradients of the
        rounded ones, which then go through the straight-through estimator in one sweep."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.rate(self._step)
        self._optimizer.zero_grad()
        prepared = self._prepared()
        leaves = self._leaves(prepared)
        total = float(batch.weights.sum(dtype=float))
        with memory.explained(self.config.batch, self._advice):
            passes = [self._pass(part, leaves, total) for part in self._parts(batch)]
        every = [found for own in processes.gather(passes) for found in own]
        self._check_finite(every)
        self._through(prepared, leaves)
        self._clip()
        self._optimizer.step()
        return math.fsum(loss for loss, _ in every)

    def _leaves(self, prepared: Weights) -> Weights:
        """The rounded weights cut off from the masters; those that nothing is trained in, fixed."""
        return {role: w.detach().requires_grad_(w.requires_grad) for role, w in prepared.items()}

    def _through(self, prepared: Weights, leaves: Weights) -> None:
        """The leaves' gradients, added up over all processes, to the parameters."""
        own = {str(role) for role, leaf in leaves.items() if leaf.grad is not None}
        names = set().union(*processes.gather(own))  # an expert may be used by some of them only
        reached = [role for role in leaves if str(role) in names]
        gradients = [_gradient(leaves[role]) for role in reached]
        processes.add_up(gradients)
        torch.autograd.backward([prepared[role] for role in reached], gradients)

    def _parts(self, batch: Batch) -> list[Batch]:
        """This process's passes over an update's windows."""
        size = self.config.batch
        return [
            batch[start : start + size] for start in self._own(range(0, len(batch.tokens), size))
        ]

    def _pass(self, batch: Batch, leaves: Weights, total: float) -> tuple[float, str]:
        """Forward and backward: the batch's part of the mean over `total`, and what broke."""
        with self._precision():
            loss = self._sum(self._loss, batch, leaves, self.config.recompute) / total
        if not torch.isfinite(loss):
            with torch.no_grad():
                return loss.item(), self.model.first_broken(batch.tokens[:, :-1], leaves)
        torch.autograd.backward([loss])
        return loss.item(), ""

    def _sum(self, loss: Loss, batch: Batch, weights: Weights, recompute: bool = False) -> Tensor:
        """The loss's weighted sum over a batch's tokens."""
        tokens = batch.tokens[:, :-1]
        logits = self.model.logits(tokens, weights, recompute).view(*tokens.shape, -1)
        per_token = loss.per_token(logits.float(), batch)
        return (per_token * torch.tensor(batch.weights, device=per_token.device)).sum()

    def _precision(self) -> torch.autocast:
        kind = torch.device(self.model.options.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _prepared(self) -> Weights:
        try:
            return self.model.prepared()
        except NumericsError as error:
            raise self._broken(str(error)) from error

    def _check_finite(self, passes: list[tuple[float, str]]) -> None:
        for loss, where in passes:
            if not math.isfinite(loss):
                raise self._broken(f"the loss is {loss}, first wrong in the output of {where}")

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

    def _check_memory(self) -> None:
        """Before the first step: Linux would not refuse, but end the process later."""
        with memory.explained(1, lambda: "not even one window fits: cut a shorter context"):
            need = self._need(self.config.recompute)
        free = memory.free_memory(self.model.options.device)
        memory.check_fits(need, self.config.batch, free, self._with_recompute())

    def _need(self, recompute: bool) -> memory.Need:
        leaves = self._leaves(self._prepared())
        trained = sum(w.nbytes for w in self._parameters.values())
        fixed = 2 * sum(w.nbytes for w in leaves.values()) + 3 * trained

        def forward(windows: int) -> Tensor:
            with self._precision():
                batch = self.corpus.training(np.zeros(windows, np.int64))
                return self._sum(self._loss, batch, leaves, recompute)

        return memory.measure(forward, leaves.values(), fixed)

    def _with_recompute(self) -> Callable[[], memory.Need] | None:
        return None if self.config.recompute else lambda: self._need(True)

    def _advice(self) -> str:
        """After a failed pass, whose memory is free again."""
        free = memory.free_memory(self.model.options.device)
        need = self._need(self.config.recompute)
        return memory.advice(need, self.config.batch, free, self._with_recompute())

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

    def _report(self) -> TrainReport:
        best = min(self._held_out, key=lambda point: point[1])[0]
        early = self._step < self.config.steps
        train, held_out = tuple(self._train), tuple(self._held_out)
        names = self._loss.name, self._watched.name
        return TrainReport(self._step, early, best, train, held_out, *names)

    def _save(self) -> None:
        """By process 0. An error there ends all of them."""
        failed: OctavoError | None = None
        if self._directory is not None and processes.rank() == 0:
            try:
                save(self._directory, self._checkpoint(), self._recipe())
            except OctavoError as error:
                failed = error
        if (first := processes.gather(failed)[0]) is not None:
            raise first

    def _checkpoint(self) -> Checkpoint:
        tensors = {f"master/{name}": w for name, w in self._parameters.items()}
        tensors |= {f"best/{name}": w for name, w in self._best.items()}
        tensors |= named_state(self._optimizer, self._parameters)
        arrays = {name: x.detach().cpu().numpy() for name, x in tensors.items()}
        return Checkpoint(self._step, arrays, tuple(self._train), tuple(self._held_out))

    def _resume(self) -> None:
        found = load(self._directory, self._recipe()) if self._directory else None
        if found is None:
            return
        self._step = found.step
        self._train, self._held_out = list(found.train), list(found.held_out)
        tensors = {name: torch.from_numpy(x) for name, x in found.tensors.items()}
        self._restore(_under("master", tensors))
        self._best = _under("best", tensors)
        take_state(self._optimizer, self._parameters, tensors)

    def _restore(self, named: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(named[name])

    def _recipe(self) -> dict[str, object]:
        return {
            **asdict(self.config),
            "processes": processes.count(),
            "context": self.corpus.context,
            "text": self.corpus.digest(),
            "weights": self._start,
            "loss": dict(self._loss.recipe()),
            "watched": dict(self._watched.recipe()),
            **self.model.recipe(),
        }


def _gradient(leaf: Tensor) -> Tensor:
    """A leaf's gradient, zero where only other processes reached it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _under(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{kind}/"
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


@contextmanager
def _deterministic() -> Iterator[None]:
    """torch may otherwise add gradients of repeated tokens in the order of its threads."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    switch: Any = torch.utils.deterministic  # a property of a module, which types don't tell
    filled = switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # it shows reads of what nobody wrote, which no operation here does, at a fifth of the time
    switch.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        switch.fill_uninitialized_memory = filled
