"""Embeddings: sums of states that no chunking, batch or preemption changes by a bit."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.backends.base import WANT_NORMED, RuntimeConfig
from octavo.core.errors import RequestError
from octavo.engine.engine import Engine
from octavo.engine.pace import Pace
from octavo.engine.pool import pooled_request, unit
from octavo.engine.request import Request, SamplingParams
from support.fakes import fake_executor
from support.native_models import (
    Chunk,
    gemma_like,
    lay_out,
    llama_like,
    load_native,
    new_batch,
)

SPECS = {"llama": llama_like(), "gemma": gemma_like()}
CONFIG = RuntimeConfig(max_tokens=64, max_seqs=4, context=256, kv_tokens=1024, threads=2)
TEXTS = (tuple(range(3, 93)), (5,), tuple(range(60, 20, -1)))


def run(engine: Engine) -> dict[str, bytes]:
    found = {}
    while engine.has_work():
        for output in engine.step():
            if output.pooled:
                assert output.finish == "stop"
                assert output.request_id not in found
                found[output.request_id] = output.pooled
        engine.check()
    return found


def alone(name: str, text: tuple[int, ...], rows: int = 64) -> bytes:
    engine = Engine(load_native(SPECS[name], CONFIG), pace=Pace.fixed(rows))
    engine.submit(pooled_request("a", text))
    found = run(engine)
    engine.executor.close()
    return found["a"]


@pytest.mark.parametrize("name", sorted(SPECS))
def test_no_chunking_and_no_batch_changes_a_bit(name):
    solo = [alone(name, text) for text in TEXTS]
    assert [alone(name, text, rows=7) for text in TEXTS] == solo
    engine = Engine(load_native(SPECS[name], CONFIG), pace=Pace.fixed(29))
    params = SamplingParams(max_tokens=9, ignore_eos=True, temperature=1.0, seed=1)
    engine.submit(Request("answer", TEXTS[0][:40], params))
    for i, text in enumerate(TEXTS):
        engine.submit(pooled_request(str(i), text))
    assert run(engine) == {str(i): pooled for i, pooled in enumerate(solo)}


def test_it_is_the_mean_of_the_states_that_the_head_reads():
    executor = load_native(SPECS["llama"], CONFIG)
    batch, text = new_batch(executor), TEXTS[2]
    lay_out(batch, [Chunk(text, 0, 0)], WANT_NORMED)
    batch.hidden = np.zeros((len(text), executor.spec.hidden), np.float32)
    executor.step(batch)
    mean = batch.hidden.astype(np.float64).mean(0)
    pooled = np.frombuffer(alone("llama", text), np.float64)
    scale = np.abs(batch.hidden).max()
    np.testing.assert_allclose(pooled, mean, rtol=0, atol=len(text) * 2**-52 * scale)
    vector = unit(pooled.tobytes())
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=0, atol=2**-23)


def test_a_zero_mean_stays_zero():
    assert unit(np.zeros(3).tobytes()).tolist() == [0, 0, 0]


@pytest.mark.parametrize("blocks", [32, 5])
def test_preempted_and_beside_answers_on_the_fake(blocks):
    """5 blocks of 4 hold one of these at a time: the others are preempted and begin again."""
    prompts = [tuple((i + j) % 7 for j in range(15)) for i in range(4)]

    def engine_of(n: int) -> Engine:
        config = RuntimeConfig(max_tokens=6, max_seqs=3, context=24, block_size=4)
        return Engine(fake_executor(kv_blocks=n, config=config))

    expected = {}
    for i, prompt in enumerate(prompts):
        engine = engine_of(32)
        engine.submit(pooled_request(str(i), prompt))
        expected |= run(engine)
    engine = engine_of(blocks)
    for i, prompt in enumerate(prompts):
        engine.submit(pooled_request(str(i), prompt))
        params = SamplingParams(max_tokens=4, ignore_eos=True)
        engine.submit(Request(f"answer-{i}", prompt[:3], params))
    assert run(engine) == expected


def test_what_has_no_single_result_is_refused():
    with pytest.raises(RequestError, match="one result"):
        Request("a", (1,), SamplingParams(n=2), pooled=True)
