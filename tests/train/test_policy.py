"""On-policy windows: written by the student as it stands, behind the text's own beginning."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.backends.base import RuntimeConfig  # noqa: E402
from octavo.backends.native.backend import load  # noqa: E402
from octavo.backends.reference.options import ReferenceOptions  # noqa: E402
from octavo.core.errors import ConfigError  # noqa: E402
from octavo.formats.number_format import FP32  # noqa: E402
from octavo.train import TrainConfig, Trainer  # noqa: E402
from octavo.train.data import Corpus, split_corpus  # noqa: E402
from octavo.train.distill import DistillLoss, Divergence, RewardLoss  # noqa: E402
from octavo.train.generate import Writing, student_writer, write  # noqa: E402
from octavo.train.losses import ModelTeacher  # noqa: E402
from octavo.train.policy import Policy, PolicyCorpus  # noqa: E402
from octavo.train.qat import QatModel  # noqa: E402
from octavo.train.source import TrainedSource  # noqa: E402
from support.trainable import chain, tiny_masters, tiny_spec  # noqa: E402

TEXT = split_corpus(chain(1200), 16)
RUNTIME = RuntimeConfig(context=32, max_seqs=8, kv_tokens=512, threads=1, kv_format="fp32")


def tiny_model(seed: int = 0) -> QatModel:
    masters = tiny_masters(tiny_spec(), seed)
    return QatModel(tiny_spec(), masters, dict.fromkeys(masters, FP32), ReferenceOptions())


def policy_corpus(model: QatModel, policy: Policy) -> PolicyCorpus:
    return PolicyCorpus(
        TEXT.train, TEXT.held_out, policy=policy, writer=student_writer(model, RUNTIME)
    )


def test_text_that_is_written_does_not_depend_on_its_neighbours() -> None:
    model = tiny_model()
    prompts = [chain(n, n) for n in (3, 7, 5)]
    with closing(load(model.spec, TrainedSource(model), RUNTIME)) as executor:
        together = write(executor, prompts, Writing(9, seed=4))
        alone = [write(executor, [p], Writing(9, seed=4 + i))[0] for i, p in enumerate(prompts)]
    assert together == alone
    assert [text[: len(p)] for text, p in zip(together, prompts, strict=True)] == prompts
    assert [len(text) - len(p) for text, p in zip(together, prompts, strict=True)] == [9] * 3


def test_greedy_writing_follows_the_reference() -> None:
    model = tiny_model()
    prompt = chain(6, 1)
    with closing(load(model.spec, TrainedSource(model), RUNTIME)) as executor:
        (text,) = write(executor, [prompt], Writing(8, temperature=0.0))
    with torch.no_grad():
        logits = model.logits(np.array([text[:-1]]), model.prepared())
    assert logits.argmax(-1).tolist()[len(prompt) - 1 :] == text[len(prompt) :]


def test_no_share_is_the_text_and_a_whole_share_the_student() -> None:
    model, rows = tiny_model(), np.arange(6)
    plain = Corpus(TEXT.train, TEXT.held_out).training(rows)
    none = policy_corpus(model, Policy(share=0.0)).training(rows)
    assert np.array_equal(none.tokens, plain.tokens)
    assert np.array_equal(none.weights, plain.weights)
    own = policy_corpus(model, Policy(share=1.0, prompt=5)).training(rows)
    assert np.array_equal(own.tokens[:, :5], plain.tokens[:, :5])
    assert not np.array_equal(own.tokens, plain.tokens)
    assert own.tokens.shape == plain.tokens.shape
    # predictions of tokens 1 to 4 are of the prompt; that of token 5 is the student's first
    assert np.array_equal(own.weights[0], [0.0] * 4 + [1.0] * 12)


def test_the_share_holds_over_many_windows_and_held_out_ones_stay_text() -> None:
    corpus = policy_corpus(tiny_model(), Policy(share=0.3))
    count = len(corpus.train)
    chosen = np.concatenate([corpus._own(np.arange(i, i + 1)) for i in range(count)])
    # five standard deviations of a binomial share
    assert abs(chosen.mean() - 0.3) < 5 * np.sqrt(0.21 / count)
    assert np.array_equal(corpus.holding_out().tokens, TEXT.held_out)


@pytest.mark.parametrize("name", ["jsd", "reward"])
def test_on_policy_training_comes_nearer_to_the_teacher(name: str) -> None:
    teacher = tiny_model(5)
    Trainer(teacher, TEXT, TrainConfig(30, 3e-3, batch=16, evaluate_every=30)).run()
    taught = ModelTeacher(teacher)
    watched = DistillLoss(taught)
    loss = RewardLoss(taught) if name == "reward" else DistillLoss(taught, Divergence("jsd"))
    student = tiny_model(6)
    corpus = policy_corpus(student, Policy(share=1.0, prompt=4))
    config = TrainConfig(12, 3e-3, batch=16, evaluate_every=12)
    report = Trainer(student, corpus, config, loss=loss, watched=watched).run()
    assert report.held_out[-1][1] < 0.9 * report.held_out[0][1]


def test_a_run_taken_up_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    def trained(directory: Path | None, stop: int | None) -> QatModel:
        student = tiny_model(6)
        loss = DistillLoss(ModelTeacher(tiny_model(5)), Divergence("reverse"))
        corpus = policy_corpus(student, Policy(share=0.5, prompt=4))
        config = TrainConfig(6, 1e-3, batch=4, evaluate_every=6, checkpoint_every=3)

        def on_step(step: int, _: float) -> None:
            if step == stop:
                raise KeyboardInterrupt

        try:
            Trainer(student, corpus, config, directory, on_step, loss).run()
        except KeyboardInterrupt:
            assert stop is not None
        return student

    whole = trained(None, None)
    trained(tmp_path / "run", 4)
    again = trained(tmp_path / "run", None)
    for role, weight in whole.masters.items():
        assert torch.equal(weight, again.masters[role]), role


def test_bad_policies_are_refused() -> None:
    for bad in ({"share": 1.1}, {"prompt": 0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError):
            replace(Policy(), **bad)
    corpus = policy_corpus(tiny_model(), Policy(share=1.0, prompt=17))
    with pytest.raises(ConfigError, match="leaves nothing"):
        corpus.training(np.arange(2))
