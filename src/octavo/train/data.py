"""Token windows to train on and to hold out, never overlapping; their order is a pure function."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.core.errors import UserError
from octavo.core.rng import uniform_array

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_KIND_ORDER = 16  # Philox draws that shuffle windows, apart from those that sample tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows side by side.

    tokens   int64 [b, n + 1], the last one only predicted
    weights  float32 [b, n]: what each prediction counts in the mean; 0 for prompts and padding
    """

    tokens: I64
    weights: F32

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.tokens[rows], self.weights[rows])


@dataclass(frozen=True, slots=True)
class Corpus:
    """Windows of context + 1 tokens: int64 [n, context + 1], the last one only predicted.

    train_weights, held_out_weights  float32 [n, context] of their predictions; None: all count 1
    """

    train: I64
    held_out: I64
    train_weights: F32 | None = None
    held_out_weights: F32 | None = None

    @property
    def context(self) -> int:
        return int(self.train.shape[1]) - 1

    def digest(self) -> str:
        """A hash of all tokens, of how they are cut and of what counts."""
        digest = hashlib.sha256(repr((self.train.shape, self.held_out.shape)).encode())
        digest.update(self.train.tobytes())
        digest.update(self.held_out.tobytes())
        for weights in (self.train_weights, self.held_out_weights):
            digest.update(b"" if weights is None else weights.tobytes())
        return digest.hexdigest()

    def training(self, rows: I64) -> Batch:
        """Training windows by number."""
        return Batch(self.train[rows], _weights(self.train, self.train_weights)[rows])

    def holding_out(self) -> Batch:
        """All held-out windows."""
        return Batch(self.held_out, _weights(self.held_out, self.held_out_weights))


def split_corpus(
    tokens: Sequence[int], context: int, share: float = 0.1, bos: int | None = None
) -> Corpus:
    """Train on the beginning of a text, hold out the `share` at its end.

    Raises UserError when either part holds no window of `context` tokens.
    """
    if not 0 < share < 1:
        raise UserError(f"the held-out share is {share}: give a number between 0 and 1")
    cut = len(tokens) - int(len(tokens) * share)
    return make_corpus(tokens[:cut], tokens[cut:], context, bos)


def make_corpus(
    train: Sequence[int], held_out: Sequence[int], context: int, bos: int | None = None
) -> Corpus:
    """Cut two texts' tokens (given without BOS) into windows; `bos` begins every window.

    Raises UserError when a text holds no window, and when a held-out window occurs in the training
    text: its loss would measure memory.
    """
    corpus = Corpus(
        _windows(train, context, bos, "training"), _windows(held_out, context, bos, "held-out")
    )
    body = corpus.held_out if bos is None else corpus.held_out[:, 1:]
    if (found := _first_copy(np.asarray(train, np.int64), body)) is not None:
        raise UserError(
            f"the held-out text overlaps the training text: its window {found} occurs there; "
            "take it from another document"
        )
    return corpus


def batches(count: int, size: int, seed: int, start: int) -> Iterator[I64]:
    """Endless batches of window numbers, int64 [size], from batch number `start` on.

    Every epoch is a permutation of all windows, of (seed, epoch) alone: starting at 7 gives what
    followed the first seven.
    """
    order: dict[int, I64] = {}
    index = start * size
    while True:
        rows = []
        for i in range(index, index + size):
            epoch, place = divmod(i, count)
            if epoch not in order:
                order = {epoch: _permutation(count, seed, epoch)}
            rows.append(order[epoch][place])
        yield np.array(rows, np.int64)
        index += size


def _weights(windows: I64, weights: F32 | None) -> F32:
    if weights is not None:
        return weights
    # one value seen everywhere: nothing is stored
    return np.broadcast_to(np.float32(1), (windows.shape[0], windows.shape[1] - 1))


def _permutation(count: int, seed: int, epoch: int) -> I64:
    draws = uniform_array(seed, np.arange(count), epoch, _KIND_ORDER)
    return np.argsort(draws, kind="stable")


def _windows(tokens: Sequence[int], context: int, bos: int | None, name: str) -> I64:
    if context < 2:
        raise UserError(f"context {context} is too short to learn from: give at least 2")
    row = np.asarray(tokens, np.int64)
    lead = 0 if bos is None else 1
    body = context + 1 - lead
    # without BOS a window's first token is context only, so the next window begins with the last
    starts = range(0, len(row) - body + 1, body - 1 + lead)
    if not starts:
        raise UserError(f"the {name} text has {len(row)} tokens; a window needs {body}")
    cut = np.stack([row[start : start + body] for start in starts])
    return cut if bos is None else np.insert(cut, 0, bos, axis=1)


def _first_copy(text: I64, windows: I64) -> int | None:
    """Index of a window that occurs anywhere in the text."""
    size = windows.shape[1]
    if len(text) < size:
        return None
    hashes = _rolling(text, size)
    for index in np.flatnonzero(np.isin(_rolling(windows, size)[:, 0], hashes)).tolist():
        places = np.flatnonzero(hashes == _rolling(windows[index], size)[0])
        if any((text[place : place + size] == windows[index]).all() for place in places):
            return int(index)
    return None


def _rolling(tokens: I64, size: int) -> npt.NDArray[np.uint64]:
    """A hash of each run of `size` tokens in the last axis: its polynomial in an odd base, modulo
    2^64 (Karp and Rabin), from differences of prefix sums."""
    powers = np.cumprod(np.full(tokens.shape[-1], _BASE), dtype=np.uint64)
    sums = np.cumsum(tokens.astype(np.uint64) * powers, axis=-1, dtype=np.uint64)
    runs: npt.NDArray[np.uint64] = sums[..., size - 1 :].copy()
    runs[..., 1:] -= sums[..., :-size]
    inverse = np.uint64(pow(int(_BASE), -1, 2**64))
    # brought back to the powers of the first run
    runs *= np.cumprod(np.full(runs.shape[-1], inverse), dtype=np.uint64)
    return runs
