"""Text written by a model for training: many sequences side by side, by our own engine.

What is written depends on (weights, prompts, seed) alone: neither batch nor threads change a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from octavo.backends.base import Executor, RuntimeConfig
from octavo.core.errors import ConfigError
from octavo.engine.engine import Engine
from octavo.engine.request import Request, SamplingParams
from octavo.train.data import I64
from octavo.train.qat import QatModel
from octavo.train.source import TrainedSource


@dataclass(frozen=True, slots=True)
class Writing:
    """How to write: tokens beyond the prompt, and the sampling's temperature, top_p and seed."""

    length: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


def write(
    executor: Executor, prompts: Sequence[Sequence[int]], writing: Writing
) -> list[list[int]]:
    """Each prompt with `writing.length` tokens behind it; prompt i draws from seed + i.

    Raises RequestError for a prompt that the executor's context doesn't hold.
    """
    if writing.length < 1:
        raise ConfigError(f"length is {writing.length}; give at least 1")
    engine = Engine(executor, prefix_cache=False)
    texts = {str(i): list(prompt) for i, prompt in enumerate(prompts)}
    for i, prompt in enumerate(prompts):
        params = SamplingParams(
            max_tokens=writing.length,
            temperature=writing.temperature,
            top_p=writing.top_p,
            seed=(writing.seed + i) % 2**64,
            ignore_eos=True,
        )
        request = Request(id=str(i), prompt=tuple(prompt), params=params)
        engine.validate(request)
        engine.submit(request)
    while engine.has_work():
        for output in engine.step():
            if output.error is not None:
                raise output.error
            texts[output.request_id].extend(output.tokens)
    return list(texts.values())


def student_writer(model: QatModel, config: RuntimeConfig) -> Callable[[I64, Writing], I64]:
    """What writes behind prompts int64 [b, n] with the weights that the model has by then: packed
    anew each time, so that nothing is written by yesterday's student."""
    from octavo.backends.native.backend import load

    def written(prompts: I64, writing: Writing) -> I64:
        with closing(load(model.spec, TrainedSource(model), config)) as executor:
            return np.array(write(executor, prompts.tolist(), writing), np.int64)

    return written
