"""Phrases for a model: mined, begun from their parts, trained, and served."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.backends.base import RuntimeConfig  # noqa: E402
from octavo.backends.native.backend import load  # noqa: E402
from octavo.backends.reference.options import ReferenceOptions  # noqa: E402
from octavo.cli.main import main  # noqa: E402
from octavo.core.errors import ConfigError, UnsupportedError, UserError  # noqa: E402
from octavo.evals.scorer import ExecutorScorer  # noqa: E402
from octavo.formats.number_format import FP32  # noqa: E402
from octavo.io.checkpoint import open_model  # noqa: E402
from octavo.io.phrases import PhraseTable  # noqa: E402
from octavo.io.tokenizer import load_tokenizer  # noqa: E402
from octavo.spec.decoder import Role  # noqa: E402
from octavo.train import QatModel, TrainConfig, Trainer  # noqa: E402
from octavo.train.data import Corpus, make_corpus  # noqa: E402
from octavo.vocab.measure import cut, difference, text_losses  # noqa: E402
from octavo.vocab.mine import MinePlan, mine, savings, usage  # noqa: E402
from octavo.vocab.phrase_job import PhrasePlan, add_phrases  # noqa: E402
from octavo.vocab.phrase_model import EMBED, HEAD, PACE, PhraseModel, first_rows  # noqa: E402
from octavo.vocab.phrase_start import constant_direction, log_shares, start  # noqa: E402
from support.small_models import talking_model  # noqa: E402
from support.trainable import chain, tiny_masters, tiny_spec  # noqa: E402

NAMES = np.random.default_rng(4).integers(0, 1000, (60, 2))
TEXT = "".join(f"def h{a}(self):\n    return self.{b}hell\n\n" for a, b in NAMES)


def spell(token: int) -> bytes:
    """31 is a control token, even tokens begin words."""
    if token == 31:
        return b""
    return (b" " if token % 2 == 0 else b"") + b"ab"[token % 2 : token % 2 + 1]


def test_what_saves_most_is_mined_and_control_tokens_are_not() -> None:
    text = [2, 3, 5, 7, 31] * 20 + [9, 11, 31] * 8 + [13, 31] * 30
    table = mine([text], MinePlan(2, least=4), spell, 32)
    assert table.phrases[0] == (2, 3, 5, 7)
    assert not any(31 in phrase for phrase in table.phrases)
    assert table.phrases[1] == (9, 11)
    assert usage([text], table) == {(2, 3, 5, 7): 20, (9, 11): 8}


def test_words_of_a_phrase_are_limited() -> None:
    text = [2, 4, 6, 8] * 30
    for words, longest in ((1, 0), (2, 2), (3, 3)):
        plan = MinePlan(3, words=words, tokens=8)
        if not longest:
            with pytest.raises(UserError, match="no run"):
                mine([text], plan, spell, 32)
            continue
        found = mine([text], plan, spell, 32)
        assert max(map(len, found.phrases)) == longest
        rows = savings([text], found, spell)
        assert all(row.words <= words for row in rows)
        assert sum(row.saved for row in rows) == len(text) - len(found.joined(text))


def tiny_table() -> PhraseTable:
    return PhraseTable(32, [(1, 2), (3, 4, 5)])


def test_the_base_model_is_in_there_bit_for_bit() -> None:
    """With phrases left out of input and output, bits per byte are the base's own."""
    spec, masters = tiny_spec(tied=True), tiny_masters(tiny_spec(tied=True))
    base = QatModel(spec, masters, dict.fromkeys(masters, FP32), ReferenceOptions())
    model = PhraseModel(spec, masters, tiny_table())
    tokens = np.array([chain(12, 0)])
    with torch.no_grad():
        ours = model.logits(tokens, model.prepared())
        theirs = base.logits(tokens, base.prepared())
    assert ours.shape[1] == 34
    assert torch.equal(ours[:, :32], theirs)


def test_only_rows_of_phrases_are_trained_unless_all_is() -> None:
    spec, masters = tiny_spec(), tiny_masters(tiny_spec())
    assert set(PhraseModel(spec, masters, tiny_table()).parameters()) == {
        "embed phrases", "head phrases",
    }  # fmt: skip
    whole = PhraseModel(spec, masters, tiny_table(), whole=True).parameters()
    assert {"embed", "head", "layer 0 q", "embed phrases"} <= set(whole)


