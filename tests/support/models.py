"""Demo models and peers' files for tests, found by environment variable or cache, never by path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.io.catalogue import cached_path


def demo_model(name: str) -> Path:
    """The GGUF file of a demo model, or a skip.

    Looked for in $OCTAVO_TEST_MODELS (a directory of <name>.gguf files), then in the cache. Never
    fetched here: `octavo run NAME` or `make demo` does that.
    """
    if directory := os.environ.get("OCTAVO_TEST_MODELS"):
        path = Path(directory) / f"{name}.gguf"
        if path.is_file():
            return path
    if (cached := cached_path(name)) is not None:
        return cached
    pytest.skip(f"{name} is neither in OCTAVO_TEST_MODELS nor in the cache")


def vocabulary_oracles() -> list[Path]:
    """llama.cpp's vocabulary files that have expected encodings beside them, or a skip.

    $OCTAVO_LLAMA_SDIST names a directory with the `models` folder of llama.cpp's source in it.
    """
    root = os.environ.get("OCTAVO_LLAMA_SDIST", "")
    found = sorted(Path(root, "models").glob("ggml-vocab-*.gguf.inp")) if root else []
    if not found:
        pytest.skip("OCTAVO_LLAMA_SDIST names no directory with models/ggml-vocab-*.gguf.inp")
    return [path.with_suffix("") for path in found]
