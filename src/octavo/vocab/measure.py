"""Loss in bits per byte: the one unit in which models of different vocabularies compare.

A perplexity per token is a number about a tokenizer too: fewer tokens are each harder. Here the
log-probabilities of one text are summed and divided by its bytes. The sum is over one segmentation,
the tokenizer's own, so it bounds the loss of the text over all segmentations from above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo.backends.base import WANT_TARGET, Executor, RuntimeConfig
from octavo.core.errors import UserError
from octavo.evals.scorer import SingleSequence
from octavo.evals.statistics import Blocks, Estimate, estimate
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.tokenizer import Tokenizer, load_tokenizer

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one piece of text cost: `bits` in all, over `bytes` of UTF-8 in `tokens` tokens."""

    bits: float
    bytes: int
    tokens: int


@dataclass(frozen=True, slots=True)
class TextLoss:
    """Pieces of one text, each scored whole from an empty context."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def bits_per_byte(self) -> float:
        return math.fsum(p.bits for p in self.pieces) / sum(p.bytes for p in self.pieces)

    @property
    def tokens_per_byte(self) -> float:
        return sum(p.tokens for p in self.pieces) / sum(p.bytes for p in self.pieces)


def cut(text: str, size: int = 1024) -> list[str]:
    """Pieces of about `size` characters that end with a line where one ends in time."""
    pieces = []
    while text:
        end = text.rfind("\n", size // 2, size) + 1 if len(text) > size else len(text)
        end = end or size
        pieces.append(text[:end])
        text = text[end:]
    return pieces


def tokenizer_of(model: OpenModel) -> Tokenizer:
    """The tokenizer of an open model."""
    return load_tokenizer(model.path, model.metadata if model.kind == "gguf" else None)


def text_losses(
    path: Path, texts: Sequence[tuple[str, Sequence[str]]], context: int = 1024
) -> tuple[TextLoss, ...]:
    """Losses of (name, pieces) as the model's own executor serves them. Raises UserError for a
    piece that exceeds the context, and for an empty text."""
    with open_model(path) as model:
        tokenizer = tokenizer_of(model)
        start = start_token(model, tokenizer)
        config = RuntimeConfig(context=min(context, model.spec.max_positions), max_seqs=1)
        with closing(load_executor(model, config)) as executor:
            return tuple(
                TextLoss(name, tuple(_piece(executor, tokenizer, start, p) for p in pieces))
                for name, pieces in texts
                if _some(name, pieces)
            )


def difference(new: TextLoss, base: TextLoss) -> Estimate:
    """New minus base in bits per byte over the pieces they share, with its 95 % interval; paired,
    so that what is hard for both doesn't widen it. Raises UserError when the pieces differ."""
    if [p.bytes for p in new.pieces] != [p.bytes for p in base.pieces]:
        raise UserError(f"{new.name} and {base.name} are not the same pieces of text")
    gaps = np.array([a.bits - b.bits for a, b in zip(new.pieces, base.pieces, strict=True)])
    sizes = np.array([p.bytes for p in base.pieces], np.float64)
    draws = Blocks(len(gaps), 1).weights
    return estimate(float(gaps.sum() / sizes.sum()), (draws @ gaps) / (draws @ sizes))


def start_token(model: OpenModel, tokenizer: Tokenizer) -> int:
    """What stands before a text, so that its first token is scored too: the begin token, or what
    ends a text where there is none. Raises UserError for a model that names neither."""
    found = (tokenizer.bos_id, *tokenizer.eos_ids, *model.eos_ids)
    for token in found:
        if token is not None:
            return token
    raise UserError(f"{model.path}: names neither a begin nor an end token to start a text with")


def load_executor(model: OpenModel, config: RuntimeConfig) -> Executor:
    """Native where it runs the model, else the reference."""
    from octavo.backends.native.backend import NativeBackend, load

    if NativeBackend().supports(model.spec, config).ok:
        return load(model.spec, model.source, config)
    from octavo.backends.reference.executor import load_reference

    return load_reference(model.source, model.spec, config)


def _piece(executor: Executor, tokenizer: Tokenizer, start: int, text: str) -> Piece:
    tokens = [start, *tokenizer.encode(text, add_special=False)]
    sequence = SingleSequence(executor)
    nats, chunk = 0.0, executor.config.max_tokens
    for begin in range(0, len(tokens) - 1, chunk):
        part = tokens[begin : min(begin + chunk, len(tokens) - 1)]
        sequence.batch.target[: len(part)] = tokens[begin + 1 : begin + 1 + len(part)]
        nats -= math.fsum(map(float, sequence.step(part, WANT_TARGET).logprob[: len(part)]))
    return Piece(nats / math.log(2), len(text.encode()), len(tokens) - 1)


def _some(name: str, pieces: Sequence[str]) -> bool:
    if not pieces or not all(pieces):
        raise UserError(f"{name}: the text is empty, or a piece of it is")
    return True
