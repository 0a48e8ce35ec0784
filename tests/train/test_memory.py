"""Memory: what is measured grows as it must, and an error says what would fit."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.core.errors import ResourceError
from octavo.formats.number_format import NumberFormat
from octavo.train.data import make_corpus
from support.trainable import chain, tiny_masters, tiny_spec

torch = pytest.importorskip("torch")
memory = pytest.importorskip("octavo.train.memory")
trainer = pytest.importorskip("octavo.train.trainer")
qat = pytest.importorskip("octavo.train.qat")
options = pytest.importorskip("octavo.backends.reference.options")


def trainer_of(**config: Any) -> Any:
    corpus = make_corpus(chain(2000, seed=1), chain(400, seed=2), 32)
    masters = tiny_masters(tiny_spec())
    formats = dict.fromkeys(masters, NumberFormat.parse("int4_g32"))
    model = qat.QatModel(tiny_spec(), masters, formats, options.ReferenceOptions())
    settings = trainer.TrainConfig(**{"steps": 2, "batch": 4, **config})
    return trainer.Trainer(model, corpus, settings)


def test_what_backward_keeps_is_counted_once() -> None:
    weight = torch.ones(8, 8, requires_grad=True)

    def forward(windows: int) -> Any:
        x = torch.ones(windows, 8) @ weight
        return (x * x).sum()

    need = memory.measure(forward, [weight], 1000)
    assert need.window == 4 * 8 * 2  # the input of the product, and x, which is kept twice
    assert need.fixed == 1000


def test_recompute_needs_less_for_a_window() -> None:
    plain, recomputed = (trainer_of()._need(recompute) for recompute in (False, True))
    assert recomputed.window < 0.6 * plain.window
    assert plain.fixed >= 5 * sum(p.nbytes for p in trainer_of()._parameters.values())


def test_a_pass_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    need, smaller = trainer_of()._need(False), trainer_of()._need(True)
    free = need.of(3)
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    with pytest.raises(ResourceError, match=r"a pass of 4 windows needs .* free; batch 3 fits"):
        trainer_of().run()
    monkeypatch.setattr(memory, "free_memory", lambda device: smaller.of(1) + 1)
    with pytest.raises(ResourceError, match="with recompute, batch 1 fits"):
        trainer_of().run()
    with pytest.raises(ResourceError, match="batch 1 fits"):
        trainer_of(recompute=True).run()
    monkeypatch.setattr(memory, "free_memory", lambda device: smaller.fixed)
    with pytest.raises(ResourceError, match="not even one window fits"):
        trainer_of(recompute=True).run()
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(ResourceError, match="no batch fits"):
        trainer_of().run()


def test_what_the_advice_names_does_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    free = trainer_of()._need(False).of(3)
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    assert trainer_of(batch=3).run().steps == 2


@pytest.mark.parametrize("kind", ["python", "torch"])
def test_an_allocator_that_gives_up_is_explained(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = trainer_of()

    def fail(*args: object) -> Any:
        if kind == "python":
            raise MemoryError
        return torch.empty(2**60)  # torch's own refusal, in its own words

    monkeypatch.setattr(running, "_pass", fail)
    with pytest.raises(ResourceError, match="out of memory in a pass of 4 windows; batch 3 fits"):
        running.run()


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="else"), memory.explained(1, str):
        raise RuntimeError("something else")
