"""Distillation's losses by their definitions, and the well-known mistakes that they don't make."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.backends.reference.options import ReferenceOptions  # noqa: E402
from octavo.core.errors import ConfigError, UserError  # noqa: E402
from octavo.formats.number_format import FP32  # noqa: E402
from octavo.train import TrainConfig, Trainer  # noqa: E402
from octavo.train.data import Batch, split_corpus  # noqa: E402
from octavo.train.distill import (  # noqa: E402
    DistillLoss,
    Divergence,
    RewardLoss,
    TopLoss,
    kl,
)
from octavo.train.distill_store import StoredTop, store_teacher  # noqa: E402
from octavo.train.losses import Labels, ModelTeacher  # noqa: E402
from octavo.train.qat import QatModel  # noqa: E402
from octavo.train.students import drop_layers, evenly, narrow_mlps  # noqa: E402
from support.trainable import VOCAB, chain, tiny_masters, tiny_spec  # noqa: E402

DRAWS = torch.Generator().manual_seed(7)
KINDS = [Divergence("forward"), Divergence("reverse"), *(Divergence("jsd", b) for b in (0.1, 0.5))]


class FixedTeacher:
    """The same logits whatever the tokens."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def logits(self, tokens: np.ndarray) -> torch.Tensor:
        return self._logits.expand(*tokens.shape, self._logits.shape[-1])

    def digest(self) -> str:
        return "fixed"


def random_logits(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=DRAWS, dtype=torch.float64)


def batch_of(tokens: np.ndarray) -> Batch:
    return Batch(tokens, np.ones((tokens.shape[0], tokens.shape[1] - 1), np.float32))


@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_divergences_are_zero_for_equals_alone_and_never_negative(divergence: Divergence) -> None:
    p, q = (torch.log_softmax(random_logits(200, 9), -1) for _ in range(2))
    assert divergence.of(p, p).abs().max() < 1e-12
    assert divergence.of(p, q).min() > 0


def test_jsd_is_symmetric_at_a_half_and_at_most_ln_2() -> None:
    p, q = (torch.log_softmax(20 * random_logits(300, 5), -1) for _ in range(2))
    half = Divergence("jsd", 0.5)
    torch.testing.assert_close(half.of(p, q), half.of(q, p))
    assert half.of(p, q).max() <= math.log(2) + 1e-12
    assert half.of(p, q).max() > 0.9 * math.log(2)


def test_jsd_follows_its_definition() -> None:
    """A mixture of probabilities: the geometric one of the first public code differs."""
    p, q = (torch.log_softmax(random_logits(50, 6), -1) for _ in range(2))
    b, mixture = 0.3, 0.3 * p.exp() + 0.7 * q.exp()
    expected = b * (p.exp() * (p - mixture.log())).sum(-1) + 0.7 * (
        q.exp() * (q - mixture.log())
    ).sum(-1)
    torch.testing.assert_close(Divergence("jsd", b).of(p, q), expected)
    geometric = b * p + (1 - b) * q
    wrong = b * kl(p, geometric) + (1 - b) * kl(q, geometric)
    assert (wrong - expected).abs().max() > 1e-3


def test_jsd_ends_are_forward_and_reverse() -> None:
    p, q = (torch.log_softmax(random_logits(50, 6), -1) for _ in range(2))
    for end, kind in ((0.0, "forward"), (1.0, "reverse")):
        torch.testing.assert_close(Divergence("jsd", end).of(p, q), Divergence(kind).of(p, q))
    near = Divergence("jsd", 1e-6).of(p, q) / 1e-6
    torch.testing.assert_close(near, kl(p, q), rtol=1e-3, atol=1e-4)


