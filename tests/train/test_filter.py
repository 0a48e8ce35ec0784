"""Generated text: what the filter refuses, how much is mixed in, and that bad text does harm."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.errors import ConfigError, UserError
from octavo.train.filter import Limits, mix, sift

RNG = np.random.default_rng(3)


def fresh(length: int = 40) -> list[int]:
    return RNG.integers(0, 1000, length).tolist()


def test_each_kind_of_bad_text_goes_for_its_reason() -> None:
    good, other, tested = fresh(), fresh(), fresh()
    copied = [*good[:35], *fresh(5)]
    leaked = [*fresh(10), *tested[5:20], *fresh(10)]
    texts = [good, [1, 2, 3] * 13, leaked, copied, [7], other]
    found = sift(texts, Limits(), [tested])
    assert found.kept == (0, 5)
    assert found.refused == {"repetition": 1, "evaluation": 1, "duplicate": 1, "empty": 1}


def test_one_token_less_than_the_overlap_is_allowed() -> None:
    tested = fresh()
    for shared, kept in ((12, (0,)), (13, ())):
        text = [*fresh(10), *tested[:shared], *fresh(10)]
        assert sift([text], Limits(overlap=13), [tested]).kept == kept


def test_the_teacher_refuses_what_it_finds_unlikely() -> None:
    likely, unlikely, unknown = fresh(), fresh(), fresh()
    nats = {likely[0]: 2.0, unlikely[0]: 9.0, unknown[0]: float("nan")}
    found = sift([likely, unlikely, unknown], Limits(), (), lambda text: nats[text[0]])
    assert found.kept == (0,)
    assert found.refused == {"unlikely": 2}


def windows(count: int, value: int) -> np.ndarray:
    return np.full((count, 5), value, np.int64)


@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0])
def test_mixtures_hold_the_share_that_was_asked_for(share: float) -> None:
    mixed = mix(windows(60, 0), windows(60, 1), share, 60)
    assert mixed.shape == (60, 5)
    assert mixed[:, 0].sum() == round(60 * share)
    for half in (mixed[:30], mixed[30:]):
        assert abs(half[:, 0].sum() - 30 * share) <= 1


def test_what_can_not_be_mixed_is_refused() -> None:
    with pytest.raises(UserError, match="30 generated windows are wanted and there are 10"):
        mix(windows(60, 0), windows(10, 1), 0.5, 60)
    with pytest.raises(UserError, match="different contexts"):
        mix(windows(9, 0), np.zeros((9, 6), np.int64), 0.5, 4)
    with pytest.raises(ConfigError):
        mix(windows(9, 0), windows(9, 1), 1.5, 4)
    with pytest.raises(ConfigError):
        Limits(nats=0)


def test_bad_text_does_harm_and_the_filter_takes_it_out() -> None:
    """Half of the windows are a model's loops. Trained on them a student is worse at the text than
    without; what the filter leaves is the text alone, and as good."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from octavo.backends.reference.options import ReferenceOptions
    from octavo.formats.number_format import FP32
    from octavo.train import QatModel, TrainConfig, Trainer
    from octavo.train.data import Corpus, split_corpus
    from support.trainable import chain, tiny_masters, tiny_spec

    text = split_corpus(chain(1600), 16)
    starts = np.random.default_rng(1).integers(0, 32, (len(text.train), 2))
    loops = np.tile(starts, 9)[:, :17].astype(np.int64)
    spoiled = mix(text.train, loops, 0.5, len(text.train))
    limits = Limits(distinct=0.6, shingle=8, overlap=17)
    found = sift(spoiled.tolist(), limits)
    sifted = spoiled[list(found.kept)]
    assert found.refused["repetition"] == round(len(text.train) / 2)

    def held_out_loss(windows: np.ndarray) -> float:
        masters = tiny_masters(tiny_spec())
        student = QatModel(tiny_spec(), masters, dict.fromkeys(masters, FP32), ReferenceOptions())
        config = TrainConfig(30, 3e-3, batch=16, evaluate_every=30)
        return Trainer(student, Corpus(windows, text.held_out), config).run().held_out[-1][1]

    good, bad, saved = (held_out_loss(w) for w in (text.train, spoiled, sifted))
    assert bad > 1.02 * good
    assert saved < bad
