"""A GGUF header as a family reads it: keys without prefix, and facts read off the tensor list."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.errors import ConfigError, ModelFileError, UnsupportedError
from octavo.io.gguf_blocks import dequantize
from octavo.io.gguf_reader import GgufFile
from octavo.io.gguf_values import GgufMetadata
from octavo.io.stored import StoredTensor
from octavo.spec.config_reader import ConfigReader

# Fact of the config -> tensor whose presence says so.
_FACTS = {
    "qkv_bias": ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
    "out_bias": ("blk.0.attn_output.bias",),
    "mlp_bias": ("blk.0.ffn_gate.bias", "blk.0.ffn_up.bias"),
    "qk_norm": ("blk.0.attn_q_norm.weight",),
}
_ROPE_TENSORS = {
    "rope_factors": "rope_freqs.weight",
    "rope_factors_short": "rope_factors_short.weight",
    "rope_factors_long": "rope_factors_long.weight",
}
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Sampling defaults that a header may carry -> generation_config.json's names.
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def architecture(file: GgufFile) -> str:
    """general.architecture. Raises ConfigError when the header doesn't say."""
    name = file.metadata.string("general.architecture")
    if not name:
        raise ConfigError(
            f"{file.mapping.path}: general.architecture is missing. Convert the model again."
        )
    return name


def gguf_config(file: GgufFile) -> ConfigReader:
    """What `Family.from_gguf` reads (see its docstring). Reads no weights but rope factors."""
    prefix = architecture(file) + "."
    _refuse_parts(file)
    values: dict[str, object] = {
        key.removeprefix(prefix): value
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    values["vocab_size"] = _vocab_size(file)
    values["tied_head"] = "output.weight" not in file.tensors
    for fact, names in _FACTS.items():
        values[fact] = any(name in file.tensors for name in names)
    for key, name in _ROPE_TENSORS.items():
        if name in file.tensors:
            values[key] = _factors(file.tensors[name])
    return ConfigReader(values, str(file.mapping.path))


def eos_ids(metadata: GgufMetadata) -> tuple[int, ...]:
    """End of sequence, of turn and of message, in this order, where the header names them."""
    found = (metadata.integer(f"tokenizer.ggml.{key}") for key in _EOS_KEYS)
    return tuple(dict.fromkeys(token for token in found if token is not None))


def sampling_defaults(metadata: GgufMetadata) -> Mapping[str, float]:
    """general.sampling.* under the names of generation_config.json."""
    found = {name: metadata.number(f"general.sampling.{key}") for key, name in SAMPLING.items()}
    return {name: value for name, value in found.items() if value is not None}


def _refuse_parts(file: GgufFile) -> None:
    parts = file.metadata.integer("split.count") or 1
    if parts > 1:
        raise UnsupportedError(
            f"{file.mapping.path}: one of {parts} parts of a split model. Merge them into one file "
            "first (llama-gguf-split --merge)."
        )


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFileError(
            f"{file.mapping.path}: no tensor 'token_embd.weight'. This is not a whole language "
            "model (perhaps a vocabulary, an adapter or one part of a split model): get the model."
        )
    return embedding.shape[0]


def _factors(tensor: StoredTensor) -> list[float]:
    values: list[float] = dequantize(tensor.type, tensor.rows()).reshape(-1).tolist()
    return values
