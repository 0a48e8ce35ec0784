"""AWQ's motivating experiment (arXiv 2306.00978, section 3.1, table 1), not its method.

Keep the weights of the 1 % of inputs that are largest on average in 16 bits and round the others:
most of the loss goes away, while the same share chosen by the weights' size, or at random, hardly
helps. Mixed rows suit no kernel, which is why the method scales instead. What is stored here is
fp32, each weight rounded as said: it shows quality and saves no space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.core.errors import ConfigError, FormatError
from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rtn import fake_quantize

Choice = Literal["activations", "weights", "random"]


@dataclass(frozen=True, slots=True)
class AwqSalient:
    """Encoder whose step has the format fp32.

    format  what the other inputs are rounded to
    share   of inputs that stay in bf16
    by      "activations": largest mean |x|; "weights": largest norm of the column; "random"
    """

    needs: ClassVar[Needs] = Needs.MEAN_ABS
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="heuristic", format="fp32",
        source="arXiv 2306.00978, table 1",
        synonyms=("salient channels", "mixed precision columns"),
    )  # fmt: skip

    format: str = "int3_g128"
    share: float = 0.01
    by: Choice = "activations"
    seed: int = 0

    def __post_init__(self) -> None:
        NumberFormat.parse(self.format)
        if self.by not in ("activations", "weights", "random"):
            raise ConfigError(
                f"awq_salient: by is {self.by!r}; it must be activations, weights or random"
            )
        if not 0 <= self.share <= 1:
            raise ConfigError(f"awq_salient: share is {self.share:g}; it must be 0 to 1")

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        if target != FP32:
            raise FormatError(
                f"awq_salient mixes bf16 and {self.format}: only fp32 holds both, not {target}; "
                "give the step the format fp32"
            )
        W = weight if mask is None else weight * mask
        Q = fake_quantize(W.contiguous(), NumberFormat.parse(self.format), torch)
        kept = self.salient(W, stats)
        Q[:, kept] = W[:, kept].bfloat16().float()
        if mask is not None:
            Q = Q * mask
        return QuantizedTensor(FP32, (W.shape[0], W.shape[1]), Q.contiguous().numpy())

    def salient(self, W: Tensor, stats: LinearStats) -> Tensor:
        """The inputs that stay: at least one, unless the share is 0."""
        inputs = W.shape[1]
        count = min(inputs, -int(-self.share * inputs // 1))
        if self.by == "random":
            random = torch.Generator().manual_seed(self.seed)
            return torch.randperm(inputs, generator=random)[:count]
        score = W.square().sum(0)
        if self.by == "activations":
            assert stats.mean_abs is not None
            score = stats.mean_abs
        return score.argsort(descending=True, stable=True)[:count]
