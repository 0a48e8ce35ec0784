"""The engine on the native executor: cancelled steps and other processes change no bit."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from octavo.backends.base import RuntimeConfig, StepBatch, StepResult
from octavo.engine.engine import Engine
from octavo.engine.request import Output, Request, SamplingParams
from octavo.spec.decoder import DecoderSpec
from support.native_models import gemma_like, llama_like, load_native

CONFIG = RuntimeConfig(max_tokens=64, max_seqs=4, context=256, kv_tokens=1024, threads=2)
SPECS = {"llama": llama_like(), "gemma": gemma_like()}
PARAMS = SamplingParams(
    max_tokens=12, temperature=0.8, seed=7, n=2, logprobs=2, frequency_penalty=0.5, ignore_eos=True
)


def requests() -> list[Request]:
    prompts = (tuple(range(3, 93)), (5, 6, 7), tuple(range(60, 20, -1)))
    return [Request(str(i), prompt, PARAMS) for i, prompt in enumerate(prompts)]


def engine_of(name: str, config: RuntimeConfig = CONFIG) -> Engine:
    engine = Engine(load_native(SPECS[name], config))
    for request in requests():
        engine.submit(request)
    return engine


def answers(outputs: list[Output]) -> dict[tuple[str, int], list[object]]:
    """Tokens and log-probabilities: a bit that differs anywhere in the cache changes these."""
    found: dict[tuple[str, int], list[object]] = {}
    for output in outputs:
        found.setdefault((output.request_id, output.choice), []).extend(
            zip(output.tokens, output.logprobs, strict=True)
        )
    return found


def run_all(engine: Engine) -> list[Output]:
    outputs: list[Output] = []
    while engine.has_work():
        outputs += engine.step()
    engine.executor.close()
    return outputs


@pytest.mark.parametrize("name", sorted(SPECS))
def test_steps_cancelled_before_their_first_barrier(name: str) -> None:
    engine, outputs = engine_of(name), list[Output]()
    for _ in range(8):
        computed = {s: s.computed for s in engine.scheduler._running}
        engine.executor.cancel()
        assert engine.step() == []
        engine.check()
        assert all(sequence.computed == count for sequence, count in computed.items())
        outputs += engine.step()
    assert answers(outputs + run_all(engine)) == answers(run_all(engine_of(name)))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_steps_cancelled_anywhere_in_between(name: str) -> None:
    engine, disturber = engine_of(name), Disturber()
    disturber.attend(engine)
    outputs = run_all(engine)
    disturber.leave()
    assert answers(outputs) == answers(run_all(engine_of(name)))


class Disturber:
    """A thread that cancels steps while they run, each a little later in its course."""

    def __init__(self, steps: int = 100) -> None:
        self._begun = threading.Semaphore(0)
        self._left = steps

    def attend(self, engine: Engine) -> None:
        executor = engine.executor
        step = executor.step

        def announced(batch: StepBatch) -> StepResult:
            self._begun.release()  # the other thread gets to run when native code does
            return step(batch)

        executor.step = announced  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._run, args=(engine,))
        self._thread.start()

    def _run(self, engine: Engine) -> None:
        for step in range(self._left):
            self._begun.acquire()
            for _ in range(step * 60):
                pass
            engine.cancel()

    def leave(self) -> None:
        self._begun.release(self._left)
        self._thread.join()


IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from engine import test_engine_native as here
engine = here.engine_of("gemma", replace(here.CONFIG, threads=1, max_tokens=24))
print(here.answers(here.run_all(engine)))
"""


def test_a_seed_repeats_in_another_process_with_other_threads_and_chunks() -> None:
    code = IN_ANOTHER_PROCESS.format(tests=str(Path(__file__).parents[1]))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(answers(run_all(engine_of("gemma"))))


KIVI = replace(
    CONFIG, kv_format="kivi2", format="int8_g32", context=384, kv_tokens=1536, max_tokens=96
)


def kivi_requests() -> list[Request]:
    """Beginnings shared by 192 and 256 tokens, all longer than what is read in bf16."""
    text = tuple(int(t) for t in np.random.default_rng(5).integers(1, 90, 340))
    other = tuple(int(t) for t in np.random.default_rng(6).integers(1, 90, 100))
    prompts = (text[:330], text[:192] + other, text[:256] + other[:40], text[:330])
    return [Request(str(i), prompt, PARAMS) for i, prompt in enumerate(prompts)]


def one_by_one(config: RuntimeConfig, prefix_cache: bool) -> tuple[list[Output], int]:
    """The answers, and how many tokens were found in the cache."""
    executor = load_native(wide_llama(), config)
    engine, outputs = Engine(executor, prefix_cache=prefix_cache), list[Output]()
    for request in kivi_requests():
        engine.submit(request)
        while engine.has_work():
            outputs += engine.step()
            engine.check()
    executor.close()
    return outputs, 0 if engine.prefixes is None else engine.prefixes.cache.hit


def wide_llama() -> DecoderSpec:
    spec = llama_like()
    attention = replace(spec.layers[0].attention, head_dim=32)
    return replace(spec, layers=tuple(replace(b, attention=attention) for b in spec.layers))


def test_a_beginning_found_in_a_kivi_cache_gives_the_bits_of_one_computed() -> None:
    """Its old keys as codes and its last 159 in bf16, wherever the text goes on otherwise."""
    want, _ = one_by_one(replace(KIVI, max_tokens=33), prefix_cache=False)
    found, hit = one_by_one(KIVI, prefix_cache=True)
    assert hit >= 192
    assert answers(found) == answers(want)


def test_kivi_sequences_that_run_together_and_are_put_off_give_the_bits_of_single_ones() -> None:
    """A cache for two of the four: others wait, or start again."""
    want, _ = one_by_one(KIVI, prefix_cache=False)
    executor = load_native(wide_llama(), replace(KIVI, kv_tokens=800))
    engine = Engine(executor)
    for request in kivi_requests():
        engine.submit(request)
    assert answers(run_all(engine)) == answers(want)
