"""llama-perplexity's base-logits file, against one built by hand from the documented layout."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from octavo.core.errors import ModelFileError, UserError
from octavo.evals.base_logits import BaseLogits, decode, encode, write_base_logits
from octavo.evals.divergence import divergence
from octavo.evals.logprobs import log_softmax
from octavo.evals.windows import split
from support.scorers import bigram_scorer

VOCAB, CONTEXT = 7, 8


def table(seed: int = 0, spread: float = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((VOCAB, VOCAB))).astype(np.float32)


def text(length: int = 24) -> list[int]:
    return np.random.default_rng(1).integers(0, VOCAB, length).tolist()


def by_hand(tokens: list[list[int]], logits: np.ndarray) -> bytes:
    """One number at a time, in C's order: header, tokens, then rows of scale, least and codes."""
    out = b"_logits_" + struct.pack("<iii", CONTEXT, VOCAB, len(tokens))
    out += b"".join(struct.pack("<i", t) for row in tokens for t in row)
    for row in logits:
        top = np.float32(max(row))
        least = np.float32(max(min(row), top - np.float32(16)))
        total = np.float32(np.log(sum(float(np.exp(np.float32(v - top))) for v in row)))
        scale = np.float32((top - least) / np.float32(65535))
        out += struct.pack("<ff", scale, np.float32(least - top - total))
        inverse = np.float32(1) / scale
        codes = [int(np.rint(inverse * np.float32(v - least))) if v > least else 0 for v in row]
        out += struct.pack(f"<{VOCAB}H", *codes) + b"\0\0"  # the vocabulary is odd
    return out


def test_bytes_are_those_of_the_layout(tmp_path: Path) -> None:
    scores = table()
    scores[0] = [40, 0, 10, 39, 30, 24, 23.5]  # wider than 16 nats
    windows = split(text(), CONTEXT, protocol="llama.cpp")
    write_base_logits(tmp_path / "f", bigram_scorer(scores), windows)
    seen = np.concatenate([scores[w.tokens[CONTEXT // 2 : -1]] for w in windows])
    expected = by_hand([w.tokens.tolist() for w in windows], seen)
    assert (tmp_path / "f").read_bytes() == expected


def test_what_is_read_is_off_by_half_a_step() -> None:
    logits = table(3)
    back = decode(encode(logits), VOCAB)
    step = (logits.max(1) - logits.min(1)) / 65535
    # Half a step of the grid, and some roundings of fp32 at a magnitude of 16.
    assert (np.abs(back - log_softmax(logits)).max(1) <= step / 2 + 2.0**-19).all()


def test_equal_logits_have_one_code() -> None:
    found = decode(encode(np.zeros((1, VOCAB), np.float32)), VOCAB)
    np.testing.assert_allclose(found, -np.log(VOCAB), rtol=2.0**-22)


def test_a_file_takes_the_place_of_its_model(tmp_path: Path) -> None:
    model, base = bigram_scorer(table(1)), bigram_scorer(table(2))
    windows = split(text(), CONTEXT, bos=5, protocol="llama.cpp")
    write_base_logits(tmp_path / "f", base, windows)
    stored = BaseLogits(tmp_path / "f")
    live, kept = divergence(model, base, windows), divergence(model, stored, windows)
    # A step of at most 16 / 65535 nats moves a log-probability by half of it.
    assert abs(live.kl_mean.value - kept.kl_mean.value) <= 16 / 65535
    assert live.same_top == kept.same_top
    again = stored.windows(5)
    assert [w.tokens.tolist() for w in again] == [w.tokens.tolist() for w in windows]
    stored.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b[:10], "header"),
        (lambda b: b"x" + b[1:], "_logits_"),
        (lambda b: b[:-1], "bytes expected"),
        (lambda b: b + b"\0", "bytes expected"),
        (lambda b: b[:8] + struct.pack("<i", 2) + b[12:], "context 2"),
        (lambda b: b[:16] + struct.pack("<i", -1) + b[20:], "-1 chunks"),
        (lambda b: b[:16] + struct.pack("<i", 1 << 30) + b[20:], "tokens"),
    ],
)
def test_a_file_that_lies_is_one_error(tmp_path: Path, change: object, words: str) -> None:
    path = tmp_path / "f"
    write_base_logits(path, bigram_scorer(table()), split(text(), CONTEXT, protocol="llama.cpp"))
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ModelFileError, match=words):
        BaseLogits(path)


def test_other_windows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(UserError, match=r"llama\.cpp protocol"):
        write_base_logits(path, bigram_scorer(table()), split(text(), CONTEXT))
    write_base_logits(path, bigram_scorer(table()), split(text(), CONTEXT, protocol="llama.cpp"))
    stored = BaseLogits(path)
    with pytest.raises(UserError, match="no such window"):
        next(stored.logits([0] * (CONTEXT - 1), CONTEXT // 2, 4))
    with pytest.raises(UserError, match="no such window"):
        next(stored.logits(text()[: CONTEXT - 1], 0, 4))
