"""The executor's adapter: logits equal to the model's own, however rows are cut into steps."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.backends.base import WANT_LOGITS, WANT_TOKEN, RuntimeConfig, StepBatch, StepResult
from octavo.core.errors import UserError
from octavo.engine.request import TokenLogprobs
from octavo.evals.scorer import ExecutorScorer, SingleSequence, block_rows
from support.fakes import F32, FakeExecutor, FakeModel

TOKENS = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0, 2, 6]


class LogitsExecutor(FakeExecutor):
    """The fake executor with WANT_LOGITS: rows go into the caller's buffer in row order."""

    filled = 0

    def step(self, batch: StepBatch) -> StepResult:
        self.filled = 0
        return super().step(batch)

    def _choose(
        self, batch: StepBatch, seq: int, row: int, logits: F32
    ) -> tuple[int, TokenLogprobs]:
        if not int(batch.want[row]) & WANT_LOGITS:
            return super()._choose(batch, seq, row, logits)
        assert batch.logits is not None
        batch.logits[self.filled] = logits
        self.filled += 1
        return -1, TokenLogprobs(-1, 0.0)


def executor(windows: tuple[int | None, ...] = (None, 4)) -> LogitsExecutor:
    config = RuntimeConfig(max_tokens=5, max_seqs=1, context=16, block_size=4)
    return LogitsExecutor(FakeModel(7, windows), config, (4,) * len(windows))


def expected(first: int) -> np.ndarray:
    model = FakeModel(7, (None, 4))
    return np.stack([model.logits(model.views(TOKENS[: i + 1])) for i in range(first, len(TOKENS))])


@pytest.mark.parametrize("first", [0, 1, 7, 12])
@pytest.mark.parametrize("rows", [1, 3, 5, 8, 64])
def test_logits_of_every_position_in_blocks(first: int, rows: int) -> None:
    scorer = ExecutorScorer(executor(), "fake")
    blocks = [block.copy() for block in scorer.logits(TOKENS, first, rows)]
    assert [len(b) for b in blocks[:-1]] == [rows] * (len(blocks) - 1)
    np.testing.assert_array_equal(np.concatenate(blocks), expected(first))


def test_every_text_starts_from_an_empty_context() -> None:
    scorer = ExecutorScorer(executor(), "fake")
    for _ in range(2):
        blocks = [block.copy() for block in scorer.logits(TOKENS, 0, 4)]
        np.testing.assert_array_equal(np.concatenate(blocks), expected(0))


def test_scorer_takes_name_and_vocabulary_and_closes_its_executor() -> None:
    fake = executor()
    scorer = ExecutorScorer(fake, "fake")
    assert (scorer.name, scorer.vocab) == ("fake", 7)
    scorer.close()
    assert fake.closed


@pytest.mark.parametrize("length", range(1, 14))
def test_prefill_finds_the_models_own_next_token(length: int) -> None:
    fake = executor()
    token = SingleSequence(fake).prefill(TOKENS[:length])
    model = FakeModel(7, (None, 4))
    assert token == int(model.logits(model.views(TOKENS[:length])).argmax())
    assert sum(fake.rows) == length


def test_context_overflow_names_both_numbers() -> None:
    sequence = SingleSequence(executor())
    sequence.pass_over(range(7))
    with pytest.raises(UserError, match=r"17 tokens exceed the context of 16"):
        sequence.pass_over([0] * 10)
    assert sequence.length == 12  # whole steps before the one that didn't fit


def test_single_steps_continue_where_the_last_ended() -> None:
    sequence, model = SingleSequence(executor()), FakeModel(7, (None, 4))
    sequence.pass_over(TOKENS[:3])
    for i in range(3, 9):
        token = int(sequence.step(TOKENS[i : i + 1], WANT_TOKEN).token[0])
        assert token == int(model.logits(model.views(TOKENS[: i + 1])).argmax())


@pytest.mark.parametrize(("vocab", "rows"), [(1, 256), (49152, 256), (262144, 64), (1 << 26, 1)])
def test_blocks_stay_under_64_megabytes(vocab: int, rows: int) -> None:
    assert block_rows(vocab) == rows
