"""Checkpoints of other tools: their values exactly, their codes kept where our formats have them.

GPTQ and AWQ layers are packed here by the documented layout; compressed-tensors and bitsandbytes
by the tools themselves, which also dequantize (skipped where they aren't installed).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import ConfigError, ModelFileError, UnsupportedError
from octavo.io.checkpoint import open_model
from octavo.spec.decoder import Role
from support.foreign_models import Array, Parts, awq_parts, foreign_model, gptq_parts

DOWN = "model.layers.0.mlp.down_proj"


def random_layer(
    weight: Array, bits: int, group: int, seed: int = 0, scale_type: Any = np.float16
) -> tuple[Array, Array, Array]:
    """Codes [out, in], zeros and scales [out, groups] of any values that the layout can hold."""
    rng = np.random.default_rng([seed, *weight.shape])
    out, width = weight.shape
    groups = width // group
    codes = rng.integers(0, 1 << bits, (out, width))
    zeros = rng.integers(1, 1 << bits, (out, groups))
    scales = (rng.uniform(0.5, 1, (out, groups)) / (np.sqrt(width) * (1 << bits))).astype(
        scale_type
    )
    return codes, zeros, scales


def expected(codes: Array, zeros: Array, scales: Array, order: Array) -> Array:
    return (codes - zeros[:, order]).astype(np.float32) * scales.astype(np.float32)[:, order]


def down(path: Path) -> tuple[str, Array]:
    with open_model(path) as model:
        view = model.source.tensor(Role("down", 0))
        return str(view.format), view.float32()


def gptq_config(bits: int, group: int, kind: str) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": kind}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["gptq", "gptq_v2"])
def test_gptq_codes_are_kept(tmp_path: Path, bits: int, kind: str) -> None:
    kept: dict[str, Array] = {}

    def pack(name: str, weight: Array) -> Parts:
        codes, zeros, scales = random_layer(weight, bits, 32)
        order = np.arange(weight.shape[1]) // 32
        kept[name] = expected(codes, zeros, scales, order)
        return gptq_parts(codes, zeros, scales, order, bits, kind == "gptq")

    path = foreign_model(tmp_path / "m", gptq_config(bits, 32, kind), pack)
    name, values = down(path)
    assert name == f"int{bits}_g32_asym"
    np.testing.assert_array_equal(values, kept[DOWN])


def test_gptq_with_every_zero_in_the_middle_is_symmetric(tmp_path: Path) -> None:
    def pack(name: str, weight: Array) -> Parts:
        codes, zeros, scales = random_layer(weight, 4, 32)
        return gptq_parts(codes, np.full_like(zeros, 8), scales, None, 4, True)

    assert down(foreign_model(tmp_path / "m", gptq_config(4, 32, "gptq"), pack))[0] == "int4_g32"


def test_gptq_per_channel(tmp_path: Path) -> None:
    kept: dict[str, Array] = {}

    def pack(name: str, weight: Array) -> Parts:
        codes, zeros, scales = random_layer(weight, 4, weight.shape[1])
        kept[name] = expected(codes, zeros, scales, np.zeros(weight.shape[1], int))
        return gptq_parts(codes, zeros, scales, None, 4, False)

    name, values = down(foreign_model(tmp_path / "m", gptq_config(4, -1, "gptq_v2"), pack))
    assert name == "int4_channel_asym"
    np.testing.assert_array_equal(values, kept[DOWN])


def test_gptq_in_activation_order_is_expanded_and_says_so(tmp_path: Path) -> None:
    kept: dict[str, Array] = {}

    def pack(name: str, weight: Array) -> Parts:
        codes, zeros, scales = random_layer(weight, 4, 32)
        order = np.random.default_rng(5).permutation(np.arange(weight.shape[1]) // 32)
        kept[name] = expected(codes, zeros, scales, order)
        return gptq_parts(codes, zeros, scales, order, 4, False)

    path = foreign_model(tmp_path / "m", gptq_config(4, 32, "gptq_v2"), pack)
    name, values = down(path)
    assert name == "fp32"
    np.testing.assert_array_equal(values, kept[DOWN])
    with open_model(path) as model:
        assert "14 layers as fp32: its inputs are ordered by activation" in model.source.describe()


def test_a_word_of_older_zero_points_carries_over_as_in_gptqmodel(tmp_path: Path) -> None:
    # 0 - 1 borrows from the next field when it is subtracted from a whole word.
    def pack(name: str, weight: Array) -> Parts:
        codes, zeros, scales = random_layer(weight, 4, 32)
        zeros[::8] = 0
        parts = gptq_parts(codes, zeros, scales, None, 4, False)
        parts["qzeros"] = (parts["qzeros"].view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
        kept[name] = expected(codes, zeros, scales, np.arange(weight.shape[1]) // 32)
        return parts

    kept: dict[str, Array] = {}
    values = down(foreign_model(tmp_path / "m", gptq_config(4, 32, "gptq"), pack))[1]
    np.testing.assert_array_equal(values, kept[DOWN])


def test_awq_codes_are_kept(tmp_path: Path) -> None:
    kept: dict[str, Array] = {}

    def pack(name: str, weight: Array) -> Parts:
        codes, zeros, scales = random_layer(weight, 4, 32)
        kept[name] = expected(codes, zeros, scales, np.arange(weight.shape[1]) // 32)
        return awq_parts(codes, zeros, scales)

    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    name, values = down(foreign_model(tmp_path / "m", config, pack))
    assert name == "int4_g32_asym"
    np.testing.assert_array_equal(values, kept[DOWN])


def test_fused_layers_are_split(tmp_path: Path) -> None:
    kept: dict[str, Array] = {}

    def pack(name: str, weight: Array) -> Parts:
        codes, zeros, scales = random_layer(weight, 4, 32)
        kept[name] = expected(codes, zeros, scales, np.arange(weight.shape[1]) // 32)
        return awq_parts(codes, zeros, scales)

    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    path = foreign_model(tmp_path / "m", config, pack, "phi3")
    with open_model(path) as model:
        rows = [model.source.tensor(Role(part, 1)).float32() for part in ("q", "k", "v")]
    np.testing.assert_array_equal(np.concatenate(rows), kept["model.layers.1.self_attn.qkv_proj"])


def ct_config(kind: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, **more}
    return {
        "quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": group},
        "ignore": ["lm_head"], "quantization_status": "compressed",
    }  # fmt: skip


CT_CASES = [
    ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, "int4_g32_sfp32"),
    ("pack-quantized", {"num_bits": 3, "strategy": "group", "group_size": 32, "symmetric": False},
     "int3_g32_asym_sfp32"),
    ("pack-quantized", {"num_bits": 8, "strategy": "channel"}, "int8_channel_sfp32"),
    ("pack-quantized", {"num_bits": 5, "strategy": "channel", "symmetric": False},
     "int5_channel_asym_sfp32"),
    ("int-quantized", {"num_bits": 8, "strategy": "channel"}, "int8_channel_sfp32"),
    ("naive-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
     "int4_g32_asym_sfp32"),
    ("int-quantized", {"num_bits": 8, "strategy": "tensor"}, "int8_tensor_sfp32"),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"},
     "fp8_e4m3_channel_sfp32"),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"},
     "fp8_e4m3_tensor_sfp32"),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block",
                         "block_structure": [16, 32]}, "fp8_e4m3_g32_sfp32"),
]  # fmt: skip


def ct_scales(weight: Array, args: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Absmax scales, and where asymmetric some zero points."""
    out, width = weight.shape
    top = 448 if args.get("type") == "float" else (1 << (args["num_bits"] - 1)) - 1
    if args["strategy"] == "block":
        rows, columns = args["block_structure"]
        grouped = weight.reshape(out // rows, rows, width // columns, columns)
        return torch.from_numpy(np.abs(grouped).max((1, 3)) / np.float32(top)), None
    size = {"group": args.get("group_size"), "channel": width}.get(args["strategy"])
    found = np.abs(weight).max() if size is None else np.abs(weight.reshape(out, -1, size)).max(2)
    scale = torch.from_numpy(np.atleast_1d(found / np.float32(top)))
    if args.get("symmetric", True):
        return scale, None
    zero = np.random.default_rng(1).integers(-2, 2, scale.shape)
    return scale, torch.from_numpy(zero.astype(np.int8))


@pytest.mark.parametrize(("kind", "args", "name"), CT_CASES)
def test_compressed_tensors_agree_with_their_own_decompressor(
    tmp_path: Path, kind: str, args: dict[str, Any], name: str
) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    compressor = compressors.BaseCompressor.get_value_from_registry(kind)
    kept: dict[str, Array] = {}

    def pack(layer: str, weight: Array) -> Parts:
        scale, zero = ct_scales(weight, args)
        state = {"weight": torch.from_numpy(weight), "weight_scale": scale}
        if zero is not None:
            state["weight_zero_point"] = zero
        packed = compressor.compress(state, scheme)
        kept[layer] = compressor.decompress(packed, scheme)["weight"].numpy()
        return {key: as_numpy(tensor) for key, tensor in packed.items()}

    path = foreign_model(tmp_path / "m", ct_config(kind, args), pack)
    found, values = down(path)
    assert found == name
    np.testing.assert_array_equal(values, kept[DOWN])


def as_numpy(tensor: torch.Tensor) -> Array:
    import ml_dtypes

    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("kind", "size", "name"), [
    ("nf4", 32, "lut4_g32_sfp32"), ("fp4", 32, "lut4_g32_sfp32"), ("nf4", 128, "fp32"),
])  # fmt: skip
def test_bitsandbytes_4_bits_agree_with_its_own_dequantizer(
    tmp_path: Path, kind: str, size: int, name: str, nested: bool
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    kept: dict[str, Array] = {}

    def pack(layer: str, weight: Array) -> Parts:
        data, state = functional.quantize_4bit(
            torch.from_numpy(weight), blocksize=size, compress_statistics=nested, quant_type=kind
        )
        parts = {f"weight.{key}": t.numpy() for key, t in state.as_dict(packed=True).items()}
        # Its kernel for processors takes blocks that run across rows for others: one block a row.
        state.shape = (weight.size // size, size)
        kept[layer] = functional.dequantize_4bit(data, state).numpy().reshape(weight.shape)
        return {"weight": data.numpy(), **parts}

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    found, values = down(foreign_model(tmp_path / "m", config, pack))
    assert found == name
    np.testing.assert_array_equal(values, kept[DOWN])


def test_bitsandbytes_8_bits(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    kept: dict[str, Array] = {}

    def pack(layer: str, weight: Array) -> Parts:
        codes, scales, _ = functional.int8_vectorwise_quant(torch.from_numpy(weight).half())
        kept[layer] = functional.int8_vectorwise_dequant(codes, scales).numpy()
        return {"weight": codes.numpy(), "SCB": scales.numpy(),
                "weight_format": np.zeros((), np.uint8)}  # fmt: skip

    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    found, values = down(foreign_model(tmp_path / "m", config, pack))
    assert found == "int8_channel_sfp32"
    # Two roundings on either side: four halves of a unit in the last place of at most 2^-23.
    np.testing.assert_allclose(values, kept[DOWN], rtol=4 * 2.0**-24, atol=0)


def awq_model(directory: Path, **changes: Any) -> Path:
    def pack(name: str, weight: Array) -> Parts:
        return awq_parts(*random_layer(weight, 4, 32))

    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", **changes}
    return foreign_model(directory, config, pack)


def test_it_runs_on_integer_kernels_as_the_reference_does(tmp_path: Path) -> None:
    from octavo.backends.native.backend import load
    from octavo.backends.reference.executor import load_reference
    from support.native_models import text_logits

    path = awq_model(tmp_path / "m")
    config = RuntimeConfig(context=64, max_seqs=1)
    tokens = [3, 7, 1, 30, 22, 5]
    with open_model(path) as model:
        native = load(model.spec, model.source, config)
        ours = text_logits(native, tokens, 64)
        assert not native.receipt().requantized
        theirs = text_logits(load_reference(model.source, model.spec, config), tokens, 64)
    # Activations of 8 bits against fp32: each group's inputs are off by at most 1 part in 254.
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 3}, "only 4 bits"),
        ({"version": "gemv"}, "'gemv'"),
        ({"group_size": 48}, "scales"),
        ({"quant_method": "gptq"}, "qweight"),
        ({"quant_method": "gptq", "bits": 5}, "5 bits"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "gptq", "dynamic": {"x": {}}}, "dynamic"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "bitsandbytes"}, "is not part of|no scales|no tensor"),
        ({"quant_method": "hqq"}, "'hqq'"),
        ({"quant_method": ["awq"]}, "awq"),
    ],
)
def test_what_cannot_be_read_is_one_error(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = awq_model(tmp_path / "m", **changes)
    with pytest.raises((UnsupportedError, ConfigError, ModelFileError), match=words):
        open_model(path)


def test_a_layer_without_its_scales_and_one_too_many_are_named(tmp_path: Path) -> None:
    def pack(name: str, weight: Array) -> Parts:
        parts = awq_parts(*random_layer(weight, 4, 32))
        if name == DOWN:
            parts.pop("scales")
        return parts

    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    with pytest.raises(ModelFileError, match=rf"{DOWN}\.scales"):
        open_model(foreign_model(tmp_path / "m", config, pack))


@pytest.mark.parametrize(("value", "fits"), [(0.0, True), (-0.0, True), (1e-8, False)])
def test_a_bias_that_the_model_has_not_may_only_be_zero(
    tmp_path: Path, value: float, fits: bool
) -> None:
    def pack(name: str, weight: Array) -> Parts:
        bias = np.full(weight.shape[0], value, np.float32)
        return {**awq_parts(*random_layer(weight, 4, 32)), "bias": bias}

    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    path = foreign_model(tmp_path / "m", config, pack)
    if fits:
        open_model(path).close()
        return
    with pytest.raises(ModelFileError, match="bias"):
        open_model(path)


@pytest.mark.parametrize("key", ["sparsity_config", "transform_config"])
def test_what_changes_the_arithmetic_is_refused(tmp_path: Path, key: str) -> None:
    config = ct_config("pack-quantized", {"num_bits": 4, "strategy": "channel"})
    path = awq_model(tmp_path / "m")
    content = json.loads((path / "config.json").read_text())
    content["quantization_config"] = {**config, key: {"format": "sparse-24-bitmask"}}
    (path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedError, match=key):
        open_model(path)
