"""What a training run is asked to do, and what it came to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from octavo.core.errors import ConfigError
from octavo.train.checkpoints import Curve

_LEAST = {
    "steps": 0, "warmup": 0, "patience": 0, "seed": 0,
    "batch": 1, "accumulate": 1, "evaluate_every": 1, "checkpoint_every": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train. Raises ConfigError for a value out of range.

    steps             updates of the weights; 0 leaves them as they are
    learning_rate     the peak, after `warmup` steps; a cosine then takes it to `final` of it
    weight_decay      AdamW's (arXiv 1711.05101), on matrices only
    batch             windows per forward pass; accumulate  forward passes per update. Every process
                      of a torchrun job does its own: an update has batch * accumulate * processes
    clip              largest norm of an update's gradient, 0: any
    evaluate_every    steps between held-out losses (also taken before the first step)
    patience          held-out losses without a new best before the run stops, which then keeps the
                      best weights; 0: never stop early, keep the last
    checkpoint_every  steps between checkpoints, where the trainer has a directory
    precision         of the passes that are trained on: "bf16" multiplies in bf16 (autocast) under
                      fp32 masters, gradients of weights and optimizer state; held-out losses are
                      always those of fp32
    recompute         keep a layer's input alone and compute the rest again backward (gradient
                      checkpointing, arXiv 1604.06174): less memory, equal gradients
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
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision is {self.precision!r}; give fp32 or bf16")
        for name, bound in _LEAST.items():
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
    """What a run came to. Curves are (step, nats per token); `train` has every step's loss.

    loss, watched  names of what was trained on and of what was held out
    """

    steps: int
    stopped_early: bool
    best_step: int
    train: Curve
    held_out: Curve
    loss: str = "labels"
    watched: str = "labels"
