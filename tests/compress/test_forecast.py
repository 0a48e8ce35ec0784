"""Forecasts: memory from shapes and statistics, time from the first two blocks."""

from __future__ import annotations

import os
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from octavo.compress import forecast
from octavo.compress.forecast import Watch, check_memory, predicted_peak
from octavo.compress.job import compress
from octavo.compress.plan import Plan, plan
from octavo.compress.recipe import Recipe, Step, from_flags
from octavo.compress.state import WorkDirectory
from octavo.core.errors import ResourceError
from octavo.core.hardware import probe, process_memory
from octavo.io.checkpoint import open_model
from octavo.spec.graph import role_shape
from support.model_files import HEAD_DIM, HEADS, HIDDEN, INTER, KV_HEADS, VOCAB
from support.small_models import material, small_model

# Matrices, norms and the biases of qwen2's q, k and v.
_Q, _KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
ONE_BLOCK = HIDDEN * (2 * _Q + 2 * _KV + 3 * INTER + 2) + _Q + 2 * _KV


def planned(tmp_path: Path, recipe: Recipe) -> Plan:
    with open_model(small_model("llama", tmp_path)) as model:
        return plan(recipe, model.spec)


def test_what_a_hessian_and_a_longer_sequence_add(tmp_path: Path) -> None:
    rtn = planned(tmp_path / "a", from_flags("rtn", "int4_g32"))
    gptq = planned(tmp_path / "b", from_flags("gptq", "int4_g32"))
    assert predicted_peak(rtn, 0) == predicted_peak(rtn, 4096)  # no tokens run
    short, long = predicted_peak(gptq, 2048), predicted_peak(gptq, 4096)
    heads = gptq.spec.layers[0].attention.heads
    assert long - short >= 2 * 4 * heads * (4096**2 - 2048**2)  # scores, twice
    assert predicted_peak(gptq, 2048) > predicted_peak(rtn, 2048)


def test_what_learned_rounding_adds(tmp_path: Path) -> None:
    made = planned(tmp_path, from_flags("autoround", "int4_g32"))
    rtn = planned(tmp_path / "b", from_flags("rtn", "int4_g32"))
    matrices = sum(prod(role_shape(made.spec, role)) for role in made.together if role.layer == 0)
    assert predicted_peak(made, 64) - predicted_peak(rtn, 64) > 4 * 12 * matrices
    # the outputs of the block for all sequences are kept, and nothing else of them
    more = predicted_peak(made, 64, 128) - predicted_peak(made, 64, 4)
    assert more == 4 * (128 - 4) * 64 * made.spec.hidden
    gptq = planned(tmp_path / "c", from_flags("gptq", "int4_g32"))
    assert predicted_peak(gptq, 64, 128) == predicted_peak(gptq, 64)


def test_time_is_revised_after_two_blocks(tmp_path: Path) -> None:
    made = planned(tmp_path, from_flags("gptq", "int4_g32"))
    deep = replace(made.spec, layers=made.spec.layers * 5)
    ticks = iter([0.0, 2.0, 5.0, 9.0, 12.0, 16.0])
    said: list[str] = []
    watch = Watch(
        replace(made, spec=deep), 16, lambda stage, done, total: said.append(stage),
        clock=lambda: next(ticks),
    )  # fmt: skip
    for done, stage in enumerate(["first", "0", "1", "2"], 1):
        watch(stage, done, 12)
    # 9 s for first, 0 and 1; 8 blocks of (3 + 4) / 2 s and a last stage like the first are left
    assert watch.forecast().predicted_seconds == 9 + 8 * 3.5 + 2
    assert watch.forecast().seconds == 12
    assert said == ["first", "0", "1, 30 s left", "2, 27 s left"]


def test_stages_of_an_earlier_run_tell_nothing_of_time(tmp_path: Path) -> None:
    made = planned(tmp_path, from_flags("gptq", "int4_g32"))
    deep = replace(made.spec, layers=made.spec.layers * 5)
    ticks = iter([0.0, 0.0, 0.0, 0.0, 3.0, 7.0])
    watch = Watch(
        replace(made, spec=deep), 16, clock=lambda: next(ticks),
        found=frozenset({"first", "0", "1"}),
    )  # fmt: skip
    for done, stage in enumerate(["first", "0", "1", "2", "3"], 1):
        watch(stage, done, 12)
    # 7 s for blocks 2 and 3, 6 blocks of 3.5 s are left; of the last stage nothing is known
    assert watch.forecast().predicted_seconds == 7 + 6 * 3.5


