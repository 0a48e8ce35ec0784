"""What an encoding lost of one matrix: the figures of its report."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from octavo.compress.base import LinearStats
from octavo.compress.block import slices
from octavo.compress.report import MatrixReport
from octavo.formats.casts import count_cast
from octavo.formats.layouts import stored_bits
from octavo.formats.number_format import FP32
from octavo.formats.quantized import QuantizedTensor


def dequantized(tensor: QuantizedTensor) -> Tensor:
    """Its values, fp32 [out, in], made slice by slice: unpacking takes twice their memory."""
    values = torch.empty(tensor.shape)
    done = 0
    for part in slices(values):
        part.copy_(torch.from_numpy(tensor.rows(done, done + len(part)).dequantize()))
        done += len(part)
    return values


def matrix_report(
    name: str, method: str, tensor: QuantizedTensor, pair: tuple[Tensor, Tensor], stats: LinearStats
) -> MatrixReport:
    """`pair`: the weight as it was, and the values of `tensor`."""
    weight, values = pair
    lost = sum(float((w - v).square().sum()) for w, v in zip(*map(slices, pair), strict=True))
    energy = sum(float(w.square().sum()) for w in slices(weight))
    output = None
    if stats.hessian is not None:
        output = _ratio(_energy(weight - values, stats.hessian), _energy(weight, stats.hessian))
    return MatrixReport(
        name=name,
        method=method,
        format=str(tensor.format),
        bits=stored_bits(tensor.format, tensor.shape),
        weight_error=_ratio(lost, energy),
        output_error=output if output is None or math.isfinite(output) else None,
        casts=_casts(tensor, weight, stats),
    )


def _casts(
    tensor: QuantizedTensor, weight: Tensor, stats: LinearStats
) -> dict[str, dict[str, int]] | None:
    if not tensor.format.plain or tensor.format == FP32:
        return None
    counts = {"weights": count_cast(weight, tensor.format.variant, torch).to_dict()}
    inputs = (stats.casts or {}).items()
    return counts | {f"inputs in {name}": found.to_dict() for name, found in inputs}


def _energy(W: Tensor, H: Tensor) -> float:
    """tr(W H W^T), by way of W^T W: numpy knows that to be symmetric, and does half the work."""
    rows = W.numpy()
    return float(torch.from_numpy(rows.T @ rows).mul_(H).sum())


def _ratio(part: float, whole: float) -> float:
    return float(np.float32(part) / np.float32(whole)) if whole > 0 else 0.0
