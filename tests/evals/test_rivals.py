"""llama.cpp behind the Scorer protocol, where its package and a model are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.core.errors import ModelFileError, OctavoError, UserError
from octavo.evals.rivals import LlamaCpp, LlamaSettings, quantize_pure
from support.models import demo_model

pytest.importorskip("llama_cpp", reason="llama-cpp-python isn't installed")
TOKENS = list(range(100, 140))


@pytest.fixture(scope="module")
def model() -> LlamaCpp:
    return LlamaCpp(demo_model("smollm2-135m"), 64, LlamaSettings(threads=1, batch=16))


def rows(model: LlamaCpp, first: int, block: int) -> np.ndarray:
    return np.concatenate([part.copy() for part in model.logits(TOKENS, first, block)])


def test_blocks_cover_every_position_from_first(model: LlamaCpp) -> None:
    whole = rows(model, 0, 16)
    assert whole.shape == (len(TOKENS), model.vocab)
    sizes = [len(part) for part in model.logits(TOKENS, 5, 20)]
    assert sizes == [20, 15]
    # its kernels round differently by batch; the distributions must still be the same ones
    tail = rows(model, 5, 16)
    assert (tail.argmax(axis=1) == whole[5:].argmax(axis=1)).mean() > 0.9


def test_both_ways_to_the_likeliest_token_agree(model: LlamaCpp) -> None:
    model.restart()
    model.decode(TOKENS[:16], 0)
    assert model.greedy() == model.argmax() == int(model.read_logits(1).argmax())


def test_context_overflow_names_both_numbers(model: LlamaCpp) -> None:
    with pytest.raises(UserError, match="70 tokens exceed the context 64"):
        model.decode(TOKENS[:10], 60)


def test_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelFileError, match=r"no\.gguf"):
        LlamaCpp(path, 16)


def test_failed_quantization_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=r"gone\.gguf"):
        quantize_pure(tmp_path / "gone.gguf", tmp_path / "out.gguf")


@pytest.mark.slow
def test_pure_file_has_no_other_matrix_format(tmp_path: Path) -> None:
    from octavo.io.gguf_reader import open_gguf

    quantize_pure(demo_model("smollm2-135m"), tmp_path / "pure.gguf", threads=1)
    tensors = open_gguf(tmp_path / "pure.gguf").tensors
    kinds = {len(t.shape): set() for t in tensors.values()}
    for tensor in tensors.values():
        kinds[len(tensor.shape)].add(tensor.type)
    assert kinds == {1: {"F32"}, 2: {"Q4_0"}}