def test_a_resumed_run_knows_the_head_by_what_the_embedding_took(tmp_path: Path) -> None:
    made = planned(tmp_path, from_flags("gptq", "int4_g32"))
    assert not made.spec.tied_head
    work = WorkDirectory(tmp_path / "work", {"recipe": "x"})
    assert work.seconds() == {}
    first = Watch(made, 16, clock=iter([0.0, 11.0]).__next__, note=work.note_seconds)
    first("first", 1, 4)
    assert work.seconds() == {"first": 11}
    ticks = iter([0.0, 0.0, 3.0, 7.0])
    again = Watch(
        made, 16, clock=lambda: next(ticks), found=frozenset({"first"}), earlier=work.seconds(),
        note=work.note_seconds,
    )  # fmt: skip
    for done, stage in enumerate(["first", "0", "1"], 1):
        again(stage, done, 6)
    # 7 s so far, two blocks of 3.5 s and a head like the embedding are left
    assert again.forecast().predicted_seconds == 7 + 2 * 3.5 + 11
    assert work.seconds() == {"first": 11, "0": 3, "1": 4}


@pytest.mark.parametrize(
    ("embedded", "last"),
    [("rtn", 0.0), ("gptq", 3.5 * VOCAB * HIDDEN / ONE_BLOCK)],
    ids=["a norm alone", "the embedding"],
)
def test_a_tied_head_takes_the_last_stage_only_when_it_waits_for_data(
    tmp_path: Path, embedded: str, last: float
) -> None:
    recipe = Recipe((Step("gptq", "int4_g32"), Step(embedded, "int4_g32", ("embed",))))
    with open_model(small_model("qwen2", tmp_path)) as model:
        made = plan(recipe, model.spec)
    assert made.spec.tied_head
    ticks = iter([0.0, 2.0, 5.0, 9.0])
    watch = Watch(made, 16, clock=lambda: next(ticks))
    for done, stage in enumerate(["first", "0", "1"], 1):
        watch(stage, done, 4)
    assert watch.forecast().predicted_seconds == pytest.approx(9 + last)


def test_what_was_held_before_is_no_part_of_the_peak(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    held = bytearray(os.urandom(1)) * (256 << 20)
    before = process_memory().peak
    del held
    result = compress(path, from_flags("gptq", "int4_g32"), tmp_path / "out", material(2))
    assert result.forecast.peak is not None
    assert result.forecast.peak < before - (128 << 20)
    # It is said beside it; the kernel sums pages per processor and is off by some of them.
    assert result.forecast.earlier_peak > before - (1 << 20)


def test_a_peak_that_cannot_be_told_from_an_earlier_one_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(tmp_path, from_flags("rtn", "int4_g32"))
    assert Watch(made, 0).forecast().peak is not None
    held = bytearray(os.urandom(1)) * (64 << 20)  # far above what the watch itself may add
    del held
    monkeypatch.setattr(forecast, "forget_peak", lambda: False)
    assert Watch(made, 0).forecast().peak is None


def test_too_little_memory_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = probe()
    tight = replace(machine, memory=replace(machine.memory, available=1 << 20))
    monkeypatch.setattr(forecast, "probe", lambda: tight)
    with pytest.raises(ResourceError, match=r"compressing needs 0\.\d+ GB.*--length"):
        compress(
            small_model("llama", tmp_path / "m"), Recipe((Step("rtn", "int4_g32"),)),
            tmp_path / "out", material(0),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
    check_memory(0)


def test_a_run_says_what_came(tmp_path: Path) -> None:
    result = compress(
        small_model("llama", tmp_path / "m"), from_flags("rtn", "int4_g32"), tmp_path / "out",
        material(0),
    )  # fmt: skip
    assert result.forecast.peak is not None
    assert result.forecast.seconds is not None
    assert result.forecast.seconds > 0
    assert result.forecast.predicted_seconds is not None
    assert "seconds" not in (tmp_path / "out" / "octavo.json").read_text()
