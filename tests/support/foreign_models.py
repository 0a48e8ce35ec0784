"""Small models as other tools store them, packed here from the documented layouts, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.io.safetensors_file import write_safetensors
from support import model_files
from support.model_files import MODELS
from support.small_models import small_weights

Array = npt.NDArray[Any]
Parts = dict[str, Array]


def stream(values: Array, bits: int) -> Array:
    """Unsigned values [n, k] -> int32 [n, ceil(k * bits / 32)]: value i from bit i * bits on."""
    n, k = values.shape
    words = np.zeros((n, -(-k * bits // 32)), np.uint64)
    for i in range(k):
        for bit in range(bits):
            word, place = divmod(i * bits + bit, 32)
            words[:, word] |= ((values[:, i].astype(np.uint64) >> np.uint64(bit)) & 1) << place
    return words.astype(np.uint32).view(np.int32)


def gptq_parts(
    codes: Array, zeros: Array, scales: Array, order: Array | None, bits: int, less_one: bool
) -> Parts:
    """codes [out, in], zeros and scales [out, groups]; `less_one`: the older convention."""
    stored = (zeros.astype(np.int64) - int(less_one)) % (1 << bits)
    parts: Parts = {
        "qweight": np.ascontiguousarray(stream(codes, bits).T),
        "qzeros": stream(stored.T, bits),
        "scales": np.ascontiguousarray(scales.T),
    }
    if order is not None:
        parts["g_idx"] = order.astype(np.int32)
    return parts


def awq_parts(codes: Array, zeros: Array, scales: Array) -> Parts:
    """4 bits: nibble i of a word is output (0, 2, 4, 6, 1, 3, 5, 7)[i] of its eight."""

    def words(values: Array) -> Array:
        eights = values.reshape(values.shape[0], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return stream(eights.reshape(values.shape), 4)

    return {
        "qweight": words(codes.T), "qzeros": words(zeros.T),
        "scales": np.ascontiguousarray(scales.T),
    }  # fmt: skip


def foreign_model(
    directory: Path,
    config: Mapping[str, Any],
    pack: Callable[[str, Array], Parts],
    name: str = "llama",
    extra: Mapping[str, Array] | None = None,
) -> Path:
    """A Hugging Face directory whose linear layers are what `pack(layer, weight)` makes of them,
    parts by the rest of their names."""
    tensors: dict[str, Array] = dict(extra or {})
    for key, weight in small_weights(name).items():
        layer = key.removesuffix(".weight")
        if not layer.endswith("_proj"):
            tensors[key] = weight
            continue
        tensors |= {f"{layer}.{part}": a for part, a in pack(layer, weight).items()}
    model_files.write_hf(directory, MODELS[name], {"x": np.zeros(1, np.float32)})
    write_safetensors(directory / "model.safetensors", tensors)
    path = directory / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "quantization_config": dict(config)}))
    return directory
