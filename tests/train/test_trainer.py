"""The loop: it learns, it wins back what rounding lost, it resumes to the bit, it stops in time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.core.errors import ConfigError, NumericsError, ResourceError, UserError
from octavo.formats.number_format import NumberFormat
from octavo.spec.decoder import Role
from octavo.train.data import Corpus, make_corpus
from support.trainable import chain, tiny_masters, tiny_spec

torch = pytest.importorskip("torch")
qat = pytest.importorskip("octavo.train.qat")
trainer = pytest.importorskip("octavo.train.trainer")
checkpoints = pytest.importorskip("octavo.train.checkpoints")
options = pytest.importorskip("octavo.backends.reference.options")

FAST = {"learning_rate": 5e-3, "evaluate_every": 1000, "checkpoint_every": 1000, "batch": 4}


def corpus() -> Corpus:
    return make_corpus(chain(4000, seed=1), chain(800, seed=2), 32)


def model_of(name: str, masters: Any = None, learn_steps: bool = False, **plan: Any) -> Any:
    spec = tiny_spec()
    weights = masters or tiny_masters(spec)
    formats = dict.fromkeys(weights, NumberFormat.parse(name))
    return qat.QatModel(spec, weights, formats, options.ReferenceOptions(**plan), learn_steps)


def run(model: Any, directory: Path | None = None, on_step: Any = None, **config: Any) -> Any:
    settings = trainer.TrainConfig(**{**FAST, **config})
    return trainer.Trainer(model, corpus(), settings, directory, on_step).run()


def held_out(model: Any) -> float:
    return float(trainer.Trainer(model, corpus(), trainer.TrainConfig(0, batch=4)).held_out_loss())


@pytest.fixture(scope="module")
def learned() -> Any:
    """A model that has learned the text in fp32."""
    model = model_of("fp32")
    report = run(model, steps=150)
    first, last = report.held_out[0][1], report.held_out[-1][1]
    assert first > math.log(32) - 0.1
    assert last < first - 0.8  # the tests below have something to lose
    return model


def weights_of(model: Any) -> dict[str, Any]:
    return {name: weight.detach().clone() for name, weight in model.parameters().items()}


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_zero_steps_change_nothing(learned: Any) -> None:
    model = model_of("int3_g32", learned.masters)
    report = run(model, steps=0)
    assert_equal(weights_of(model), weights_of(learned))
    assert report.train == ()
    assert report.held_out == ((0, held_out(model)),)
    assert not report.stopped_early


@pytest.mark.parametrize("name", ["int3_g32", "int2_g32", "ternary_channel"])
def test_qat_wins_back_what_rounding_lost(name: str, learned: Any) -> None:
    full = held_out(learned)
    model = model_of(name, learned.masters, activations="auto", kv_format="bf16")
    report = run(model, steps=40, learning_rate=2e-3)
    before, after = report.held_out[0][1], report.held_out[-1][1]
    assert before > full + 0.05  # rounding to nearest loses something,
    assert (before - after) / (before - full) > 0.5  # and training wins back more than half
    assert held_out(model) == after


def test_ternary_weights_and_8_bit_inputs_learn_from_nothing_almost_as_well(learned: Any) -> None:
    """BitNet b1.58's layers (arXiv 2402.17764), no step of it in full precision."""
    model = model_of("ternary_tensor", activations="auto")
    start = held_out(model)
    run(model, steps=150)
    assert held_out(model) < 1.15 * held_out(learned)
    assert held_out(model) < start - 0.8


@pytest.mark.parametrize("name", ["int3_g32", "int2_g32"])
def test_qat_beats_rounding_after_as_much_training(name: str, learned: Any) -> None:
    """The control: equal steps in fp32, rounded at the end."""
    plain, quantized = model_of("fp32", learned.masters), model_of(name, learned.masters)
    run(plain, steps=30, learning_rate=2e-3)
    run(quantized, steps=30, learning_rate=2e-3)
    assert held_out(quantized) < held_out(model_of(name, plain.masters))


