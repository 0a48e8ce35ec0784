"""Targets of a model without phrases for one with them, and the fit of which phrase it is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.backends.reference.options import ReferenceOptions  # noqa: E402
from octavo.formats.number_format import FP32  # noqa: E402
from octavo.io.phrases import PhraseTable  # noqa: E402
from octavo.train import QatModel, TrainConfig, Trainer  # noqa: E402
from octavo.train.data import Batch, Corpus, make_corpus  # noqa: E402
from octavo.train.losses import Labels, ModelTeacher  # noqa: E402
from octavo.vocab.phrase_model import PhraseModel  # noqa: E402
from octavo.vocab.phrase_teacher import PhraseKl, align, sum_first_parts  # noqa: E402
from octavo.vocab.phrase_tree import PhraseTree  # noqa: E402
from support.trainable import chain, tiny_masters, tiny_spec  # noqa: E402

# ids 8 to 12; (1, 2) goes on to 9 and 10, 1 to 8, 9, 10 and, by three parts at once, 12
TABLE = PhraseTable(8, [(1, 2), (1, 2, 3), (1, 2, 4), (5, 6), (1, 3, 5, 7)])


def batch(windows: list[list[int]]) -> Batch:
    tokens = np.array(windows, np.int64)
    return Batch(tokens, np.ones((len(windows), tokens.shape[1] - 1), np.float32))


class Fixed:
    """A teacher whose next token depends on the last one alone."""

    def __init__(self, seed: int, vocab: int = 8) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.table = torch.randn(vocab, vocab, generator=draws)

    def logits(self, tokens: np.ndarray) -> torch.Tensor:
        return self.table[torch.from_numpy(tokens)]

    def digest(self) -> str:
        return "fixed"

    def likely(self, last: int, part: int) -> float:
        return float(torch.softmax(self.table[last].double(), dim=-1)[part])


def test_the_tree_has_a_choice_wherever_phrases_go_on() -> None:
    tree = PhraseTree(TABLE)
    assert set(tree.choices) == {1, 8, 5}
    one = tree.choices[1]
    assert one.parts.tolist() == [2]  # 3 leads to no child: (1, 3) is no phrase
    assert dict(zip(one.tokens.tolist(), one.classes.tolist(), strict=True)) == {
        1: 1, 8: 0, 9: 0, 10: 0, 12: 1,
    }  # fmt: skip
    two = tree.choices[8]
    assert two.parts.tolist() == [3, 4]
    assert dict(zip(two.tokens.tolist(), two.classes.tolist(), strict=True)) == {8: 2, 9: 0, 10: 1}
    assert list(tree.way((1, 2, 4))) == [1, 8, 10]
    assert list(tree.chosen(10)) == [(1, 1), (8, 2)]
    assert list(tree.chosen(12)) == [(1, 1)]
    assert list(tree.chosen(7)) == []


def test_windows_are_aligned_at_last_parts() -> None:
    found = align(np.array([[0, 9, 11, 7], [1, 8, 4, 4]]), TABLE)
    assert found.tokens.tolist() == [[0, 1, 2, 3, 5, 6, 7], [1, 1, 2, 4, 4, 4, 4]]
    assert found.ends.tolist() == [[0, 3, 5, 6], [0, 2, 3, 4]]


def test_what_begins_alike_is_summed() -> None:
    probabilities = torch.rand(3, 13, generator=torch.Generator().manual_seed(1))
    first = torch.tensor([TABLE.parts(8 + i)[0] for i in range(5)])
    found = sum_first_parts(probabilities, first, 8)
    for part in range(8):
        members = [t for t in range(13) if TABLE.parts(t)[0] == part]
        expected = sum(probabilities[:, t] for t in members)
        # a sum of at most six numbers below 1, in two orders: 6 * 6 * 2^-24
        torch.testing.assert_close(found[:, part], expected, atol=3e-6, rtol=0)


def phrase_logs(teacher: Fixed, before: int) -> torch.Tensor:
    """What a model of tokens would have to say behind the token `before`, for the base model's
    probability of every text to be kept: by hand, for the first four phrases."""
    table, last = PhraseTable(8, TABLE.phrases[:4]), TABLE.parts(before)[-1]
    never = {1: (2,), 8: (3, 4), 5: (6,)}
    weights = []
    for token in range(12):
        parts = table.parts(token)
        p = 0.0 if parts[0] in never.get(before, ()) else teacher.likely(last, parts[0])
        for here, there in itertools.pairwise(parts):
            p *= teacher.likely(here, there)
        stop = 1 - sum(teacher.likely(parts[-1], part) for part in never.get(token, ()))
        weights.append(p * stop)
    total = torch.tensor(weights, dtype=torch.float64)
    return (total / total.sum()).log().float()


def test_a_perfect_student_loses_nothing_and_stays() -> None:
    """Whose tokens' probabilities are products of the base model's over their parts."""
    table, teacher = PhraseTable(8, TABLE.phrases[:4]), Fixed(0)
    text = batch([[1, 5, 8, 9, 7, 10, 11, 5]])
    logits = torch.stack([phrase_logs(teacher, t) for t in text.tokens[0, :-1].tolist()])
    logits = logits.clamp_min(-60)[None].requires_grad_()
    loss = PhraseKl(teacher, table).per_token(logits, text)
    # differences of float32 logarithms that cancel, over 20 probabilities each
    assert float(loss.abs().max()) < 20 * 2**-22
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert float(gradient.abs().max()) < 20 * 2**-22
    worse = logits.detach() + 0.1 * torch.randn(logits.shape, generator=torch.Generator())
    assert float(PhraseKl(teacher, table).per_token(worse, text).min()) > 1e-4


def test_choices_on_the_way_add_up_to_the_whole_divergence() -> None:
    """Mean over the teacher's own tokens = KL between distributions of tokens (chain rule)."""
    table, teacher = PhraseTable(8, TABLE.phrases[:4]), Fixed(2)
    logits = torch.randn(12, generator=torch.Generator().manual_seed(5))
    logs = phrase_logs(teacher, 7).double()
    whole = float((logs.exp() * (logs - torch.log_softmax(logits.double(), dim=-1))).sum())
    losses = [
        float(PhraseKl(teacher, table).per_token(logits.view(1, 1, -1), batch([[7, token]])))
        for token in range(12)
    ]
    # float32 sums of a dozen terms of order one, twice
    mean = float(logs.exp() @ torch.tensor(losses).double())
    assert mean == pytest.approx(whole, abs=24 * 2**-23)


