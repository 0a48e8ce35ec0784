"""vLLM on our exports: run where OCTAVO_VLLM names a Python that imports it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from vllm_loads import Refused, Scores, by_transformers, by_vllm, made, reference, rms, same_top

PROMPTS = np.random.default_rng(0).integers(0, 256, (4, 64)).tolist()


def llama(directory: Path) -> Path:
    """Widths that vLLM's kernels take; matrices of variance 1 / inputs, so that inputs count."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=128,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    model.save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_computes_what_the_artifact_says(tmp_path: Path) -> None:
    python = os.environ.get("OCTAVO_VLLM")
    if not python:
        pytest.skip("OCTAVO_VLLM names no Python that has vLLM")
    model = llama(tmp_path / "m")
    artifact, export = made(model, "int4_g32", tmp_path / "w")
    theirs = by_vllm(python, export, PROMPTS)
    assert isinstance(theirs, Scores), theirs
    ours = reference(artifact, PROMPTS)
    plain = by_transformers(tmp_path / "w" / "int4_g32-hf", PROMPTS)
    # Both run in bf16 and round as often, though not at the same places: 252 differences of each
    # give an RMS to about 5 %, and twice that of transformers leaves room for the places.
    assert rms(theirs, ours) < 2 * rms(plain, ours)
    assert rms(theirs, ours) < rms(reference(model, PROMPTS), ours) / 4


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
def test_an_environment_without_vllm_is_a_refusal_with_its_words(tmp_path: Path) -> None:
    found = by_vllm(sys.executable, tmp_path, PROMPTS)
    assert isinstance(found, Refused)
    assert found.words == "ModuleNotFoundError: No module named 'vllm'"


def test_differences_are_of_the_same_tokens() -> None:
    left, right = (Scores(np.array(x), np.array([1, 2])) for x in ([-1.0, -2.0], [-1.0, -5.0]))
    assert rms(left, right) == pytest.approx(np.sqrt(9 / 2))
    assert same_top(left, Scores(right.logprobs, np.array([1, 3]))) == 0.5


def test_log_probabilities_are_of_the_next_tokens(tmp_path: Path) -> None:
    path = llama(tmp_path / "m")
    from octavo.compress.export import export_hf

    export_hf(path, tmp_path / "hf")
    ours, theirs = reference(path, PROMPTS[:1]), by_transformers(tmp_path / "hf", PROMPTS[:1])
    assert ours.logprobs.shape == (63,)
    assert rms(ours, theirs) < 0.1  # bf16 against fp32; of other tokens they would be far apart
    shuffled = Scores(np.roll(theirs.logprobs, 1), theirs.likeliest)
    assert rms(ours, shuffled) > 0.5
