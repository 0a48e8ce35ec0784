"""The demo models, dequantized, in transformers and in the reference decoder: the same logits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from octavo.spec.decoder import AttentionSpec, DecoderSpec, DenseMlp, MoeMlp
from octavo.spec.graph import roles
from octavo.spec.table import family_for_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
checkpoint = pytest.importorskip("octavo.io.checkpoint")
catalogue = pytest.importorskip("octavo.io.catalogue")
decoders = pytest.importorskip("octavo.backends.reference.decoder")
options = pytest.importorskip("octavo.backends.reference.options")

F32 = npt.NDArray[np.float32]
TOKENS = 24
MODELS = {
    "smollm2-135m": ("LlamaConfig", "LlamaForCausalLM"),
    "gemma3-270m": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "qwen2.5-coder-0.5b": ("Qwen2Config", "Qwen2ForCausalLM"),
}


def file_of(name: str) -> Path:
    """The model's file, from OCTAVO_TEST_MODELS or the catalogue's cache; skips without one."""
    directory = os.environ.get("OCTAVO_TEST_MODELS")
    path = Path(directory) / f"{name}.gguf" if directory else catalogue.cached_path(name)
    if path is None or not path.is_file():
        pytest.skip(f"{name} has not been fetched")
    return Path(path)


def config_of(kind: str, spec: DecoderSpec) -> Any:
    """The transformers config that says what the spec says."""
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    full = next(layer.attention for layer in spec.layers if layer.attention.window is None)
    config = getattr(transformers, kind)(
        vocab_size=spec.vocab,
        hidden_size=spec.hidden,
        num_hidden_layers=len(spec.layers),
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        intermediate_size=mlp.intermediate,
        rms_norm_eps=spec.norm_eps,
        max_position_embeddings=spec.max_positions,
        tie_word_embeddings=spec.tied_head,
        sliding_window=attention.window,
        query_pre_attn_scalar=round(attention.scale**-2),
        rope_parameters=rope_of(kind, full, attention),
    )
    config._attn_implementation = "eager"
    return config


def rope_of(kind: str, full: AttentionSpec, sliding: AttentionSpec) -> dict[str, Any]:
    def plain(attention: AttentionSpec) -> dict[str, Any]:
        assert attention.rope.scaling is None
        return {"rope_type": "default", "rope_theta": attention.rope.theta}

    if not kind.startswith("Gemma"):
        return plain(full)
    return {"full_attention": plain(full), "sliding_attention": plain(sliding)}


def theirs(model: Any, name: str, tokens: list[int]) -> F32:
    """Logits of transformers on the model's dequantized weights."""
    kind, architecture = MODELS[name]
    family, spec = family_for_hf(architecture), model.spec
    assert not any(isinstance(layer.mlp, MoeMlp) for layer in spec.layers)
    assert all(isinstance(layer.mlp, DenseMlp) for layer in spec.layers)
    with torch.device("meta"):
        decoder = getattr(transformers, architecture)(config_of(kind, spec))
    decoder.to_empty(device="cpu")
    state = {}
    for role in roles(spec):
        ref = family.hf_tensor(spec, role)
        state[ref.name] = torch.from_numpy(
            model.source.tensor(role).float32() - np.float32(ref.add)
        )
    missing = decoder.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    decoder.tie_weights()
    restore_buffers(decoder, kind, spec)
    with torch.no_grad():
        logits: F32 = decoder.float().eval()(torch.tensor([tokens])).logits[0].numpy()
    return logits


def restore_buffers(decoder: Any, kind: str, spec: DecoderSpec) -> None:
    """Rope tables aren't in a checkpoint; Gemma's embedding factor is what bf16 makes of it."""
    decoder.model.rotary_emb = type(decoder.model.rotary_emb)(decoder.config)
    if kind.startswith("Gemma"):
        decoder.model.embed_tokens.embed_scale = torch.tensor(spec.embed_scale)


def ours(model: Any, tokens: list[int], dtype: str) -> F32:
    chosen = options.ReferenceOptions(dtype=dtype)
    logits: F32 = decoders.ReferenceDecoder.load(model.source, model.spec, chosen).logits(tokens)
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_demo_model_equals_transformers_on_its_dequantized_weights(name: str) -> None:
    """Tolerance: 4 times the distance of fp32 from fp64, as for the tiny models."""
    model = checkpoint.open_model(file_of(name))
    tokens = np.random.default_rng(0).integers(0, 40000, TOKENS).tolist()
    fp32 = ours(model, tokens, "fp32")
    tolerance = 4 * np.abs(fp32 - ours(model, tokens, "fp64")).max()
    expected = theirs(model, name, tokens)
    assert tolerance < 1e-3 * np.abs(expected).max()  # else the comparison proves nothing
    np.testing.assert_allclose(fp32, expected, rtol=0, atol=tolerance)
