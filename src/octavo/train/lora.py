"""Low-rank adapters (LoRA, arXiv 2106.09685): a fixed weight plus a trained thin product.

What is multiplied with, rounded and saved is the merged weight itself: merging changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo.core.errors import ConfigError, UnsupportedError
from octavo.io.mapping import replacing
from octavo.io.safetensors_file import write_safetensors
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.family import Family
from octavo.spec.graph import linear_roles, role_shape

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """weight + alpha / rank * B A, with A [rank, in] and B [out, rank].

    parts  the linear layers that get one, by part ("q"). Raises ConfigError for a rank below 1, an
           alpha that isn't positive, and a part that isn't one of `LINEAR`.
    """

    rank: int = 8
    alpha: float = 16.0
    parts: tuple[str, ...] = LINEAR
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(
                f"LoRA of rank {self.rank} and alpha {self.alpha}: give a rank from 1 on and a "
                "positive alpha"
            )
        for part in self.parts:
            if part not in LINEAR:
                raise ConfigError(f"LoRA on {part!r}; give some of {', '.join(LINEAR)}")
        if not self.parts:
            raise ConfigError(f"LoRA on no layer; give some of {', '.join(LINEAR)}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Adapters:
    """A and B of every adapted matrix; B starts at zero, so that nothing changes at first."""

    def __init__(self, spec: DecoderSpec, config: LoraConfig, device: str = "cpu") -> None:
        self.config = config
        self._pairs: dict[Role, tuple[Tensor, Tensor]] = {}
        draws = torch.Generator().manual_seed(config.seed)
        for role in (r for r in linear_roles(spec) if r.part in config.parts):
            rows, columns = role_shape(spec, role)
            bound = columns**-0.5  # kaiming_uniform with a = sqrt(5), as PEFT starts A
            a = (torch.rand(config.rank, columns, generator=draws) * 2 - 1) * bound
            b = torch.zeros(rows, config.rank)
            self._pairs[role] = (_leaf(a, device), _leaf(b, device))

    def parameters(self) -> dict[str, Tensor]:
        """By name: "layer 0 q A" and "layer 0 q B"."""
        named = {f"{role} A": a for role, (a, _) in self._pairs.items()}
        return named | {f"{role} B": b for role, (_, b) in self._pairs.items()}

    def merged(self, role: Role, weight: Tensor) -> Tensor:
        """float32 [out, in]: the weight with its adapter, if it has one."""
        if role not in self._pairs:
            return weight
        a, b = self._pairs[role]
        return weight + (b @ a) * self.config.scale

    def recipe(self) -> dict[str, object]:
        config = self.config
        return {"rank": config.rank, "alpha": config.alpha, "parts": list(config.parts)}

    def save(self, directory: Path, spec: DecoderSpec, family: Family, base: str) -> None:
        """Write PEFT's adapter_config.json and adapter_model.safetensors.

        base  name or path of the model that the adapters belong to. Raises UnsupportedError for a
              family whose files fuse an adapted matrix with others.
        """
        tensors, modules = {}, set()
        for role, (a, b) in self._pairs.items():
            module = _module(family, spec, role)
            modules.add(module.rpartition(".")[2])
            for letter, tensor in (("A", a), ("B", b)):
                name = f"base_model.model.{module}.lora_{letter}.weight"
                tensors[name] = tensor.detach().cpu().numpy()
        directory.mkdir(parents=True, exist_ok=True)
        write_safetensors(directory / "adapter_model.safetensors", tensors, {"format": "pt"})
        with replacing(directory / "adapter_config.json") as file:
            file.write(json.dumps(_peft(self.config, modules, base), indent=2).encode())


def _leaf(values: Tensor, device: str) -> Tensor:
    return values.to(device).requires_grad_()


def _module(family: Family, spec: DecoderSpec, role: Role) -> str:
    place = family.hf_tensor(spec, role)
    if place.rows is not None or place.index is not None:
        raise UnsupportedError(
            f"{family.name} keeps {role} inside {place.name}, together with others, where PEFT has "
            "no adapter for it alone: merge the adapters instead"
        )
    return place.name.removesuffix(".weight")


def _peft(config: LoraConfig, modules: Iterable[str], base: str) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
    }
