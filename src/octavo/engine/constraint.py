"""What a grammar allows next: llguidance's parser over the model's vocabulary, as bit masks.

A grammar is compiled once (`Grammars`), each sequence walks a copy of its own (`Constraint`), and
masks are filled on another thread while the step runs (`MaskFiller`): the executor waits for a row
of the mask only where it samples it. Compiling and every mask have a budget; what exceeds it ends
that request alone, as an error of its grammar.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import llguidance
import numpy as np
import numpy.typing as npt

from octavo.backends.base import MASK_NONE, MASK_PENDING, MASK_READY, StepBatch
from octavo.core.errors import RequestError
from octavo.engine.sequence import Chunk
from octavo.io.tokenizer import Tokenizer

U32 = npt.NDArray[np.uint32]

MAX_GRAMMAR = 1 << 20  # characters
_MOST_COMPILED = 32  # grammars kept
_MOST_FORCED = 1 << 14  # bytes that a grammar may prescribe in a row: each mask walks them
_STEP_FUEL = 200_000  # of the lexer, for one mask: about 15 ms


class Vocabulary(NamedTuple):
    """Bytes of every token, which of them are control tokens, which end an answer, and how text
    that follows other text is encoded (forced text gets the tokens that the model knows)."""

    tokens: Sequence[bytes]
    special: frozenset[int]
    eos: tuple[int, ...]
    encode: Callable[[str], list[int]]


def vocabulary_of(tokenizer: Tokenizer, eos: Sequence[int]) -> Vocabulary:
    tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    return Vocabulary(tokens, tokenizer.special_ids, tuple(eos), tokenizer.encode_literal)


class _Wrapped:
    """A vocabulary as llguidance reads it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        padding = max(0, size - len(vocabulary.tokens))
        self.tokens = [*vocabulary.tokens, *[b""] * padding][:size]
        self.special_token_ids = sorted(i for i in vocabulary.special if i < size)
        self.eos_token_id = vocabulary.eos[0]
        self._encode = vocabulary.encode

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text")  # how llguidance finds out that bytes are not taken
        return self._encode(text)


class Constraint:
    """One sequence's place in its grammar. `failure`: why it can't go on, "" while it can."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher
        self.failure = matcher.get_error()

    def fork(self) -> Constraint:
        return Constraint(self._matcher.deep_copy())

    def accept(self, token: int) -> bool:
        """Take the token that was sampled. True: the text is complete, nothing can follow it."""
        if not self.failure and not self._matcher.consume_token(token):
            self.failure = self._matcher.get_error() or f"token {token} does not fit"
        return bool(self._matcher.is_stopped())

    def fill(self, row: U32) -> None:
        """Bits of what may come next, at least one token: all of them when it failed."""
        if not self.failure:
            self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            self.failure = self._matcher.get_error()
        if not self.failure and not row.any():
            self.failure = "no token of this vocabulary fits here"
        if self.failure:
            row.fill(0xFFFFFFFF)

    def error(self) -> RequestError:
        """What the request is told after a failure."""
        return _refusal(self.failure)


class Grammars:
    """Compiled grammars, the last ones used. Any thread may call. The vocabulary is read at the
    first grammar; `size` is that of the logits, `step_fuel` bounds the time of a mask."""

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary] | None,
        size: int,
        step_fuel: int = _STEP_FUEL,
    ) -> None:
        self._vocabulary, self._size, self._step_fuel = vocabulary, size, step_fuel
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[str, Constraint] = OrderedDict()

    def constraint(self, grammar: str) -> Constraint | None:
        """A new sequence's place in the grammar; None for "". Raises RequestError when the grammar
        doesn't compile, is too large, or begins with what no token spells."""
        if not grammar:
            return None
        with self._lock:
            found = self._compiled.get(grammar)
            if found is None:
                found = self._compiled[grammar] = self._compile(grammar)
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > _MOST_COMPILED:
                self._compiled.popitem(last=False)
            return found.fork()

    def _compile(self, grammar: str) -> Constraint:
        if len(grammar) > MAX_GRAMMAR:
            raise _refusal(f"it has {len(grammar)} characters, at most {MAX_GRAMMAR} are read")
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=1_000_000,  # about 20 ms
            step_lexer_fuel=self._step_fuel,
            step_max_items=50_000,
            max_lexer_states=50_000,  # 1 to 2 kB each
            max_grammar_size=500_000,
            verbose_errors=False,
        )
        matcher = llguidance.LLMatcher(self._tokens(), grammar, log_level=0, limits=limits)
        compiled = Constraint(matcher)
        if not compiled.failure:
            compiled.fill(np.zeros(-(-self._size // 32), np.uint32))
        if compiled.failure:
            raise compiled.error()
        if (forced := len(matcher.compute_ff_bytes())) > _MOST_FORCED:
            raise _refusal(f"it begins with {forced} bytes that leave no choice")
        return compiled

    def _tokens(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            if self._vocabulary is None:
                raise _refusal("this engine was made without a tokenizer, which grammars need")
            vocabulary = self._vocabulary()
            if not vocabulary.eos:
                raise _refusal("the model names no end token")
            wrapped = llguidance.TokenizerWrapper(_Wrapped(vocabulary, self._size))
            self._tokenizer = llguidance.LLTokenizer(
                wrapped, n_vocab=self._size, eos_token=list(vocabulary.eos)
            )
        return self._tokenizer


def _refusal(reason: str) -> RequestError:
    text = reason.strip().splitlines()
    short = " ".join(line.strip() for line in text)[:300]
    return RequestError(f"the grammar can't be used: {short}", param="grammar")


class MaskFiller:
    """Fills the masks of a batch on a thread of its own. Call `begin` before the step, `end` after
    it, however it ended: only then are constraints and batch the caller's again."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None
        self._marked = False

    def begin(self, batch: StepBatch, chunks: Sequence[Chunk]) -> None:
        jobs = [
            (index, chunk.sequence.constraint)
            for index, chunk in enumerate(chunks)
            if chunk.sequence.constraint is not None and chunk.samples
        ]
        if self._marked:
            batch.mask_state.fill(MASK_NONE)
        self._marked = bool(jobs)
        if not jobs:
            return
        batch.mask_state[[index for index, _ in jobs]] = MASK_PENDING
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "octavo-masks")
        self._running = self._thread.submit(_fill_all, batch, jobs)

    def end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()


def _fill_all(batch: StepBatch, jobs: Sequence[tuple[int, Constraint]]) -> None:
    order = threading.Lock()
    for index, constraint in jobs:
        try:
            constraint.fill(batch.mask[index])
        finally:
            # Between the mask and its flag, so that no CPU shows the flag first.
            with order:
                batch.mask_state[index] = MASK_READY
