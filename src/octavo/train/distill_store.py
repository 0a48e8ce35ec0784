"""A teacher's k likeliest tokens on disk: its part of the work, done once.

One safetensors file: `ids` int32 and `logprobs` float16 [windows, n, k], `windows` the SHA-256 of
each window's tokens. 6 k bytes a position, where whole fp16 logits take 2 * vocab: for k = 32 and
49,152 tokens 512 times less. A log-probability of -20 is kept to 2^-6, one of -1 to 2^-11.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.core.errors import ConfigError, UserError
from octavo.io.safetensors_file import open_safetensors, write_safetensors
from octavo.train.data import I64
from octavo.train.losses import Teacher

_NAMES: Mapping[str, np.dtype[Any]] = {
    "ids": np.dtype(np.int32),
    "logprobs": np.dtype(np.float16),
    "windows": np.dtype(np.uint8),
}
_BATCH = 8


def store_teacher(
    path: Path, teacher: Teacher, windows: I64, k: int = 32, temperature: float = 1.0
) -> None:
    """Run a teacher over windows int64 [count, n + 1] and keep the k likeliest tokens of each
    prediction. Raises ConfigError for a k or temperature out of range."""
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; give a positive number")
    ids, logprobs, vocab = [], [], 0
    for start in range(0, len(windows), _BATCH):
        logits = teacher.logits(windows[start : start + _BATCH, :-1])
        vocab = int(logits.shape[-1])
        if not 1 <= k <= vocab:
            raise ConfigError(f"k is {k}: give 1 to the vocabulary's {vocab}")
        top = torch.topk(torch.log_softmax(logits.float() / temperature, dim=-1), k, dim=-1)
        ids.append(top.indices.to(torch.int32).cpu().numpy())
        logprobs.append(top.values.to(torch.float16).cpu().numpy())
    if not ids:
        raise ConfigError("there is no window to run the teacher on")
    tensors = {
        "ids": np.concatenate(ids),
        "logprobs": np.concatenate(logprobs),
        "windows": np.stack([_key(row) for row in windows[:, :-1]]),
    }
    metadata = {"vocab": str(vocab), "temperature": repr(temperature), "teacher": teacher.digest()}
    write_safetensors(path, tensors, metadata)


class StoredTop:
    """What `store_teacher` kept. Raises UserError when the file isn't one of its."""

    def __init__(self, path: Path) -> None:
        self._path = path
        file = open_safetensors(path)
        metadata = file.metadata
        if file.tensors.keys() != _NAMES.keys() or not {"vocab", "temperature"} <= metadata.keys():
            raise UserError(f"{path}: holds no stored teacher; make one with store_teacher")
        arrays = {
            name: stored.rows().reshape(-1).view(_NAMES[name]).reshape(stored.shape)
            for name, stored in file.tensors.items()
        }
        self._ids, self._logprobs = arrays["ids"], arrays["logprobs"]
        self._rows = {bytes(key): row for row, key in enumerate(arrays["windows"])}
        self.vocab, self.temperature = int(metadata["vocab"]), float(metadata["temperature"])
        self._digest = hashlib.sha256(self._ids.tobytes() + self._logprobs.tobytes()).hexdigest()

    def top(self, tokens: I64) -> tuple[I64, Tensor]:
        rows = [self._row(window) for window in tokens]
        logprobs = torch.from_numpy(self._logprobs[rows].astype(np.float32))
        return self._ids[rows].astype(np.int64), logprobs

    def digest(self) -> str:
        return self._digest

    def _row(self, window: I64) -> int:
        row = self._rows.get(bytes(_key(window)))
        if row is None:
            raise UserError(
                f"{self._path}: the teacher was not run on a window of this corpus; store it for "
                "the same text, context and tokenizer"
            )
        return row


def _key(window: I64) -> npt.NDArray[np.uint8]:
    digest = hashlib.sha256(np.ascontiguousarray(window, np.int64).tobytes()).digest()
    return np.frombuffer(digest, np.uint8)