@pytest.mark.parametrize("name", ["int3_g32", "int2_g32_offset", "ternary_channel"])
def test_learned_steps_learn(name: str, learned: Any) -> None:
    model = model_of(name, learned.masters, learn_steps=True)
    report = run(model, steps=40, learning_rate=2e-3)
    before, after = report.held_out[0][1], report.held_out[-1][1]
    assert (before - after) / (before - held_out(learned)) > 0.5
    factors = torch.cat([factor.detach().flatten() for factor in model.factors.values()])
    assert 0 < (factors - 1).abs().max().item() < 0.2  # shares of the start, as the rate says
    prepared = model.prepared()
    for role, tensor in model.convert().items():
        assert torch.equal(prepared[role].detach(), torch.from_numpy(tensor.dequantize()))


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    ends = []
    for seed in (0, 0, 1):
        model = model_of("int4_g32")
        run(model, steps=3, seed=seed)
        ends.append(weights_of(model))
    assert_equal(ends[0], ends[1])
    assert not torch.equal(ends[0]["head"], ends[2]["head"])


def test_accumulated_passes_are_one_large_batch() -> None:
    ends = []
    for batch, accumulate in ((4, 1), (2, 2)):
        model = model_of("int4_g32")
        run(model, steps=1, batch=batch, accumulate=accumulate)
        ends.append(weights_of(model))
    moved = (ends[0]["head"] - model_of("int4_g32").masters[Role("head")]).abs().max()
    # fp32 sums in another order; Adam's first step divides by the gradient's size, so a gradient
    # near zero may turn: nearly all weights agree to a thousandth of a step
    close = (ends[0]["head"] - ends[1]["head"]).abs() < 1e-3 * moved.item()
    assert close.float().mean() > 0.99


class Killed(Exception):
    """Stands for the end of a process."""


def killer(at: int) -> Any:
    def on_step(step: int, loss: float) -> None:
        if step == at:
            raise Killed

    return on_step


@pytest.mark.parametrize(("patience", "learn_steps"), [(0, False), (3, False), (3, True)])
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, patience: int, learn_steps: bool
) -> None:
    config = {
        "steps": 9, "warmup": 2, "weight_decay": 0.1, "evaluate_every": 2, "checkpoint_every": 3,
        "accumulate": 2, "patience": patience,
    }  # fmt: skip
    whole, broken = (
        model_of("int4_g32", learn_steps=learn_steps),
        model_of("int4_g32", learn_steps=learn_steps),
    )
    expected = run(whole, **config)
    with pytest.raises(Killed):
        run(broken, tmp_path / "run", killer(5), **config)
    resumed = model_of("int4_g32", learn_steps=learn_steps)
    steps: list[int] = []
    report = run(resumed, tmp_path / "run", lambda step, loss: steps.append(step), **config)
    assert steps == [4, 5, 6, 7, 8, 9]  # from the checkpoint of step 3
    assert_equal(weights_of(resumed), weights_of(whole))
    assert report == expected
    again = model_of("int4_g32", learn_steps=learn_steps)
    assert run(again, tmp_path / "run", killer(10), **config) == expected  # nothing left to do
    assert_equal(weights_of(again), weights_of(whole))


_CHILD = """
import sys
from pathlib import Path
import torch
from octavo.train import TrainConfig, Trainer
sys.path.insert(0, sys.argv[1])
import test_trainer
torch.set_num_threads(1)
config = TrainConfig(**{**test_trainer.FAST, "steps": 8, "checkpoint_every": 1})
model = test_trainer.model_of("int4_g32")
tell = lambda step, loss: print(step, flush=True)
Trainer(model, test_trainer.corpus(), config, Path(sys.argv[2]), tell).run()
"""


def test_a_process_killed_outright_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", _CHILD, str(here), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        assert child.stdout.readline() == "2\n"
        child.kill()
    whole, resumed = model_of("int4_g32"), model_of("int4_g32")
    expected = run(whole, steps=8, checkpoint_every=1)
    steps: list[int] = []
    report = run(
        resumed, tmp_path, lambda step, loss: steps.append(step), steps=8, checkpoint_every=1
    )
    assert len(steps) <= 6  # what the child had finished is not done again
    assert report == expected
    assert_equal(weights_of(resumed), weights_of(whole))


