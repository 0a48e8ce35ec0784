"""llama.cpp behind benchmarks' `Engine`: llama_decode through the low-level API, native argmax."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines import PROMPT, START, TOGETHER_CONTEXT, TOGETHER_PROMPT, Fields

from octavo.evals.rivals import LlamaCpp, LlamaSettings


class LlamaCppEngine:
    """The cheaper of two native argmax routes. A prefix stays between tasks, as in `Octavo`."""

    def __init__(self, setup: Fields) -> None:
        self.sequences = setup.get("sequences", 1)
        settings = LlamaSettings(
            threads=setup["threads"],
            kv=setup["kv"],
            flash_attention=setup["flash_attention"],
            repack=setup.get("repack", True),
            sequences=self.sequences,
        )
        context = self.sequences * TOGETHER_CONTEXT if self.sequences > 1 else setup["context"]
        self.llama = LlamaCpp(Path(setup["model"]), context, settings)
        self.llama.decode([START], 0)
        routes: dict[str, Callable[[int], int]] = {
            "sampler": self.llama.greedy,
            "argmax": self.llama.argmax,
        }
        self.costs = {name: _fastest(route) for name, route in routes.items()}
        self.choose = routes[min(self.costs, key=lambda name: self.costs[name])]
        self._forget()

    def describe(self) -> dict[str, Any]:
        return {"seconds_per_argmax": self.costs}

    def _forget(self) -> None:
        self.llama.restart()
        self.prefix = self.filled = 0

    def prefill(self, tokens: int) -> float:
        self._forget()
        begin = time.perf_counter()
        self._pass_over(0, tokens)
        self.choose(-1)
        return time.perf_counter() - begin

    def _pass_over(self, start: int, stop: int) -> None:
        size = self.llama.batch_size
        for first in range(start, stop, size):
            last = min(first + size, stop)
            self.llama.decode(range(PROMPT + first, PROMPT + last), first)

    def decode(self, tokens: int, depth: int) -> float:
        if self.filled or depth < self.prefix:
            self._forget()
        self.llama.cut(self.prefix)
        self._pass_over(self.prefix, depth)
        self.prefix, token = depth, START
        begin = time.perf_counter()
        for position in range(depth, depth + tokens):
            self.llama.decode((token,), position)
            token = self.choose(-1)
        return time.perf_counter() - begin

    def decode_together(self, tokens: int, batch: int) -> float:
        if batch > self.sequences or TOGETHER_PROMPT + tokens > TOGETHER_CONTEXT:
            raise NotImplementedError(f"{batch} sequences of {tokens} tokens don't fit")
        while self.filled < batch:
            first = PROMPT + self.filled * TOGETHER_PROMPT
            self.llama.decode(range(first, first + TOGETHER_PROMPT), 0, sequence=self.filled)
            self.filled += 1
        for sequence in range(batch):
            self.llama.cut(TOGETHER_PROMPT, sequence)
        chosen = [START + sequence for sequence in range(batch)]
        begin = time.perf_counter()
        for step in range(tokens):
            self.llama.decode_together(chosen, TOGETHER_PROMPT + step)
            chosen = [self.choose(row) for row in range(batch)]
        return time.perf_counter() - begin


def _fastest(route: Callable[[int], int]) -> float:
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        route(-1)
        times.append(time.perf_counter() - begin)
    return min(times)
