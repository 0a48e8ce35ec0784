"""How the reference computes: precision and device, and the roundings of the plan it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from octavo.backends.base import ActivationFormat, KvFormat
from octavo.core.errors import UnsupportedError
from octavo.formats.activations import (
    WIDE_RATIO,
    a8_group_for,
    padded_width,
    takes_a8,
    takes_a16,
)
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
    activations  rounding before every linear layer: "a32" none, the others as docs/numerics.md
                 has them, "auto": what the weight's format runs with natively.
    wide_ratio   of a8a16: rows whose maximum over RMS is larger take 16 bits.
    keep_activations  (name, activations) exceptions; names as in `keep`, the last counts.
    maxima       of a8_static: the largest input of each matrix, by its name.
    kv_format    how keys and values are stored; "fp32" stores them in `dtype`, unrounded.
    format       a NumberFormat to requantize linear weights to, or "source".
    keep         (name, format) exceptions to `format`, "source" among the formats; a name is a
                 part ("down") or a part of one layer ("layers.3.down").
    context      longest sequence, which picks longrope's and dynamic's frequencies;
                 0: the model's own maximum.
    """

    dtype: Precision = "fp32"
    device: str = "cpu"
    activations: ActivationFormat = "a32"
    keep_activations: tuple[tuple[str, ActivationFormat], ...] = ()
    maxima: Mapping[str, float] = field(default_factory=dict)
    wide_ratio: float = WIDE_RATIO
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
    """What happens to the input of one linear layer; `group` inputs share an integer scale."""

    kind: Literal[
        "a32", "a8", "a16", "a8a16", "abf16", "a8_token", "a8_tensor", "a8_static", "llm_int8"
    ]
    group: int = 0
    ratio: float = WIDE_RATIO  # a8a16
    peak: float = 0.0  # a8_static: the input that becomes 127

    def __str__(self) -> str:
        return f"{self.kind}_g{self.group}" if self.group else self.kind


def activation_rule(
    weight: NumberFormat,
    inputs: int,
    asked: ActivationFormat = "auto",
    ratio: float = WIDE_RATIO,
) -> ActivationRule:
    """The rule of a linear layer with `inputs` inputs whose weight is stored as `weight`.

    auto: integers and codebooks of up to 16 levels multiply in a8, fp32 and fp16 exactly, all else
    (bf16, fp8, larger codebooks) in abf16. Raises UnsupportedError when a8, a16 or a8a16 is asked
    of weights that don't take it.
    """
    if asked == "auto":
        exact = weight.plain and weight.variant != "bf16"
        asked = "a8" if takes_a8(weight) else "a32" if exact else "abf16"
    if asked in ("abf16", "a32"):
        return ActivationRule(asked)
    wide = asked in ("a16", "a8a16")
    if not (takes_a16 if wide else takes_a8)(weight):
        codebooks = "" if wide else " and codebooks of up to 16 levels"
        raise UnsupportedError(
            f"{asked} multiplies integers{codebooks}, and a weight is {weight}; "
            "use activations auto or abf16, or an integer format"
        )
    if asked in ("a8_token", "a8_tensor", "a8_static", "llm_int8"):
        return ActivationRule(asked)
    size = weight.granularity.size if isinstance(weight.granularity, PerGroup) else inputs
    return ActivationRule(asked, a8_group_for(size, padded_width(inputs)), ratio)
