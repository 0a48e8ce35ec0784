"""The reference decoder against transformers, every family, every position, whole and cached.

Tolerance: both compute in fp32 what fp64 would compute exactly. Each is about as far from that as
the reference's own fp32 is from its fp64, measured on the same text, so they may be twice that
apart; 4 times leaves room for transformers' sums being the rougher ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from octavo.core.errors import ModelFileError
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.family import Family
from octavo.spec.table import family_for_gguf, family_for_hf
from support.memory_source import MemorySource, checkpoint_tensors
from support.tiny_gguf import ARCHITECTURES, CHANGES, gguf_header, gguf_tensors
from support.tiny_models import FAMILIES, VOCAB, tiny_model, tiny_values

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
decoders = pytest.importorskip("octavo.backends.reference.decoder")
options = pytest.importorskip("octavo.backends.reference.options")

F32 = npt.NDArray[np.float32]
LENGTH = 40  # four windows of the tiny models
TOKENS = np.random.default_rng(0).integers(3, VOCAB, LENGTH).tolist()


@dataclass
class Tiny:
    """A transformers model and the same weights as a source."""

    model: Any
    family: Family
    spec: DecoderSpec
    source: MemorySource

    def reference(self, tokens: list[int] = TOKENS, **changes: Any) -> F32:
        return self.decoder(**{"context": len(tokens), **changes}).logits(tokens)

    def decoder(self, **changes: Any) -> Any:
        chosen = options.ReferenceOptions(**{"context": LENGTH, **changes})
        return decoders.ReferenceDecoder.load(self.source, self.spec, chosen)

    def theirs(self, tokens: list[int] = TOKENS) -> F32:
        with torch.no_grad():
            logits: F32 = self.model(torch.tensor([tokens])).logits[0].numpy()
        return logits


def build(family: str, directory: Path, **changes: Any) -> Tiny:
    values = tiny_values(family, **changes)
    model = tiny_model(family, **changes)
    kind = family_for_hf(values["architectures"][0])
    spec = kind.from_hf(ConfigReader(values, "config.json"))
    source = MemorySource(spec, checkpoint_tensors(model, directory), kind.hf_tensor)
    return Tiny(model, kind, spec, source)


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    root = tmp_path_factory.mktemp("decoder")
    return {family: build(family, root / family) for family in FAMILIES}


def assert_equal_to_rounding(tiny: Tiny, tokens: list[int]) -> None:
    ours = tiny.reference(tokens)
    tolerance = 4 * np.abs(ours - tiny.reference(tokens, dtype="fp64")).max()
    theirs = tiny.theirs(tokens)
    assert ours.shape == (len(tokens), VOCAB)
    assert tolerance < 1e-3 * np.abs(theirs).max()  # else the comparison proves nothing
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_position_equals_transformers(family: str, tinies: dict[str, Tiny]) -> None:
    assert_equal_to_rounding(tinies[family], TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunks", [(31, *[1] * 9), (7, 7, 7, 7, 7, 5)], ids=len)
def test_chunks_through_the_cache_equal_the_whole(
    family: str, chunks: tuple[int, ...], tinies: dict[str, Tiny]
) -> None:
    tiny = tinies[family]
    decoder, whole = tiny.decoder(), tiny.reference()
    tolerance = 4 * np.abs(whole - tiny.reference(dtype="fp64")).max()
    kv = decoder.new_kv()
    with torch.no_grad():
        parts = [decoder.forward(TOKENS[len(kv) : len(kv) + size], kv) for size in chunks]
    np.testing.assert_allclose(torch.cat(parts).numpy(), whole, rtol=0, atol=tolerance)


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [1.0 + 0.7 * i for i in range(8)],
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("length", [12, LENGTH])
@pytest.mark.parametrize("kind", ROPES)
def test_rope_scalings_equal_transformers(kind: str, length: int, tmp_path: Path) -> None:
    """Texts within what the model was made for (24 tokens, 16 before scaling), and beyond."""
    rope = {"rope_theta": 10000.0, **ROPES[kind]}
    tiny = build("llama", tmp_path, rope_parameters=rope, max_position_embeddings=24)
    assert_equal_to_rounding(tiny, TOKENS[:length])


def test_scaled_rope_of_gemma3_touches_full_layers_only(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    tiny = build("gemma3", tmp_path, rope_parameters=rope)
    assert [layer.attention.rope.scaling is None for layer in tiny.spec.layers] == [
        True,
        False,
        True,
    ]
    assert_equal_to_rounding(tiny, TOKENS)


@pytest.mark.parametrize(
    "changes",
    [{"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 4}, {"head_dim": 24}],
    ids=str,
)
def test_variants_of_llama(changes: dict[str, Any], tmp_path: Path) -> None:
    assert_equal_to_rounding(build("llama", tmp_path, **changes), TOKENS)


def test_partial_rotary_of_phi3(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    tiny = build("phi3", tmp_path, rope_parameters=rope)
    assert tiny.spec.layers[0].attention.rope.dim == 8
    assert_equal_to_rounding(tiny, TOKENS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gguf_of_the_same_weights_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    """Bit for bit: only layout and names differ, and what a GGUF can't say is left out."""
    cant_say: dict[str, dict[str, Any]] = {
        "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "qwen2": {"use_sliding_window": False},
        "mixtral": {"sliding_window": None},
        "gemma2": {"query_pre_attn_scalar": 32},
        "gemma3": {"query_pre_attn_scalar": 32, "layer_types": None, "num_hidden_layers": 6},
        **CHANGES,
    }
    tiny = build(name, tmp_path, **cant_say.get(name, {}))
    tensors = gguf_tensors(name, tiny.model.config, checkpoint_tensors(tiny.model, tmp_path))
    header = gguf_header(name, tiny.model.config, tensors)
    family = family_for_gguf(ARCHITECTURES[name])
    spec = family.from_gguf(ConfigReader(header, "model.gguf"))
    stored = Tiny(None, family, spec, MemorySource(spec, tensors, family.gguf_tensor))
    np.testing.assert_array_equal(stored.reference(), tiny.reference())


