"""How the reference computes: precision and device, and the roundings of the plan it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from octavo.backends.base import ActivationFormat, KvFormat
from octavo.formats.activations import a8_group_for, padded_width
from octavo.formats.granularity import PerGroup
from octavo.formats.number_format import NumberFormat

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "fp64"]


@dataclass(frozen=True, slots=True)
class ReferenceOptions:
    """Defaults are the plain model: no rounding beyond the arithmetic's own.

    dtype        arithmetic of everything: fp32, or fp64 to see what fp32 rounds away.
    device       any torch device.
    activations  rounding before every linear layer: "a32" none, "a8" and "abf16" as
                 docs/numerics.md has them (abf16 rounds the weights too), "auto": what the
                 weight's format runs with natively.
    kv_format    how keys and values are stored; "fp32" stores them in `dtype`, unrounded.
    format       a NumberFormat to requantize linear weights to, or "source".
    keep         (part, format) exceptions to `format`, "source" among the formats.
    context      longest sequence, which picks longrope's and dynamic's frequencies;
                 0: the model's own maximum.
    """

    dtype: Precision = "fp32"
    device: str = "cpu"
    activations: ActivationFormat = "a32"
    kv_format: KvFormat = "fp32"
    format: str = "source"
    keep: tuple[tuple[str, str], ...] = ()
    context: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return torch.float64 if self.dtype == "fp64" else torch.float32


@dataclass(frozen=True, slots=True)
class ActivationRule:
    """What happens to the input of one linear layer; `group` inputs share a scale of a8."""

    kind: Literal["a32", "a8", "abf16"]
    group: int = 0

    def __str__(self) -> str:
        return f"a8_g{self.group}" if self.kind == "a8" else self.kind


def activation_rule(
    weight: NumberFormat, inputs: int, asked: ActivationFormat = "auto"
) -> ActivationRule:
    """The rule of a linear layer with `inputs` inputs whose weight is stored as `weight`.

    Integer products need integer codes: floats and float codebooks run in bf16 where a8 is asked.
    """
    integer = weight.kind == "int" or weight.variant == "iq4nl"
    if asked == "auto":
        asked = "a32" if weight.variant == "fp32" else "a8"
    if asked == "a8" and integer:
        size = weight.granularity.size if isinstance(weight.granularity, PerGroup) else inputs
        return ActivationRule("a8", a8_group_for(size, padded_width(inputs)))
    return ActivationRule("a32" if asked == "a32" else "abf16")