def test_phrases_that_skip_a_step_are_of_the_rest() -> None:
    """Only what (1, 3, 5, 7) and 1 have together is compared, not how they share it."""
    loss, text = PhraseKl(Fixed(3), TABLE), batch([[7, 12]])
    logits = torch.zeros(1, 1, 13)
    shared = logits.clone()
    shared[..., 1], shared[..., 12] = np.log(0.5), np.log(1.5)
    assert torch.allclose(loss.per_token(logits, text), loss.per_token(shared, text), atol=1e-6)
    assert not torch.allclose(Labels().per_token(logits, text), Labels().per_token(shared, text))


def test_without_phrases_in_reach_a_student_equal_to_its_teacher_stays() -> None:
    spec, masters = tiny_spec(), tiny_masters(tiny_spec())
    base = QatModel(spec, masters, dict.fromkeys(masters, FP32), ReferenceOptions())
    text = batch([chain(16, 1)])
    tokens = text.tokens[:, :-1]
    logits = base.logits(tokens, base.prepared()).view(1, 15, -1)
    # a phrase that no text has and that is never likely
    wide = torch.cat([logits, torch.full((1, 15, 1), -80.0)], dim=-1)
    loss = PhraseKl(ModelTeacher(base), PhraseTable(32, [(30, 30, 31)])).per_token(wide, text)
    assert float(loss.abs().max()) < 64 * 2**-22
    (gradient,) = torch.autograd.grad(loss.sum(), wide)
    assert float(gradient.abs().max()) < 64 * 2**-22


def test_a_teacher_trains_phrases_further_than_labels_do() -> None:
    """Towards a model that has learned its text, in as many steps."""
    spec, masters = tiny_spec(), tiny_masters(tiny_spec())
    base = QatModel(spec, masters, dict.fromkeys(masters, FP32), ReferenceOptions())
    text = make_corpus(chain(4000, 1), chain(800, 2), 32)
    Trainer(base, text, TrainConfig(100, 5e-3, batch=4, evaluate_every=100)).run()
    table = PhraseTable(32, sorted({tuple(chain(400, 7)[i : i + 2]) for i in range(0, 60, 2)}))
    rows = [table.joined(chain(size, seed)) for size, seed in ((4000, 1), (800, 2))]
    corpus = make_corpus(rows[0], rows[1], 24)
    corpus = Corpus(corpus.train, corpus.held_out[:16])
    ends = []
    taught = PhraseKl(ModelTeacher(base), table)
    for loss in (Labels(), taught):
        model = PhraseModel(spec, base.masters, table, whole=True)
        config = TrainConfig(40, 1e-3, batch=4, evaluate_every=40)
        report = Trainer(model, corpus, config, loss=loss, watched=taught).run()
        ends.append(report.held_out[-1][1])
    assert ends[1] < ends[0]
