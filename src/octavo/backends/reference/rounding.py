"""Roundings of a plan, differentiable: backward treats each as the identity."""

from __future__ import annotations

import torch

from octavo.backends.reference.options import ActivationRule
from octavo.formats.activations import (
    fake_quantize_a8,
    fake_quantize_a8a16,
    fake_quantize_a16,
)


def straight_through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded` forward, the gradient of `x` backward (arXiv 1308.3432).

    The difference added is exactly zero, so the forward value is `rounded` to the last bit.
    """
    return rounded.detach() + (x - x.detach()) if x.requires_grad else rounded


def round_activations(x: torch.Tensor, rule: ActivationRule) -> torch.Tensor:
    """Activations [..., k] as a kernel of this rule sees them."""
    if rule.kind == "a32":
        return x
    if rule.kind == "abf16":
        return round_bf16(x)
    if rule.kind == "a8":
        rounded = fake_quantize_a8(x.detach(), rule.group, torch)
    elif rule.kind == "a16":
        rounded = fake_quantize_a16(x.detach(), rule.group, torch)
    else:
        rounded = fake_quantize_a8a16(x.detach(), rule.group, rule.ratio, torch)
    return straight_through(x, rounded.to(x.dtype))


def round_bf16(x: torch.Tensor) -> torch.Tensor:
    return straight_through(x, x.detach().to(torch.bfloat16).to(x.dtype))
