"""Losses against their formulas, and the trainer under each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.errors import ConfigError, UserError
from octavo.formats.number_format import NumberFormat
from octavo.train.data import Batch, Corpus, make_corpus
from support.trainable import chain, tiny_masters, tiny_spec

torch = pytest.importorskip("torch")
losses = pytest.importorskip("octavo.train.losses")
qat = pytest.importorskip("octavo.train.qat")
trainer = pytest.importorskip("octavo.train.trainer")
options = pytest.importorskip("octavo.backends.reference.options")


class Fixed:
    """A teacher that always predicts the same."""

    def __init__(self, logits: Any) -> None:
        self._logits = logits

    def logits(self, tokens: Any) -> Any:
        return self._logits.expand(*tokens.shape, -1)

    def digest(self) -> str:
        return str(self._logits.tolist())


def batch_of(tokens: Any, weights: Any = None) -> Batch:
    tokens = np.asarray(tokens, np.int64)
    ones = np.ones((tokens.shape[0], tokens.shape[1] - 1), np.float32)
    return Batch(tokens, ones if weights is None else np.asarray(weights, np.float32))


def model_of(name: str, seed: int = 0) -> Any:
    masters = tiny_masters(tiny_spec(), seed)
    formats = dict.fromkeys(masters, NumberFormat.parse(name))
    return qat.QatModel(tiny_spec(), masters, formats, options.ReferenceOptions())


def corpus() -> Corpus:
    return make_corpus(chain(2000, seed=1), chain(400, seed=2), 16)


def test_labels_are_the_negative_log_likelihood_of_the_next_token() -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]])
    found = losses.Labels().per_token(logits, batch_of([[0, 2, 1]]))
    expected = -torch.log_softmax(logits[0], -1)[[0, 1], [2, 1]]
    torch.testing.assert_close(found, expected[None])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_is_its_sum(temperature: float) -> None:
    draws = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(5, generator=draws) for _ in range(2))
    loss = losses.TeacherKl(Fixed(teacher), temperature)
    found = loss.per_token(student.view(1, 1, 5), batch_of([[0, 1]]))
    p, q = (torch.softmax(x.double() / temperature, -1) for x in (teacher, student))
    expected = (p * (p / q).log()).sum() * temperature**2
    torch.testing.assert_close(found.double(), expected.view(1, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_the_gradient_of_kl_is_the_difference_of_the_softmaxes(temperature: float) -> None:
    """d(T^2 KL(p || q)) / dz = T (q - p): of 5 tokens, by hand."""
    draws = torch.Generator().manual_seed(1)
    teacher, student = (torch.randn(5, generator=draws) for _ in range(2))
    leaf = student.clone().requires_grad_()
    loss = losses.TeacherKl(Fixed(teacher), temperature)
    loss.per_token(leaf.view(1, 1, 5), batch_of([[0, 1]])).sum().backward()
    p, q = (torch.softmax(x.double() / temperature, -1) for x in (teacher, student))
    expected = temperature * (q - p)
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_student_that_is_its_teacher_has_loss_and_gradient_zero() -> None:
    model = model_of("fp32")
    loss = losses.TeacherKl(losses.ModelTeacher(model))
    batch = corpus().training(np.arange(3))
    tokens = batch.tokens[:, :-1]
    logits = model.logits(tokens, model.prepared()).unflatten(0, tokens.shape)
    value = loss.per_token(logits, batch)
    assert value.abs().max() == 0
    value.sum().backward()
    # softmax(student) - softmax(teacher), of equal logits but by two formulas: rounding alone
    largest = max(m.grad.abs().max().item() for m in model.masters.values())
    labels = losses.Labels().per_token(
        model.logits(tokens, model.prepared()).unflatten(0, tokens.shape), batch
    )
    grads = torch.autograd.grad(labels.sum(), list(model.masters.values()))
    assert largest < 1e-5 * max(g.abs().max().item() for g in grads)


def test_another_vocabulary_is_refused() -> None:
    loss = losses.TeacherKl(Fixed(torch.zeros(7)))
    with pytest.raises(UserError, match=r"vocabulary of 7 tokens and the student one of 5"):
        loss.per_token(torch.zeros(1, 1, 5), batch_of([[0, 1]]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        losses.TeacherKl(Fixed(torch.zeros(2)), temperature)


def test_a_mixture_is_its_weighted_sum() -> None:
    labels, kl = losses.Labels(), losses.TeacherKl(Fixed(torch.arange(3.0)))
    mixed = losses.Mixed([(0.25, labels), (2.0, kl)])
    logits, batch = torch.tensor([[[0.3, -1.0, 0.2]]]), batch_of([[0, 1]])
    expected = 0.25 * labels.per_token(logits, batch) + 2 * kl.per_token(logits, batch)
    torch.testing.assert_close(mixed.per_token(logits, batch), expected)
    assert mixed.name == "0.25 labels + 2 kl"
    assert mixed.recipe() != losses.Mixed([(0.5, labels), (2.0, kl)]).recipe()
    with pytest.raises(ConfigError, match="at least one"):
        losses.Mixed([])


def test_training_towards_a_teacher_comes_nearer_to_it() -> None:
    teacher = losses.TeacherKl(losses.ModelTeacher(model_of("fp32")))
    config = trainer.TrainConfig(25, 2e-3, batch=4, evaluate_every=100)
    model = model_of("int2_g32")
    report = trainer.Trainer(model, corpus(), config, loss=teacher).run()
    assert (report.loss, report.watched) == ("kl", "kl")
    assert report.held_out[-1][1] < 0.5 * report.held_out[0][1]
    labelled = trainer.Trainer(model_of("int2_g32"), corpus(), config, watched=teacher).run()
    assert labelled.held_out[0] == report.held_out[0]
    assert report.held_out[-1][1] < labelled.held_out[-1][1]


def test_tokens_of_weight_zero_count_nothing() -> None:
    """Whatever stands behind the last token that counts, loss and weights end up the same."""
    ends = []
    plain = corpus()
    for filler in (3, 9):
        train = plain.train.copy()
        train[:, 10:] = filler
        weights = np.ones((len(train), 16), np.float32)
        weights[:, 9:] = 0
        cut = Corpus(train, plain.held_out, weights)
        model = model_of("int4_g32")
        config = trainer.TrainConfig(3, 1e-3, batch=4, evaluate_every=100)
        report = trainer.Trainer(model, cut, config).run()
        ends.append((report.train, model.masters))
    assert ends[0][0] == ends[1][0]
    for role, master in ends[0][1].items():
        if str(role) != "embed":
            assert torch.equal(master, ends[1][1][role]), role


def test_unequal_masks_make_one_mean_over_all_passes() -> None:
    """Two passes of one update count by their tokens, not by their number."""
    plain = corpus()
    weights = np.ones((len(plain.train), 16), np.float32)
    weights[::2, 4:] = 0
    masked = Corpus(plain.train, plain.held_out, weights)
    found = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        config = trainer.TrainConfig(1, batch=batch, accumulate=accumulate)
        found.append(trainer.Trainer(model_of("fp32"), masked, config).run().train[0][1])
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)
