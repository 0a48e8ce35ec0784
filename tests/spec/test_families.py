"""Specs of all families from both kinds of config, and role names against real checkpoints."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.errors import ConfigError, UnsupportedError
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, MoeMlp, Role
from octavo.spec.family import Family
from octavo.spec.graph import role_shape, roles
from octavo.spec.rope import cos_sin
from octavo.spec.table import family_for_gguf, family_for_hf
from support.tiny_gguf import ARCHITECTURES, CHANGES, gguf_header, gguf_tensors
from support.tiny_models import FAMILIES, WINDOW, save_tiny, tiny_config, tiny_values

pytest.importorskip("transformers")
safetensors_numpy = pytest.importorskip("safetensors.numpy")


def hf(values: dict[str, Any]) -> tuple[Family, DecoderSpec, ConfigReader]:
    reader = ConfigReader(values, "config.json")
    family = family_for_hf(values["architectures"][0])
    return family, family.from_hf(reader), reader


def old_spelling(values: dict[str, Any]) -> dict[str, Any]:
    """The same config as transformers 4 wrote it."""
    old = dict(values)
    rope = dict(old.pop("rope_parameters"))
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    old["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    old["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None
    if "num_local_experts" in old and "moe_intermediate_size" in old:
        old["num_experts"] = old.pop("num_local_experts")
    return old


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {family: save_tiny(family, root / family) for family in FAMILIES}


def checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    values = json.loads((directory / "config.json").read_text())
    return values, dict(safetensors_numpy.load_file(directory / "model.safetensors"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_is_read_and_both_spellings_give_one_spec(name: str) -> None:
    values = tiny_values(name)
    _, spec, reader = hf(values)
    assert reader.unread() == ()
    _, old, reader = hf(old_spelling(values))
    assert old == spec
    assert reader.unread() == ()
    assert spec.family == name


@pytest.mark.parametrize("name", FAMILIES)
def test_roles_cover_the_checkpoint_with_the_right_shapes(
    name: str, saved: dict[str, Path]
) -> None:
    values, tensors = checkpoint(saved[name])
    family, spec, _ = hf(values)
    used = set()
    for role in roles(spec):
        ref = family.hf_tensor(spec, role)
        used.add(ref.name)
        shape = tensors[ref.name].shape
        if ref.rows is not None:
            shape = (ref.rows[1] - ref.rows[0], *shape[1:])
        assert shape == role_shape(spec, role), role
        assert (ref.add == 1.0) == (name.startswith("gemma") and "norm" in role.part)
    assert used == set(tensors)


@pytest.mark.parametrize("name", FAMILIES)
def test_fused_rows_tile_their_tensor(name: str, saved: dict[str, Path]) -> None:
    values, tensors = checkpoint(saved[name])
    family, spec, _ = hf(values)
    pieces: dict[str, list[tuple[int, int]]] = {}
    for role in roles(spec):
        ref = family.hf_tensor(spec, role)
        if ref.rows is not None:
            pieces.setdefault(ref.name, []).append(ref.rows)
    assert bool(pieces) == (name == "phi3")
    for tensor, rows in pieces.items():
        edges = sorted(rows)
        assert edges[0][0] == 0
        assert edges[-1][1] == len(tensors[tensor])
        assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gguf_headers_and_names(name: str, tmp_path: Path) -> None:
    values, tensors = checkpoint(save_tiny(name, tmp_path, **CHANGES.get(name, {})))
    _, expected, _ = hf(values)
    config = tiny_config(name, **CHANGES.get(name, {}))
    stored = gguf_tensors(name, config, tensors)
    reader = ConfigReader(gguf_header(name, config, stored), "model.gguf")
    family = family_for_gguf(ARCHITECTURES[name])
    spec = family.from_gguf(reader)
    assert reader.unread() == ("attention.sliding_window",) * (name in ("mixtral", "qwen2"))
    assert len(spec.layers) == len(expected.layers)
    assert replace(spec, layers=(), family=name) == replace(expected, layers=())
    used = set()
    for role in roles(spec):
        ref = family.gguf_tensor(spec, role)
        used.add(ref.name)
        shape = stored[ref.name].shape[1:] if ref.index is not None else stored[ref.name].shape
        if ref.rows is not None:
            shape = (ref.rows[1] - ref.rows[0], *shape[1:])
        assert shape == role_shape(spec, role), role
        permuted = name in ("llama", "mixtral") and role.part in ("q", "k")
        assert ref.unpermute == (role_shape(spec, role)[0] // 16 if permuted else 0)
    assert used == set(stored)


def test_gemma3_of_a_real_header() -> None:
    header = {
        "context_length": 32768,
        "embedding_length": 640,
        "block_count": 18,
        "feed_forward_length": 2048,
        "attention.head_count": 4,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "rope.freq_base": 1000000.0,
        "attention.sliding_window": 512,
        "vocab_size": 262144,
        "tied_head": True,
    }
    spec = family_for_gguf("gemma3").from_gguf(ConfigReader(header, "gemma.gguf"))
    windows = [layer.attention.window for layer in spec.layers]
    assert windows == ([512] * 5 + [None]) * 3
    thetas = [layer.attention.rope.theta for layer in spec.layers]
    assert thetas == ([10000.0] * 5 + [1000000.0]) * 3
    assert spec.layers[0].attention.scale == 256**-0.5
    assert spec.embed_scale == 25.25  # sqrt(640) = 25.298 rounded to bf16
    assert spec.layers[0].post_norms
    assert spec.layers[0].attention.qk_norm


def test_gemma_27b_scales_by_width_not_head_size() -> None:
    header: dict[str, object] = {
        "context_length": 8192,
        "embedding_length": 4608,
        "block_count": 46,
        "feed_forward_length": 36864,
        "attention.head_count": 32,
        "attention.head_count_kv": 16,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": 128,
        "attention.sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "vocab_size": 256000,
        "tied_head": True,
    }
    spec = family_for_gguf("gemma2").from_gguf(ConfigReader(header, "gemma.gguf"))
    assert spec.layers[0].attention.scale == 144**-0.5
    assert [layer.attention.window for layer in spec.layers[:3]] == [4096, None, 4096]
    assert (spec.layers[0].attention.softcap, spec.logit_softcap) == (50.0, 30.0)


def test_llama3_of_a_gguf_takes_its_frequencies_from_the_tensor() -> None:
    header = {
        "context_length": 131072,
        "embedding_length": 64,
        "block_count": 1,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
        "rope_factors": [1.0] * 4 + [8.0] * 4,
        "vocab_size": 32,
        "tied_head": False,
    }
    spec = family_for_gguf("llama").from_gguf(ConfigReader(header, "llama.gguf"))
    scaling = spec.layers[0].attention.rope.scaling
    assert scaling is not None
    assert scaling.short_factor == (1.0,) * 4 + (8.0,) * 4
    header["rope_factors"] = [1.0] * 7
    with pytest.raises(ConfigError, match=r"rope_factors is .*expected 8 numbers"):
        family_for_gguf("llama").from_gguf(ConfigReader(header, "llama.gguf"))


@pytest.mark.parametrize(
    ("kind", "extra", "expected"),
    [
        ("linear", {"rope.scaling.factor": 8.0}, ("linear", 8.0)),
        (
            "yarn",
            {"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
            ("yarn", 4.0),
        ),
    ],
)
def test_scalings_named_in_a_gguf_header(
    kind: str, extra: dict[str, object], expected: tuple[str, float]
) -> None:
    header = {
        "context_length": 128,
        "embedding_length": 64,
        "block_count": 1,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.scaling.type": kind,
        "vocab_size": 32,
        "tied_head": False,
        **extra,
    }
    spec = family_for_gguf("qwen2").from_gguf(ConfigReader(header, "model.gguf"))
    scaling = spec.layers[0].attention.rope.scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor) == expected


def test_windows_follow_the_family() -> None:
    def windows(name: str, **changes: Any) -> list[int | None]:
        return [layer.attention.window for layer in hf(tiny_values(name, **changes))[1].layers]

    assert windows("mistral") == [WINDOW, WINDOW]
    assert windows("mistral", sliding_window=None) == [None, None]
    assert windows("qwen2") == [None, WINDOW]
    assert windows("qwen2", use_sliding_window=False) == [None, None]
    assert windows("gemma2") == [WINDOW, None]
    assert windows("gemma3", num_hidden_layers=7, layer_types=None) == (
        [WINDOW] * 5 + [None, WINDOW]
    )


def test_dense_layers_among_experts() -> None:
    _, spec, _ = hf(tiny_values("qwen3_moe"))
    assert [isinstance(layer.mlp, MoeMlp) for layer in spec.layers] == [True, False, True]


def test_a_tied_head_is_the_embedding() -> None:
    family, spec, _ = hf(tiny_values("llama"))
    assert Role("head") not in roles(spec)
    assert family.hf_tensor(spec, Role("head")) == family.hf_tensor(spec, Role("embed"))


LIES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("llama", {"hidden_size": None}, "hidden_size is missing"),
    ("llama", {"hidden_size": -64}, "hidden_size is -64, expected an integer from 1"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor"),
    ("llama", {"head_dim": 15}, "head_dim is 15, expected an even"),
    ("llama", {"head_dim": None, "num_attention_heads": 6}, "head_dim"),
    ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu', expected one of silu"),
    ("llama", {"rope_parameters": {"rope_type": "ntk"}}, "rope_parameters.rope_type is 'ntk'"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor is missing"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "alpha": 1}},
        "unknown key 'rope_parameters.alpha'",
    ),
    (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0] * 7,
                "long_factor": [1.0] * 8,
            }
        },
        "short_factor is .* expected 8 numbers",
    ),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is .* expected 2 entries"),
    ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, expected .* to 4"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
)


@pytest.mark.parametrize(("name", "lie", "message"), LIES, ids=lambda v: str(v)[:40])
def test_a_lying_config_gives_one_clear_error(name: str, lie: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        hf({**tiny_values(name), **lie})
    assert str(caught.value).startswith("config.json: ")


def test_yarn_reaches_beyond_the_positions_that_the_config_states() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    _, spec, _ = hf(tiny_values("qwen2", rope_parameters={"rope_theta": 1e4, **rope}))
    assert spec.max_positions == 512


odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**33),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.floats(0.5, 2), max_size=9),
    st.fixed_dictionaries(
        {
            "rope_type": st.sampled_from(["linear", "dynamic", "llama3", "yarn", "longrope"]),
            "factor": st.floats(),
            "original_max_position_embeddings": st.integers(0, 2**33),
            "low_freq_factor": st.floats(0, 2),
            "high_freq_factor": st.floats(0, 8),
            "beta_fast": st.floats(),
            "short_factor": st.lists(st.floats(0.5, 2), min_size=8, max_size=8),
            "long_factor": st.lists(st.floats(0.5, 2), min_size=8, max_size=8),
        }
    ),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_with_any_odd_value_gives_a_spec_or_a_config_error(name: str) -> None:
    values = tiny_values(name)
    tried = {"spec": 0, "error": 0}

    @settings(max_examples=60)
    @given(st.sampled_from(sorted(set(values) - {"architectures"})), odd_values)
    def check(key: str, value: object) -> None:
        tried[outcome({**values, key: value})] += 1

    check()
    assert min(tried.values()) > 0


def outcome(values: dict[str, Any]) -> str:
    try:
        _, spec, _ = hf(values)
    except ConfigError:
        return "error"
    for layer in spec.layers[:3]:
        with np.errstate(all="ignore"):  # absurd but finite factors may overflow fp32
            cos_sin(layer.attention.rope, [0, 1], spec.max_positions)
    return "spec"


@pytest.mark.parametrize("name", ["MistralForCausalLM", "MixtralForCausalLM"])
def test_families_without_a_gguf_name_say_so(name: str) -> None:
    with pytest.raises(UnsupportedError, match="such files say 'llama'"):
        family_for_hf(name).from_gguf(ConfigReader({}, "model.gguf"))
