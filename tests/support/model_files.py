"""The same small random model as a Hugging Face directory and as a GGUF file.

The GGUF side is written by the `gguf` package, with its own table of names, and with each
convention of GGUF files applied here by its definition: rows of q and k interleaved for the Llama
family, 1 added to Gemma's norms, experts stacked, llama3 rope factors in a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

F32 = npt.NDArray[np.float32]
Weights = dict[str, F32]

VOCAB, HIDDEN, INTER, HEADS, KV_HEADS, HEAD_DIM, LAYERS, EXPERTS = 40, 64, 96, 4, 2, 16, 2, 3


@dataclass(frozen=True)
class Model:
    """What both files are written from. `config` is config.json's, `header` GGUF's own keys."""

    architecture: str
    gguf_arch: gguf.MODEL_ARCH
    config: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    biases: bool = False
    qk_norms: bool = False
    permuted: bool = False
    norm_add: float = 0.0
    fused: bool = False
    sandwich: bool = False
    moe: str = ""  # "mixtral" or "qwen": how experts are named
    tied: bool = False
    rope_factors: tuple[float, ...] = ()


MODELS: Mapping[str, Model] = {
    "llama": Model(
        "LlamaForCausalLM",
        gguf.MODEL_ARCH.LLAMA,
        permuted=True,
        config={
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        rope_factors=(1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0),
    ),
    "qwen2": Model("Qwen2ForCausalLM", gguf.MODEL_ARCH.QWEN2, biases=True, tied=True),
    "qwen3": Model("Qwen3ForCausalLM", gguf.MODEL_ARCH.QWEN3, qk_norms=True),
    "gemma3": Model(
        "Gemma3ForCausalLM",
        gguf.MODEL_ARCH.GEMMA3,
        config={"sliding_window": 8, "query_pre_attn_scalar": HEAD_DIM},
        header={"attention.sliding_window": 8},
        qk_norms=True,
        norm_add=1.0,
        sandwich=True,
        tied=True,
    ),
    "phi3": Model("Phi3ForCausalLM", gguf.MODEL_ARCH.PHI3, fused=True),
    "mixtral": Model(
        "MixtralForCausalLM",
        gguf.MODEL_ARCH.LLAMA,
        config={"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
        header={"expert_count": EXPERTS, "expert_used_count": 2},
        permuted=True,
        moe="mixtral",
    ),
    "qwen3_moe": Model(
        "Qwen3MoeForCausalLM",
        gguf.MODEL_ARCH.QWEN3MOE,
        config={
            "num_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": INTER,
            "norm_topk_prob": True,
        },
        header={
            "expert_count": EXPERTS,
            "expert_used_count": 2,
            "expert_feed_forward_length": INTER,
        },
        qk_norms=True,
        moe="qwen",
    ),
}


def weights(model: Model, seed: int = 0) -> Weights:
    """Random weights under their Hugging Face names; norms as the Hugging Face file has them."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    if not model.tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        for name, shape in _layer_shapes(model).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def _layer_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.o_proj.weight": (HIDDEN, q),
    }
    if model.sandwich:
        shapes["pre_feedforward_layernorm.weight"] = (HIDDEN,)
        shapes["post_feedforward_layernorm.weight"] = (HIDDEN,)
    if model.fused:
        shapes["self_attn.qkv_proj.weight"] = (q + 2 * kv, HIDDEN)
        shapes["mlp.gate_up_proj.weight"] = (2 * INTER, HIDDEN)
        return shapes | {"mlp.down_proj.weight": (HIDDEN, INTER)}
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        shapes[f"self_attn.{name}_proj.weight"] = (rows, HIDDEN)
        if model.biases:
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
        if model.qk_norms and name != "v":
            shapes[f"self_attn.{name}_norm.weight"] = (HEAD_DIM,)
    return shapes | _mlp_shapes(model)


def _mlp_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    wide, narrow = (INTER, HIDDEN), (HIDDEN, INTER)
    if not model.moe:
        return {"mlp.gate_proj.weight": wide, "mlp.up_proj.weight": wide,
                "mlp.down_proj.weight": narrow}  # fmt: skip
    block = "block_sparse_moe" if model.moe == "mixtral" else "mlp"
    gate, up, down = _EXPERT[model.moe]
    shapes: dict[str, tuple[int, ...]] = {f"{block}.gate.weight": (EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        shapes[f"{block}.experts.{expert}.{gate}.weight"] = wide
        shapes[f"{block}.experts.{expert}.{up}.weight"] = wide
        shapes[f"{block}.experts.{expert}.{down}.weight"] = narrow
    return shapes


_EXPERT = {"mixtral": ("w1", "w3", "w2"), "qwen": ("gate_proj", "up_proj", "down_proj")}


def write_hf(
    directory: Path, model: Model, tensors: Mapping[str, npt.NDArray[Any]], **changes: Any
) -> Path:
    """A directory with config.json and one safetensors file."""
    config = {
        "architectures": [model.architecture], "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INTER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": model.tied,
        "eos_token_id": 2, **model.config, **changes,
    }  # fmt: skip
    if model.gguf_arch is gguf.MODEL_ARCH.PHI3:
        del config["head_dim"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), directory / "model.safetensors")
    return directory


def write_gguf(
    path: Path,
    model: Model,
    tensors: Weights,
    encode: Callable[[str, F32], gguf.GGMLQuantizationType] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """The same weights by GGUF's conventions. `encode` chooses a matrix's type by GGUF name;
    `metadata` is written besides (integers, texts and lists)."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[model.gguf_arch])
    numbers = {
        "block_count": LAYERS, "context_length": 128, "embedding_length": HIDDEN,
        "feed_forward_length": INTER, "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM, "rope.dimension_count": HEAD_DIM, **model.header,
    }  # fmt: skip
    for key, value in numbers.items():
        writer.add_uint32(f"{writer.arch}.{key}", value)
    writer.add_float32(f"{writer.arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{writer.arch}.rope.freq_base", 10000.0)
    ids = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 3}
    for key, value in {**ids, **(metadata or {})}.items():
        _add(writer, key, value)
    for name, values in gguf_tensors(model, tensors).items():
        kind = encode(name, values) if encode and values.ndim > 1 else None
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def gguf_tensors(model: Model, tensors: Weights) -> Weights:
    """Names and values as a converter writes them."""
    names = gguf.get_tensor_name_map(model.gguf_arch, LAYERS)
    found: Weights = {}
    stacks: dict[str, list[F32]] = {}
    for name, values in tensors.items():
        if ".experts." in name:
            head, _, tail = name.partition(".experts.")
            stacked = f"{head}.experts.{tail.partition('.')[2]}"
            stacks.setdefault(stacked, []).append(values)
            continue
        found[_gguf_name(names, name)] = _converted(model, name, values)
    for name, experts in stacks.items():
        found[_gguf_name(names, name)] = np.stack(experts)
    if model.rope_factors:
        found["rope_freqs.weight"] = np.array(model.rope_factors, np.float32)
    return found


def _gguf_name(names: Any, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found, name
    return str(found)


def _converted(model: Model, name: str, values: F32) -> F32:
    if model.permuted and (".q_proj." in name or ".k_proj." in name):
        heads = HEADS if ".q_proj." in name else KV_HEADS
        return interleave(values, heads)
    return values + np.float32(model.norm_add) if "norm" in name else values


def interleave(values: F32, heads: int) -> F32:
    """Rows (half 0, half 1) of a head become pairs: row j of half p moves to 2j + p."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
