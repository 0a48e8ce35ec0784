"""OpenVINO GenAI behind benchmarks' `Engine`, in a Python of its own. Reads GGUF files directly.

Prompts of decoding are kept by its prefix cache, so that only the tokens asked for are computed
again; a prefill gets fresh random tokens every time.
"""

from __future__ import annotations

import random
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from engines import PROMPT, TOGETHER_PROMPT, Fields


class OpenVino:
    """Its own choice of precisions for the file; as many threads as the rest."""

    def __init__(self, setup: Fields) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = setup["sequences"]
        scheduler.cache_size = 2  # GB
        self.pipeline = genai.LLMPipeline(
            setup["model"], "CPU", scheduler_config=scheduler,
            INFERENCE_NUM_THREADS=setup["threads"],
        )  # fmt: skip
        self.random = random.Random(0)

    def describe(self) -> dict[str, Any]:
        return {"openvino-genai": version("openvino-genai"), "openvino": version("openvino")}

    def prefill(self, tokens: int) -> float:
        return self._generate([[self.random.randrange(100, 40000) for _ in range(tokens)]], 1)

    def decode(self, tokens: int, depth: int) -> float:
        """The difference of a long and a one-token run: what lies before cancels out."""
        prompt = [list(range(PROMPT, PROMPT + max(depth, 16)))]
        self._generate(prompt, 1)  # fills the prefix cache
        one = self._generate(prompt, 1)
        return self._generate(prompt, tokens + 1) - one

    def decode_together(self, tokens: int, batch: int) -> float:
        starts = [PROMPT + slot * TOGETHER_PROMPT for slot in range(batch)]
        prompts = [list(range(start, start + TOGETHER_PROMPT)) for start in starts]
        self._generate(prompts, 1)
        one = self._generate(prompts, 1)
        return self._generate(prompts, tokens + 1) - one

    def _generate(self, prompts: list[list[int]], count: int) -> float:
        """Raises RuntimeError when fewer tokens come back than were asked for."""
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos, config.do_sample = True, False
        ids = np.asarray(prompts, np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        begin = time.perf_counter()
        result = self.pipeline.generate(inputs, config)
        seconds = time.perf_counter() - begin
        if any(len(tokens) != count for tokens in result.tokens):
            raise RuntimeError(f"asked for {count} tokens, got {list(map(len, result.tokens))}")
        return seconds
