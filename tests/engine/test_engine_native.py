"""The engine on the native executor: cancelled steps and other processes change no bit."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from octavo.backends.base import RuntimeConfig, StepBatch, StepResult
from octavo.engine.engine import Engine
from octavo.engine.request import Output, Request, SamplingParams
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
