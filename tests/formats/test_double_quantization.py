"""NF4 whose scales have 8 bits, beside QLoRA's and bitsandbytes' own."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.formats import rtn
from octavo.formats.codebooks import nf4_levels
from octavo.formats.number_format import NumberFormat
from support.number_formats import normal_weight


def error(name: str) -> float:
    W = normal_weight((256, 2048))
    D = rtn.encode(W, NumberFormat.parse(name)).dequantize() - W
    return float((D**2).sum() / (W**2).sum())


def test_it_takes_fewer_bits_and_loses_almost_nothing() -> None:
    once, twice = NumberFormat.parse("nf4_g64_sfp32"), NumberFormat.parse("nf4_g64_su8x256")
    assert once.bits_per_value((256, 2048)) == 4.5
    assert twice.bits_per_value((256, 2048)) == 4 + 8 / 64 + 16 / 256
    # A scale is off by at most 1 / 510 of the largest near it, which is at most about twice its
    # size: the error grows by less than the square of that, and codes choose their level anew.
    assert error(str(twice)) < error(str(once)) * (1 + (2 / 510) ** 2 / error(str(once)))


def test_nf4_is_nearer_than_symmetric_int4_of_equal_size_and_not_than_asymmetric() -> None:
    assert error("nf4_g64") < error("int4_g64")
    assert error("int4_g64_asym") < error("nf4_g64")


def test_no_worse_than_bitsandbytes_own() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    import torch

    W = normal_weight((256, 2048))
    packed, state = functional.quantize_4bit(
        torch.from_numpy(W), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    D = functional.dequantize_4bit(packed, state).numpy() - W
    theirs = float((D**2).sum() / (W**2).sum())
    assert error("nf4_g64_su8x256") < theirs
    assert np.allclose(state.code.numpy(), nf4_levels(), atol=2**-23)