def test_early_stop_keeps_the_best_weights(tmp_path: Path, learned: Any) -> None:
    model = model_of("int8_g32", learned.masters)
    # far too large a step: every held-out loss is worse than the first
    report = run(model, tmp_path, steps=50, learning_rate=0.5, evaluate_every=1, patience=2, clip=0)
    assert (report.stopped_early, report.steps, report.best_step) == (True, 2, 0)
    assert [step for step, _ in report.held_out] == [0, 1, 2]
    assert_equal(weights_of(model), weights_of(learned))
    again = model_of("int8_g32", learned.masters)
    config = {"steps": 50, "learning_rate": 0.5, "evaluate_every": 1, "patience": 2, "clip": 0}
    assert run(again, tmp_path, killer(3), **config) == report  # it stays stopped


def test_a_nan_loss_stops_with_step_and_layer_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    model = model_of("int4_g32")

    def poison(step: int, loss: float) -> None:
        if step == 3:
            with torch.no_grad():
                model.masters[Role("mlp_norm", 1)][5] = float("inf")

    with pytest.raises(NumericsError, match=r"step 3: the loss is nan.*output of layer 1;.*kept"):
        run(model, tmp_path, poison, steps=6, checkpoint_every=2)
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["step"] == 2
    report = run(model_of("int4_g32"), tmp_path, steps=6, checkpoint_every=2)
    assert report.steps == 6


def test_a_broken_weight_stops_with_step_and_name() -> None:
    model = model_of("int4_g32")

    def poison(step: int, loss: float) -> None:
        with torch.no_grad():
            model.masters[Role("up", 1)][5] = float("nan")

    with pytest.raises(NumericsError, match=r"step 1: layer 1 up: .*not finite.*learning_rate"):
        run(model, None, poison, steps=6)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run(model_of("int4_g32"), tmp_path, steps=2)
    before = (tmp_path / "state.json").read_bytes()
    with pytest.raises(
        UserError, match=r"another recipe: learning_rate is 0\.005 there and 0\.001"
    ):
        run(model_of("int4_g32"), tmp_path, steps=2, learning_rate=1e-3)
    with pytest.raises(UserError, match="another recipe: formats"):
        run(model_of("int8_g32"), tmp_path, steps=2)
    with pytest.raises(UserError, match="another recipe: weights"):
        run(model_of("int4_g32", tiny_masters(tiny_spec(), seed=1)), tmp_path, steps=2)
    assert (tmp_path / "state.json").read_bytes() == before


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run(model_of("int4_g32"), tmp_path, steps=2)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file.name}: missing, or not the file"):
        run(model_of("int4_g32"), tmp_path, steps=2)


def test_a_failed_write_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"steps": 4, "checkpoint_every": 2}
    whole = model_of("int4_g32")
    run(whole, **config)

    def full(*_: object) -> None:
        raise ResourceError("no space left")

    with monkeypatch.context() as patch:
        with pytest.raises(Killed):
            run(model_of("int4_g32"), tmp_path, killer(2), **config)
        patch.setattr(checkpoints, "replacing", full)  # the tensors are written, the state isn't
        with pytest.raises(ResourceError):
            run(model_of("int4_g32"), tmp_path, **config)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    resumed = model_of("int4_g32")
    run(resumed, tmp_path, **config)
    assert_equal(weights_of(resumed), weights_of(whole))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_the_rate_warms_up_and_follows_a_cosine() -> None:
    config = trainer.TrainConfig(steps=110, learning_rate=1.0, warmup=10, final=0.1)
    rates = [config.rate(step) for step in range(111)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1), ("batch", 0), ("accumulate", 0), ("evaluate_every", 0), ("patience", -1),
        ("learning_rate", -1.0), ("learning_rate", math.nan), ("final", 1.5), ("beta2", 1.0),
        ("clip", math.inf),
    ],
)  # fmt: skip
def test_a_config_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        trainer.TrainConfig(**{"steps": 1, name: value})