def test_rows_of_phrases_move_faster_than_what_is_old() -> None:
    """Adam's first step moves every number that has a gradient by the learning rate."""
    spec, masters = tiny_spec(), tiny_masters(tiny_spec())
    model = PhraseModel(spec, masters, tiny_table(), whole=True)
    row = tiny_table().joined([1, 2, 3, 4, 5, 6] * 100)
    corpus = Corpus(np.array([row[:33]]), np.array([row[40:73]]))
    Trainer(model, corpus, TrainConfig(1, 1e-3, batch=1)).run()
    for role in (EMBED, HEAD):
        moved = (model.phrase_rows(role) - model.rows[role]).abs().max()
        assert float(moved.detach()) == pytest.approx(1e-3 * PACE[role], rel=1e-3)
    moved = (model.masters[Role("q", 0)] - masters[Role("q", 0)]).abs().max()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


def test_first_rows_weigh_the_end_in_and_the_beginning_out() -> None:
    table = torch.eye(32)
    ends, beginnings = (first_rows(table, tiny_table(), steep)[1] for steep in (1.0, -1.0))
    assert ends[5] > ends[4] > ends[3] > 0
    assert torch.equal(beginnings.flip(0)[32 - 6 : 32 - 3], ends[3:6])
    assert ends.sum() == pytest.approx(1.0)


def test_rows_of_the_parts_begin_better_than_random_ones() -> None:
    """Of a model that has learned its text: what it loses on the text cut into phrases."""
    spec, masters = tiny_spec(), tiny_masters(tiny_spec())
    base = QatModel(spec, masters, dict.fromkeys(masters, FP32), ReferenceOptions())
    text = make_corpus(chain(4000, 1), chain(800, 2), 32)
    Trainer(base, text, TrainConfig(100, 5e-3, batch=4, evaluate_every=100)).run()
    table = mine([chain(4000, 1)], MinePlan(20), spell, 32)
    model = PhraseModel(spec, base.masters, table)
    tokens = np.array([table.joined(chain(800, 2))[:64]])

    def loss() -> float:
        with torch.no_grad():
            return float(model.loss(tokens, model.prepared()))

    begun = loss()
    for role, rows in model.rows.items():
        draws = torch.randn(rows.shape, generator=torch.Generator().manual_seed(3))
        size = model.masters[role].norm(dim=1).mean() / draws.norm(dim=1, keepdim=True)
        model.rows[role] = draws * size
    assert begun < loss()


def test_shares_of_all_that_begins_with_a_part_sum_to_one() -> None:
    """Every token counts half an occurrence more than it has."""
    table = tiny_table()
    found = np.exp(log_shares([1, 32, 32, 32, 5, 5, 7], table).astype(np.float64))
    assert found[[1, 32]] == pytest.approx([1.5 / 5, 3.5 / 5])
    assert found[[3, 33]] == pytest.approx([0.5, 0.5])
    alone = [token for token in range(32) if token not in (1, 3)]
    assert np.array_equal(found[alone], np.ones(30))


def test_the_direction_is_constant_as_far_as_states_allow() -> None:
    """States with a constant coordinate have one exactly, up to the damping; others the best in
    least squares, which the mean direction is not."""
    draws = np.random.default_rng(2).standard_normal((4000, 16)).astype(np.float32)
    lifted = draws + np.eye(16, dtype=np.float32)[3] * (2 - draws[:, 3:4])
    found = lifted @ constant_direction(lifted)
    np.testing.assert_allclose(found, 1, atol=1e-4 * np.square(lifted).mean())
    skew = draws * np.geomspace(0.2, 5, 16, dtype=np.float32) + 1
    mean = skew.mean(axis=0)
    fitted, plain = constant_direction(skew), mean / (mean @ mean)
    assert np.square(skew @ fitted - 1).mean() < 0.5 * np.square(skew @ plain - 1).mean()


