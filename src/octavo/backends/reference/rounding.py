"""Roundings of a plan, differentiable: backward treats each as the identity."""

from __future__ import annotations

import torch

from octavo.backends.base import KvFormat
from octavo.backends.reference.options import ActivationRule
from octavo.core.errors import UnsupportedError
from octavo.formats.activations import (
    fake_quantize_a8,
    fake_quantize_a8a16,
    fake_quantize_a16,
    fake_quantize_int8,
    fake_quantize_llm_int8,
)
from octavo.formats.floats import largest, round_float
from octavo.formats.kivi import KIVI_BITS
from octavo.formats.kv import fake_quantize_kv


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
    # codes of 8 and 16 bits are no bf16 numbers: under autocast their roundings are fp32's, too
    plain = x.detach().float() if x.element_size() < 4 else x.detach()
    if rule.kind == "a8":
        rounded = fake_quantize_a8(plain, rule.group, torch)
    elif rule.kind == "a16":
        rounded = fake_quantize_a16(plain, rule.group, torch)
    elif rule.kind in ("a8_token", "a8_tensor", "a8_static"):
        rounded = _int8(plain.float(), rule)
    elif rule.kind == "llm_int8":
        rounded = fake_quantize_llm_int8(plain.float(), torch)
    else:
        rounded = fake_quantize_a8a16(plain, rule.group, rule.ratio, torch)
    return straight_through(x, rounded.to(x.dtype))


def _int8(x: torch.Tensor, rule: ActivationRule) -> torch.Tensor:
    if rule.kind == "a8_token":
        amax = x.abs().amax(-1, keepdim=True)
    elif rule.kind == "a8_tensor":
        amax = x.abs().amax() if x.numel() else x.new_zeros(())
    else:
        amax = x.new_tensor(rule.peak)
    rounded: torch.Tensor = fake_quantize_int8(x, amax, torch)
    return rounded


def round_bf16(x: torch.Tensor) -> torch.Tensor:
    return straight_through(x, x.detach().to(torch.bfloat16).to(x.dtype))


def round_kv(
    k: torch.Tensor, v: torch.Tensor, format: KvFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [..., head_dim] as a cache of `format` gives them back; fp32 keeps them.

    The integer formats are rounded in fp32 as the native cache does, to the same codes and scales.
    Raises UnsupportedError for values beyond the range of fp16 or fp8, which has no scale here, for
    KIVI's formats, where it depends on the query, and for int8_dot, which rounds more than these.
    """
    if format in KIVI_BITS:
        raise UnsupportedError(
            f"{format} rounds keys and values when they leave a window, which passes over whole "
            "texts, such as training's, don't do; use int4 or int8 there"
        )
    if format == "int8_dot":
        raise UnsupportedError(
            "int8_dot rounds queries and the softmax too, which passes over whole texts, such as "
            "training's, don't do; use int8 there"
        )
    if format == "fp32":
        return k, v
    if format == "bf16":
        return round_bf16(k), round_bf16(v)
    return _round_kv(k, format, True), _round_kv(v, format, False)


def _round_kv(x: torch.Tensor, format: KvFormat, key: bool) -> torch.Tensor:
    plain = x.detach()
    if format == "fp16":
        if bool((plain.abs() >= 65520).any()):
            raise UnsupportedError(
                "keys or values exceed 65504, the largest of fp16: use the KV format bf16"
            )
        return straight_through(x, plain.to(torch.float16).to(x.dtype))
    if format in ("fp8_e4m3", "fp8_e5m2"):
        return _round_fp8(x, format)
    rounded = fake_quantize_kv(plain.float(), format, key, torch)
    return straight_through(x, rounded.to(x.dtype))


def _round_fp8(x: torch.Tensor, format: KvFormat) -> torch.Tensor:
    variant = format.removeprefix("fp8_")
    plain, limit = x.detach().float(), largest(variant)
    if bool((plain.abs() > limit).any()):
        raise UnsupportedError(
            f"keys or values exceed {limit:g}, the largest of {format}: use the KV format "
            + ("fp8_e5m2 or bf16" if variant == "e4m3" else "bf16")
        )
    return straight_through(x, round_float(plain, variant, torch).to(x.dtype))
