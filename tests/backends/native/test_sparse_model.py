"""A 2:4 artifact natively: panels of two codes in four where a hand-written row takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo._native import testing
from octavo.backends.base import RuntimeConfig
from octavo.backends.native.backend import load
from octavo.backends.native.executor import NativeExecutor
from octavo.backends.native.zeros import SPARSE_ISAS
from octavo.compress.job import compress
from octavo.compress.pruning import pruned_recipe
from octavo.core.errors import UnsupportedError
from octavo.io.checkpoint import open_model
from support.native_models import Chunk, new_batch, step_logits
from support.small_models import material, small_model

ISAS = [isa for isa in SPARSE_ISAS if isa in testing.isas()]
TOKENS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9)


@pytest.fixture(autouse=True)
def nothing_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))


def started(path: Path, isa: str, activations: str = "auto") -> NativeExecutor:
    config = RuntimeConfig(
        isa=isa, context=64, max_tokens=32, max_seqs=1, threads=1,
        activations=activations,  # type: ignore[arg-type]
    )  # fmt: skip
    with open_model(path) as opened:
        return load(opened.spec, opened.source, config)


def logits(path: Path, isa: str, activations: str = "auto") -> np.ndarray:
    executor = started(path, isa, activations)
    try:
        batch = new_batch(executor)
        whole = step_logits(executor, batch, [Chunk(TOKENS, 0, 0)])
        one = step_logits(executor, batch, [Chunk((7,), len(TOKENS), 0)])
        return np.concatenate([whole, one])
    finally:
        executor.close()


@pytest.fixture(scope="module", params=["int4_g32", "int8_g32"])
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sparse")
    recipe = pruned_recipe("wanda:2:4", None, request.param)
    compress(small_model("qwen2", directory / "m"), recipe, directory / "out", material())
    return directory / "out"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activations", ["a8", "a16", "a8a16"])
def test_logits_are_those_of_dense_panels(pruned: Path, isa: str, activations: str) -> None:
    # generic has no hand-written row, so that it holds the same codes densely.
    assert (
        logits(pruned, isa, activations).tobytes()
        == logits(pruned, "generic", activations).tobytes()
    )


@pytest.mark.parametrize("isa", ISAS)
def test_the_receipt_names_rows_and_bytes(pruned: Path, isa: str) -> None:
    sparse, dense = started(pruned, isa), started(pruned, "generic")
    try:
        names = {use.kernel for use in sparse.receipt().kernels}
        assert any("_s4_" in name or "_s8_" in name for name in names)
        assert not any("_s4_" in use.kernel for use in dense.receipt().kernels)
        assert sparse.receipt().packed_bytes < dense.receipt().packed_bytes
        [mine] = [note for note in sparse.receipt().notes if note.startswith("2:4: ")]
        [theirs] = [note for note in dense.receipt().notes if note.startswith("2:4: ")]
        assert "as many products as dense ones" in mine
        assert "times as fast at 16 rows, a loss" in mine
        assert "generic has no hand-written kernel for it" in theirs
    finally:
        sparse.close()
        dense.close()


def test_strict_refuses_to_expand_them(pruned: Path) -> None:
    config = RuntimeConfig(isa="generic", context=64, max_seqs=1, threads=1, strict=True)
    with (
        open_model(pruned) as opened,
        pytest.raises(UnsupportedError, match="2:4: generic has no hand-written kernel"),
    ):
        load(opened.spec, opened.source, config)


@pytest.mark.parametrize("isa", ISAS)
def test_weight_only_products_take_dense_panels(pruned: Path, isa: str) -> None:
    executor = started(pruned, isa, "abf16")
    try:
        assert not any("_s" in use.kernel for use in executor.receipt().kernels)
    finally:
        executor.close()


@pytest.mark.parametrize("isa", ISAS)
def test_outliers_in_fp32_take_dense_panels(pruned: Path, isa: str) -> None:
    """No row multiplies two codes of four in fp32."""
    executor = started(pruned, isa, "llm_int8")
    try:
        receipt = executor.receipt()
        assert not any("_s4_" in use.kernel or "_s8_" in use.kernel for use in receipt.kernels)
        assert any("llm_int8 multiplies outliers" in note for note in receipt.notes)
    finally:
        executor.close()
