"""llama-perplexity's base-logits file (`--kl-divergence-base`): written, and read as a `Scorer`.

"_logits_", then int32 context, vocabulary, chunks; int32 tokens [chunks, context]; then for each
chunk and each scored position (the second half, but for its last) float32 scale and least
log-probability and uint16 codes of the vocabulary, padded to an even number: a log-probability is
scale * code + least. What lies more than 16 nats below the likeliest token is written as 16 below.
The first token of a chunk is the text's own, whichever token it was run with.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.core.errors import UserError
from octavo.evals.logprobs import check_finite
from octavo.evals.scorer import Scorer, block_rows
from octavo.evals.windows import Window
from octavo.io.mapping import FileMapping, damaged, replacing

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U16 = npt.NDArray[np.uint16]

MAGIC = b"_logits_"
_HEADER = struct.Struct("<8siii")
_WINDOW = np.float32(16)  # nats
_TOP = np.float32(65535)


def write_base_logits(path: Path, scorer: Scorer, windows: Sequence[Window]) -> None:
    """Run the scorer over windows of the llama.cpp protocol, and write what it finds.

    Raises UserError for windows of another protocol, ResourceError when the file can't be written.
    """
    context = len(windows[0].tokens)
    if any(len(w.tokens) != context or w.first != context // 2 for w in windows):
        raise UserError("a base-logits file holds windows of the llama.cpp protocol only")
    rows = block_rows(scorer.vocab)
    with replacing(path) as file:
        file.write(_HEADER.pack(MAGIC, context, scorer.vocab, len(windows)))
        file.write(np.stack([w.tokens for w in windows]).astype("<i4").tobytes())
        for window in windows:
            for logits in scorer.logits(window.tokens[:-1].tolist(), window.first, rows):
                check_finite(logits, scorer.name)
                file.write(encode(logits).tobytes())


def encode(logits: F32) -> U16:
    """float32 [rows, vocab] -> uint16 [rows, 4 + vocab rounded up to even], as ggml rounds them."""
    vocab = logits.shape[1]
    top = logits.max(1, keepdims=True)
    least = np.maximum(logits.min(1, keepdims=True), top - _WINDOW)
    total = np.exp(logits - top).sum(1, keepdims=True, dtype=np.float64)
    scale = (top - least) / _TOP
    floor = least - top - np.log(total).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    codes = np.rint(inverse * np.maximum(logits - least, 0))
    found = np.zeros((len(logits), 4 + vocab + vocab % 2), np.uint16)
    found[:, :4] = np.hstack([scale, floor]).astype("<f4").view(np.uint16)
    found[:, 4 : 4 + vocab] = np.minimum(codes, _TOP).astype(np.uint16)
    return found


class BaseLogits:
    """A file's log-probabilities as a Scorer of exactly the windows that it holds.

    Raises ModelFileError for a file that isn't one, or that ends early.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._mapping = FileMapping(path)
        try:
            self._read_header(path)
        except BaseException:
            self._mapping.close()
            raise

    def _read_header(self, path: Path) -> None:
        self._mapping.check(0, _HEADER.size, "the header")
        magic, context, vocab, chunks = _HEADER.unpack_from(self._mapping.buffer)
        if magic != MAGIC:
            raise damaged(path, "offset 0", "does not begin with '_logits_'", "Give another file.")
        if min(context - 3, vocab, chunks) < 1:
            raise damaged(path, "offset 8", f"context {context}, {vocab} tokens, {chunks} chunks")
        self.vocab, self._context = vocab, context
        self._width = 4 + vocab + vocab % 2
        self._rows = context - 1 - context // 2
        data = self._mapping.view(_HEADER.size, 4 * context * chunks, "its tokens")
        self.tokens: I32 = data.view("<i4").reshape(chunks, context)
        self._start = _HEADER.size + 4 * context * chunks
        expected = self._start + 2 * chunks * self._rows * self._width
        if self._mapping.size != expected:
            raise damaged(
                path, f"offset {self._start}",
                f"{expected} bytes expected for {chunks} chunks, {self._mapping.size} found",
            )  # fmt: skip

    def windows(self, bos: int | None = None) -> tuple[Window, ...]:
        """What the file was made of; `bos` takes the first token's place."""
        kept = self.tokens.copy()
        if bos is not None:
            kept[:, 0] = bos
        return tuple(Window(tokens, self._context // 2) for tokens in kept)

    def logits(self, tokens: Sequence[int], first: int, rows: int) -> Iterator[F32]:
        """The log-probabilities; UserError for tokens that are no window of the file."""
        chunk = self._chunk(tokens, first)
        begin = self._start + 2 * chunk * self._rows * self._width
        data = self._mapping.view(begin, 2 * self._rows * self._width, f"chunk {chunk}")
        stored = data.view("<u2").reshape(self._rows, self._width)
        for start in range(0, self._rows, rows):
            yield decode(stored[start : start + rows], self.vocab)

    def close(self) -> None:
        self._mapping.close()

    def _chunk(self, tokens: Sequence[int], first: int) -> int:
        """Which chunk has these tokens, the first one (BOS or not) aside."""
        if first == self._context // 2 and len(tokens) == self._context - 1:
            same = (self.tokens[:, 1:-1] == np.asarray(tokens[1:])).all(1)
            if same.any():
                return int(same.argmax())
        raise UserError(
            f"{self.name} holds no such window: it has {len(self.tokens)} of {self._context} "
            "tokens; use the same text, tokenizer, --context and --protocol llama.cpp"
        )


def decode(stored: U16, vocab: int) -> F32:
    """uint16 [rows, width] -> log-probabilities, float32 [rows, vocab]."""
    header = np.ascontiguousarray(stored[:, :4]).view("<f4")
    scale, floor = header[:, :1], header[:, 1:]
    found: F32 = scale * stored[:, 4 : 4 + vocab].astype(np.float32) + floor
    return found
