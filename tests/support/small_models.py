"""Model files whose activations stay of order one, so that quantizing them means something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.compress.job import Material
from octavo.compress.quality import HeldOut
from support import model_files
from support.model_files import HIDDEN, MODELS, VOCAB, Weights
from support.tokenizers import byte_level_tokenizer, save_directory


def small_weights(name: str, seed: int = 0) -> Weights:
    """Matrices of variance 1 / inputs, norms near 1."""
    model = MODELS[name]
    found = model_files.weights(model, seed)
    return {
        key: w / np.sqrt(np.float32(w.shape[1]))
        if w.ndim == 2
        else np.float32(1 - model.norm_add) * ("norm" in key) + np.float32(0.1) * w
        for key, w in found.items()
    }


def small_model(name: str, directory: Path, seed: int = 0) -> Path:
    """A Hugging Face directory without a tokenizer."""
    return model_files.write_hf(directory, MODELS[name], small_weights(name, seed))


def talking_model(directory: Path) -> Path:
    """A tied model with a byte-level tokenizer of as many tokens."""
    tokenizer = byte_level_tokenizer()
    weights, model = small_weights("qwen2"), MODELS["qwen2"]
    table = np.random.default_rng(3).standard_normal((tokenizer.vocab_size, HIDDEN))
    weights["model.embed_tokens.weight"] = (table / 8).astype(np.float32)
    model_files.write_hf(directory, model, weights, vocab_size=tokenizer.vocab_size)
    return save_directory(directory, tokenizer, bos_token="<|endoftext|>", add_bos_token=False)


def tokens(count: int, length: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Calibration sequences of random tokens."""
    return np.random.default_rng(seed).integers(0, VOCAB, (count, length))


def material(count: int = 4, length: int = 24, measured: int = 0) -> Material:
    """Random calibration tokens, and a held-out text of `measured` tokens where that is not 0."""
    text = tuple(tokens(1, measured, 9)[0].tolist())
    held = (HeldOut("random", text),) if measured else ()
    return Material(tokens(count, length) if count else None, held, "random")
