"""An artifact pruned by blocks natively: panels without them, wherever integers are multiplied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo._native import testing
from octavo.backends.base import RuntimeConfig
from octavo.backends.native.backend import load
from octavo.backends.native.executor import NativeExecutor
from octavo.backends.native.zeros import Zeros
from octavo.compress.job import compress
from octavo.compress.pruning import pruned_recipe
from octavo.core.errors import UnsupportedError
from octavo.io.artifact import read_manifest
from octavo.io.checkpoint import open_model
from support.native_models import Chunk, new_batch, step_logits
from support.small_models import material, small_model

ISAS = testing.isas()
TOKENS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9)


@pytest.fixture(autouse=True)
def nothing_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))


def started(path: Path, isa: str, activations: str, strict: bool = False) -> NativeExecutor:
    config = RuntimeConfig(
        isa=isa, context=64, max_tokens=32, max_seqs=1, threads=1, strict=strict,
        activations=activations,  # type: ignore[arg-type]
    )  # fmt: skip
    with open_model(path) as opened:
        return load(opened.spec, opened.source, config)


def logits(path: Path, isa: str, activations: str) -> np.ndarray:
    executor = started(path, isa, activations)
    try:
        batch = new_batch(executor)
        whole = step_logits(executor, batch, [Chunk(TOKENS, 0, 0)])
        one = step_logits(executor, batch, [Chunk((7,), len(TOKENS), 0)])
        return np.concatenate([whole, one])
    finally:
        executor.close()


def compressed(directory: Path, prune: str, format: str) -> Path:
    model = small_model("qwen2", directory / "m")
    compress(model, pruned_recipe(prune, None, format), directory / "out", material())
    return directory / "out"


@pytest.fixture(scope="module", params=["int4_g32", "int8_g32"])
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(tmp_path_factory.mktemp("blocks"), "wanda:16x32:0.5", request.param)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activations", ["a8", "a16", "a8a16", "a8_token"])
def test_logits_are_those_of_dense_panels(
    pruned: Path, isa: str, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = logits(pruned, isa, activations)
    monkeypatch.setattr("octavo.backends.native.recipe.zeros_of", lambda view, run: Zeros())
    assert mine.tobytes() == logits(pruned, isa, activations).tobytes()


def test_the_receipt_names_rows_bytes_and_the_measured_gain(pruned: Path) -> None:
    executor = started(pruned, "", "a8")
    try:
        receipt = executor.receipt()
    finally:
        executor.close()
    assert any("_b4_" in use.kernel or "_b8_" in use.kernel for use in receipt.kernels)
    [note] = [note for note in receipt.notes if note.startswith("16x32: ")]
    assert "53% of their codes left out" in note  # of three blocks in a row, two
    assert "times as fast at 1 row" in note
    held, dense = (float(note.partition(word)[2].split()[0]) for word in ("take ", "dense "))
    assert held < dense


def test_strict_takes_blocks_and_refuses_to_expand_them(pruned: Path) -> None:
    fast = [isa for isa in ISAS if isa != "generic"]
    if fast:
        started(pruned, fast[-1], "a8", strict=True).close()
    with pytest.raises(UnsupportedError, match="only products by integer activations"):
        started(pruned, "", "abf16", strict=True)
    with pytest.raises(UnsupportedError, match="llm_int8 multiplies outliers by dense panels"):
        started(pruned, "", "llm_int8", strict=True)


@pytest.mark.parametrize(
    ("prune", "format", "layout", "why"),
    [
        (
            "wanda:16x32:0.5",
            "int4_g32_asym",
            "16x32",
            "no kernel leaves out zeros of int4_g32_asym",
        ),
        ("wanda:16x32:0.5", "int3_g32", "16x32", "no kernel leaves out zeros of int3_g32"),
        ("wanda:0.5", "int8_g32", "bitmask", "no kernel leaves out such zeros"),
    ],
)
def test_what_is_expanded_says_so(
    tmp_path: Path, prune: str, format: str, layout: str, why: str
) -> None:
    path = compressed(tmp_path, prune, format)
    assert layout in {entry.layout for entry in read_manifest(path).tensors.values()}
    executor = started(path, "", "auto")
    try:
        [note] = [note for note in executor.receipt().notes if note.startswith(f"{layout}: ")]
        assert f"dense ones ({why}); the file alone is smaller" in note
        assert not any("_b4_" in use.kernel for use in executor.receipt().kernels)
    finally:
        executor.close()


def test_wider_blocks_reach_the_kernel_too(tmp_path: Path) -> None:
    path = compressed(tmp_path, "magnitude:32x32:0.5", "int4_g32")
    executor = started(path, "", "a8")
    try:
        assert any("_b4_" in use.kernel for use in executor.receipt().kernels)
    finally:
        executor.close()


def test_requantized_blocks_are_dense(pruned: Path) -> None:
    config = RuntimeConfig(context=64, max_seqs=1, threads=1, format="int6_g32")
    with open_model(pruned) as opened:
        executor = load(opened.spec, opened.source, config)
    try:
        assert any("requantized to int6_g32" in note for note in executor.receipt().notes)
    finally:
        executor.close()