def test_hot_gradients_approach_the_difference_of_logits() -> None:
    """Hinton (section 2.1): T^2 times the gradient tends to (z_s - z_t) / N for zero-mean logits;
    the next term of the series is of order 1 / T."""
    student, teacher = (random_logits(1, 8) for _ in range(2))
    student, teacher = student - student.mean(), teacher - teacher.mean()
    leaf = student.clone().requires_grad_()
    hot = Divergence("forward", temperature=1e3)
    hot.of(torch.log_softmax(teacher / 1e3, -1), torch.log_softmax(leaf / 1e3, -1)).sum().backward()
    torch.testing.assert_close(leaf.grad, (student - teacher) / 8, rtol=0, atol=1e-2)


def test_what_the_teacher_never_says_costs_nothing() -> None:
    p = torch.tensor([0.0, -torch.inf])
    q = torch.log(torch.tensor([0.25, 0.75])).requires_grad_()
    loss = kl(p, q)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4))
    assert torch.isfinite(q.grad).all()


def test_reward_has_the_gradient_of_reverse_kl_in_expectation() -> None:
    """Summed over all tokens with the student's own probabilities, exactly."""
    student, teacher = (random_logits(5).float() for _ in range(2))
    loss = RewardLoss(FixedTeacher(teacher))
    leaf = student.clone().requires_grad_()
    expected = torch.zeros(())
    for token, share in enumerate(torch.softmax(student, -1)):
        tokens = np.array([[0, token]])
        expected = expected + share * loss.per_token(leaf.expand(1, 1, 5), batch_of(tokens)).sum()
    (mine,) = torch.autograd.grad(expected, leaf)
    exact = kl(torch.log_softmax(leaf, -1), torch.log_softmax(teacher, -1))
    (theirs,) = torch.autograd.grad(exact, leaf)
    assert expected.item() == pytest.approx(exact.item(), rel=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def tiny_model(seed: int = 0) -> QatModel:
    spec = tiny_spec()
    masters = tiny_masters(spec, seed)
    return QatModel(spec, masters, dict.fromkeys(masters, FP32), ReferenceOptions())


@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_a_student_that_is_its_teacher_has_loss_and_gradient_zero(divergence: Divergence) -> None:
    model = tiny_model()
    loss = DistillLoss(ModelTeacher(model), divergence)
    tokens = np.array([chain(12, 3)])
    weights = {role: w.detach().requires_grad_() for role, w in model.prepared().items()}
    logits = model.logits(tokens[:, :-1], weights).view(1, 11, -1)
    value = loss.per_token(logits, batch_of(tokens))
    value.mean().backward()
    assert value.abs().max() < 1e-6
    # fp32's rounding of softmax, through the model; a student of another seed shows the scale
    gradient = max(float(w.grad.abs().max()) for w in weights.values() if w.grad is not None)
    other = {role: w.detach().requires_grad_() for role, w in tiny_model(1).prepared().items()}
    logits = model.logits(tokens[:, :-1], other).view(1, 11, -1)
    loss.per_token(logits, batch_of(tokens)).mean().backward()
    scale = max(float(w.grad.abs().max()) for w in other.values() if w.grad is not None)
    assert gradient < 1e-4 * scale


def test_another_vocabulary_is_refused() -> None:
    loss = DistillLoss(FixedTeacher(torch.zeros(9)))
    with pytest.raises(UserError, match=r"8 tokens and the teacher 9"):
        loss.per_token(torch.zeros(1, 1, 8), batch_of(np.array([[1, 2]])))


@pytest.mark.parametrize(
    "bad", [{"kind": "backward"}, {"beta": 1.5}, {"temperature": 0.0}, {"temperature": math.inf}]
)
def test_bad_divergences_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Divergence(**bad)  # type: ignore[arg-type]


def test_stored_logits_of_the_whole_vocabulary_give_the_whole_divergence(tmp_path: Path) -> None:
    """To fp16's rounding of the log-probabilities; fewer tokens never give more."""
    model, student = tiny_model(), tiny_model(1)
    teacher = ModelTeacher(model)
    windows = np.array([chain(12, seed) for seed in range(3)])
    batch = batch_of(windows)
    with torch.no_grad():
        logits = student.logits(windows[:, :-1], student.prepared()).view(3, 11, -1)
    whole = DistillLoss(teacher).per_token(logits, batch)
    last = torch.full_like(whole, torch.inf)
    for k in (VOCAB, 8, 2):
        store_teacher(tmp_path / "t.safetensors", teacher, windows, k)
        found = TopLoss(StoredTop(tmp_path / "t.safetensors")).per_token(logits, batch)
        if k == VOCAB:
            torch.testing.assert_close(found, whole, rtol=1e-2, atol=1e-2)
        assert (found <= last + 1e-2).all()
        last = found


def test_stored_logits_know_their_windows_and_temperature(tmp_path: Path) -> None:
    path, windows = tmp_path / "t.safetensors", np.array([chain(12, 0)])
    store_teacher(path, ModelTeacher(tiny_model()), windows, 4, 2.0)
    stored = StoredTop(path)
    with pytest.raises(UserError, match="not run on a window"):
        stored.top(windows[:, :-1] + 1)
    with pytest.raises(ConfigError, match="stored at temperature 2"):
        TopLoss(stored)
    with pytest.raises(ConfigError, match="k is 33"):
        store_teacher(path, ModelTeacher(tiny_model()), windows, VOCAB + 1)


def test_distillation_beats_labels_at_equal_tokens() -> None:
    """A small student of a trained teacher, by what it has of the teacher's predictions."""
    corpus = split_corpus(chain(3000), 16)
    teacher = tiny_model()
    config = TrainConfig(60, 3e-3, batch=16, evaluate_every=60)
    Trainer(teacher, corpus, config).run()
    watched = DistillLoss(ModelTeacher(teacher))
    ends = {}
    for name, loss in (("labels", Labels()), ("logits", watched)):
        spec, masters = drop_layers(tiny_spec(), teacher.masters, (0,))
        student = QatModel(spec, masters, dict.fromkeys(masters, FP32), ReferenceOptions())
        report = Trainer(student, corpus, config, loss=loss, watched=watched).run()
        assert report.held_out[0][1] > report.held_out[-1][1]
        ends[name] = report.held_out[-1][1]
    assert ends["logits"] < 0.9 * ends["labels"]


def test_layers_are_kept_evenly_and_whole() -> None:
    assert evenly(30, 4) == (0, 10, 19, 29)
    assert evenly(6, 6) == (0, 1, 2, 3, 4, 5)
    spec, masters = tiny_spec(), tiny_masters(tiny_spec())
    student, kept = drop_layers(spec, masters, (1,))
    assert len(student.layers) == 1
    for role, weight in kept.items():
        source = role if role.layer is None else type(role)(role.part, 1)
        assert torch.equal(weight, masters[source])
    for bad in ((), (1, 0), (0, 2)):
        with pytest.raises(ConfigError):
            drop_layers(spec, masters, bad)
    with pytest.raises(ConfigError):
        evenly(3, 4)


def test_narrow_mlps_keep_what_matters() -> None:
    """Channels whose down weights are zero can go without a trace."""
    spec, masters = tiny_spec(), tiny_masters(tiny_spec())
    dead = torch.arange(96) % 3 == 0
    for role, weight in masters.items():
        if role.part == "down":
            weight[:, dead] = 0
    student, kept = narrow_mlps(spec, masters, 64)
    tokens = np.array([chain(12, 0)])
    options = ReferenceOptions()
    whole = QatModel(spec, masters, dict.fromkeys(masters, FP32), options)
    narrow = QatModel(student, kept, dict.fromkeys(kept, FP32), options)
    torch.testing.assert_close(
        narrow.logits(tokens, narrow.prepared()), whole.logits(tokens, whole.prepared()),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    with pytest.raises(ConfigError):
        narrow_mlps(spec, masters, 97)