@pytest.mark.parametrize("whole", [False, True])
def test_phrases_begin_as_likely_as_they_are(whole: bool) -> None:
    """Of a model that has learned its text: the shares alone take away most of what untrained
    phrases cost it."""
    spec, masters = tiny_spec(), tiny_masters(tiny_spec())
    base = QatModel(spec, masters, dict.fromkeys(masters, FP32), ReferenceOptions())
    text = make_corpus(chain(4000, 1), chain(800, 2), 32)
    Trainer(base, text, TrainConfig(100, 5e-3, batch=4, evaluate_every=100)).run()
    table = mine([chain(4000, 1)], MinePlan(60), spell, 32)
    joined = table.joined(chain(4000, 1))
    states = normed(base, chain(2000, 3))
    tokens = np.array([table.joined(chain(800, 2))[:64]])
    parts = [None, start(states, joined, table).shifts]
    models = [PhraseModel(spec, base.masters, table, whole, part) for part in parts]
    with torch.no_grad():
        bare, begun = (float(model.loss(tokens, model.prepared())) for model in models)
    assert begun < bare - 0.2


def normed(model: QatModel, text: list[int]) -> np.ndarray:
    """What the head reads: with the identity for a head, what it gives."""
    weights = {**model.prepared(), Role("head"): torch.eye(model.spec.hidden)}
    windows = np.array([text[i : i + 32] for i in range(0, 1984, 32)])
    with torch.no_grad():
        return model.logits(windows, weights).numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("phrases")
    base = talking_model(root / "base")
    train = TrainConfig(30, 1e-2, batch=4, evaluate_every=30)
    report = add_phrases(base, root / "out", PhrasePlan(MinePlan(12), train, 32), TEXT)
    assert report.after < report.before
    assert report.saved > 0.2
    assert report.tokens < report.base_tokens
    return base, root / "out"


def test_what_is_written_is_served_with_the_base_rows_untouched(made: tuple[Path, Path]) -> None:
    logits = []
    for path in made:
        with open_model(path) as model:
            executor = load(model.spec, model.source, RuntimeConfig(context=64, max_seqs=1))
            with closing(ExecutorScorer(executor, "it")) as scorer:
                logits.append(next(scorer.logits([104, 105, 106, 107], 0, 4)).copy())
    base, ours = logits
    assert ours.shape[1] > base.shape[1]
    assert np.array_equal(ours[:, : base.shape[1]], base)


def test_losses_compare_in_bits_per_byte(made: tuple[Path, Path]) -> None:
    pieces = [("code", cut(TEXT[:400], 80))]
    base, ours = (text_losses(path, pieces, 128)[0] for path in made)
    assert ours.tokens_per_byte < 0.8 * base.tokens_per_byte
    gap = difference(ours, base)
    assert gap.value == pytest.approx(ours.bits_per_byte - base.bits_per_byte)
    assert gap.low <= gap.value <= gap.high
    assert [p.bytes for p in base.pieces] == [len(piece.encode()) for piece in pieces[0][1]]
    assert "".join(pieces[0][1]) == TEXT[:400]


def test_phrases_are_not_added_twice_nor_untrained(made: tuple[Path, Path], tmp_path: Path) -> None:
    plan = PhrasePlan(MinePlan(4), TrainConfig(1), 16)
    with pytest.raises(UnsupportedError, match="phrases already"):
        add_phrases(made[1], tmp_path / "out", plan, TEXT)
    with pytest.raises(UserError, match="untrained"):
        add_phrases(made[0], tmp_path / "out", PhrasePlan(MinePlan(4), TrainConfig(0), 16), TEXT)
    assert not (tmp_path / "out").exists()
    for bad in ({"count": 0}, {"count": 1, "tokens": 1}, {"count": 1, "least": 1}):
        with pytest.raises(ConfigError):
            MinePlan(**bad)


def test_from_the_command_line(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    words = ["vocab", "phrases", str(made[0]), "-o", str(tmp_path / "out")]
    more = [
        "--text",
        str(tmp_path / "t.txt"),
        "--count",
        "8",
        "--price",
        "0.01",
        "--steps",
        "2",
        "--context",
        "32",
    ]
    assert main([*words, *more, "--whole", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["saved"] > 0.2
    assert load_tokenizer(tmp_path / "out").phrases is not None
