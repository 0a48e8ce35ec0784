"""A real model answers, in its own format and in four bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octavo.backends.base import WANT_TOKEN, RuntimeConfig
from octavo.backends.native.backend import load
from octavo.core.hardware import process_memory
from octavo.io.checkpoint import open_model
from octavo.io.tokenizer import load_tokenizer
from support.models import demo_model
from support.native_models import Chunk, lay_out, new_batch

CONFIG = RuntimeConfig(max_tokens=64, max_seqs=1, context=128)


def continuation(format: str, prompt: str, count: int) -> str:
    path = demo_model("smollm2-135m")
    tokenizer = load_tokenizer(path)
    with open_model(path) as model:
        executor = load(model.spec, model.source, replace(CONFIG, format=format))
        batch, tokens = new_batch(executor), tokenizer.encode(prompt)
        start, fresh = 0, list(tokens)
        for _ in range(count):
            n = lay_out(batch, [Chunk(fresh, start, 0)], 0)
            batch.want[n - 1] = WANT_TOKEN
            start, fresh = start + n, [int(executor.step(batch).token[0])]
            tokens = [*tokens, *fresh]
        executor.close()
    return tokenizer.decode(tokens)


@pytest.mark.parametrize("format", ["source", "int8_g32"])
def test_it_knows_the_capital_of_france(format: str) -> None:
    assert "Paris" in continuation(format, "The capital of France is", 3)


def test_loading_takes_little_more_than_the_packed_bytes() -> None:
    with open_model(demo_model("smollm2-135m")) as model:
        before = process_memory().anonymous
        executor = load(model.spec, model.source, CONFIG)
        packed = executor.receipt().packed_bytes
        assert process_memory().anonymous - before < 1.3 * packed + 100e6
        assert np.isclose(packed, 96.4e6, rtol=0.01)
        executor.close()
