"""AdamW (arXiv 1711.05101) over named parameters, and its state by name for checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.train.config import TrainConfig

_KINDS = ("step", "exp_avg", "exp_avg_sq")


def adamw(parameters: Mapping[str, Tensor], config: TrainConfig) -> torch.optim.AdamW:
    """Weight decay on matrices only: not on norms, biases and factors of steps."""
    matrices = [w for w in parameters.values() if w.ndim == 2]
    others = [w for w in parameters.values() if w.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def named_state(
    optimizer: torch.optim.AdamW, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors called "exp_avg/NAME" and so on."""
    return {
        f"{kind}/{name}": tensor
        for name, parameter in parameters.items()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }


def take_state(
    optimizer: torch.optim.AdamW, parameters: Mapping[str, Tensor], named: Mapping[str, Tensor]
) -> None:
    """`named_state`'s inverse. The count of steps stays on the CPU, as torch wants it."""
    for name, parameter in parameters.items():
        found = {kind: named[f"{kind}/{name}"] for kind in _KINDS if f"{kind}/{name}" in named}
        if found:
            optimizer.state[parameter] = {
                kind: x if kind == "step" else x.to(parameter.device) for kind, x in found.items()
            }


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of named tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()