def test_gradients_reach_every_tensor_through_all_roundings(tinies: dict[str, Tiny]) -> None:
    tiny = replace(tinies["gemma3"], source=tinies["gemma3"].source.stored_as("int8_g32"))
    for activations in ("a32", "a8", "abf16"):
        decoder = tiny.decoder(activations=activations, kv_format="bf16")
        for weight in decoder.weights.values():
            weight.requires_grad_(True)
        decoder.forward(TOKENS, decoder.new_kv()).logsumexp(-1).sum().backward()
        for role, weight in decoder.weights.items():
            assert weight.grad is not None, role
            assert torch.isfinite(weight.grad).all(), role
            assert weight.grad.abs().max() > 0, role


def test_a_missing_or_misshapen_tensor_is_named(tinies: dict[str, Tiny]) -> None:
    tiny = tinies["llama"]
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = dict(tiny.source.tensors)
    wrong = {**tensors, name: tensors[name][1:]}
    gone = {key: value for key, value in tensors.items() if key != name}
    for broken, message in ((wrong, r"layer 1 up has shape \[95, 64\]"), (gone, name)):
        source = MemorySource(tiny.spec, broken, tiny.family.hf_tensor)
        with pytest.raises(ModelFileError, match=message):
            decoders.ReferenceDecoder.load(source, tiny.spec, options.ReferenceOptions())


KEEP = (("head", "int8_g32"), ("down", "source"), ("layers.1.down", "int2_g32"))


def test_requantized_weights_are_what_the_encoder_stores(tinies: dict[str, Tiny]) -> None:
    from octavo.formats.number_format import NumberFormat
    from octavo.formats.rtn import encode

    tiny = tinies["mistral"]
    decoder = tiny.decoder(format="int4_g32", keep=KEEP)
    for role, text in (
        (Role("q", 0), "int4_g32"),
        (Role("embed"), "int4_g32"),
        (Role("head"), "int8_g32"),
        (Role("down", 1), "int2_g32"),
    ):
        expected = encode(tiny.source.tensor(role).float32(), NumberFormat.parse(text))
        np.testing.assert_array_equal(decoder.weights[role].numpy(), expected.dequantize())
    for role in (Role("down", 0), Role("attn_norm", 0)):
        np.testing.assert_array_equal(
            decoder.weights[role].numpy(), tiny.source.tensor(role).float32()
        )
