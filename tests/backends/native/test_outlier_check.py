"""LLM.int8()'s receipt: the time of a layer against bf16, with and without outliers, and their
share."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from octavo.backends.base import RuntimeConfig
from octavo.backends.native import outlier_check
from octavo.backends.native.executor import Results
from octavo.backends.native.outlier_check import LOUD, QUIET, ROWS, STEPS, OutlierCost, measure
from octavo.backends.served import outlier_notes
from octavo.spec.decoder import DecoderSpec
from support.native_models import gemma_like, llama_like, load_native, text_logits

CONFIG = RuntimeConfig(
    context=64, threads=1, max_tokens=32, max_seqs=2, format="int8_channel", activations="llm_int8"
)


def notes(spec: DecoderSpec, config: RuntimeConfig = CONFIG, run: int = 0) -> list[str]:
    executor = load_native(spec, config)
    if run:
        text_logits(executor, list(range(run)), 8)
    found = [note for note in executor.receipt().notes if "llm_int8: " in note]
    executor.close()
    return found


@pytest.mark.parametrize("spec", [llama_like(), gemma_like()], ids=["llama", "gemma"])
def test_the_receipt_has_the_time_and_then_the_share(spec: DecoderSpec) -> None:
    (time,) = notes(spec)
    ratios = re.findall(r"(\d+\.\d+)(?= times|\)| for)", time)
    assert len(ratios) == 4
    assert all(float(ratio) > 0 for ratio in ratios)
    again, share = notes(spec, run=12)
    assert "layer 0 takes" in again
    assert re.search(r"llm_int8: \d+\.\d+% of inputs exceeded 6 and were not rounded", share)


def test_a_share_above_one_percent_is_a_warning() -> None:
    assert outlier_notes(0, 0) == ()
    (few,) = outlier_notes(1000, 10)
    assert few == "llm_int8: 1.000% of inputs exceeded 6 and were not rounded"
    (many,) = outlier_notes(1000, 11)
    assert many.startswith("WARNING: llm_int8: 1.100% of inputs exceeded 6")


def test_the_first_layer_that_runs_so_is_the_one_timed() -> None:
    others = tuple(
        (f"layers.0.{part}", "a8") for part in ("q", "k", "v", "o", "gate", "up", "down")
    )
    (time,) = notes(llama_like(), replace(CONFIG, keep_activations=others))
    assert "layer 1 takes" in time


def test_nothing_is_said_of_other_activations_or_without_room() -> None:
    assert notes(llama_like(), replace(CONFIG, activations="a8")) == []
    assert notes(llama_like(), replace(CONFIG, context=ROWS - 1)) == []


def test_what_is_timed_has_outliers_in_every_row_or_in_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: dict[float, list[int]] = {}

    def watched(build: outlier_check.Build, layer: int) -> OutlierCost:
        for factor in (QUIET, LOUD):
            native, batch = build(False, factor)
            native.bind(batch, Results(ROWS))
            batch.n_seqs, batch.row_start[1] = 1, 1
            taken[factor] = []
            for token in range(ROWS):
                batch.token[0] = token
                native.step(1, None, None)
                taken[factor].append(sum(found for _, found in native.rows_seen()))
        plain, _ = build(True, QUIET)
        assert not [name for layer, _, name, *_ in plain.kernels() if layer >= 0 and "a8" in name]
        return measure(build, layer)

    monkeypatch.setattr(outlier_check, "measure", watched)
    assert len(notes(llama_like())) == 1
    assert taken[QUIET] == [0] * ROWS
    assert (np.diff(taken[LOUD], prepend=0) > 0).all()


class Timed:
    """An executor whose steps take the given times, and whose batch it is itself."""

    def __init__(self, clock: list[float], seconds: list[float]) -> None:
        self.clock, self.seconds = clock, seconds
        self.n_seqs, self.row_start, self.position = 0, [0, 0], np.zeros(ROWS)
        self.rows: list[int] = []

    def bind(self, batch: object, results: object) -> None:
        assert batch is self

    def step(self, *given: object) -> None:
        self.rows.append(self.row_start[1])
        self.clock[0] += self.seconds[len(self.rows) % len(self.seconds)]


def test_ratios_are_of_the_shortest_steps() -> None:
    now = [0.0]
    made = {
        (True, QUIET): Timed(now, [2.0, 9.0]),
        (False, QUIET): Timed(now, [7.0, 1.0, 1.0]),
        (False, LOUD): Timed(now, [9.0, 3.0]),
    }
    found = measure(lambda plain, factor: (made[plain, factor],) * 2, 5, lambda: now[0])
    assert found == OutlierCost(5, (0.5, 0.5), (1.5, 1.5))
    for executor in made.values():
        assert executor.rows == [1] * (STEPS + 1) + [ROWS] * (STEPS + 1)
    assert "layer 5 takes 0.50 times as long as with bf16" in found.note
    assert "1.50 times (1.50) where some do" in found.note
