"""A library front door over the fake executor, for tests of commands."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

from octavo.api import LLM
from octavo.backends.base import KernelUse, Receipt, RuntimeConfig, StepCancelled
from octavo.engine.store import PrefixStore
from support.fakes import ByteTokenizer, FakeExecutor, FakeModel

KERNELS = (
    KernelUse("layers", "linear_a8_w4_fake", "int4_g32", "a8_g32", 900),
    KernelUse("head", "linear_a8_w8_fake", "int8_g32", "a8_g32", 100, "no fast kernel here"),
)


class ReceiptExecutor(FakeExecutor):
    """The fake executor with a receipt worth printing."""

    def receipt(self) -> Receipt:
        lossy = self.config.format != "source"
        return Receipt("fake", "python", 2, "bf16", 1000, 5000, KERNELS, requantized=lossy)


class FakeLLM:
    """Stands for octavo.api.LLM: remembers what it was asked for."""

    def __init__(self, chat_template: str | None = None) -> None:
        self.template = chat_template
        self.config = RuntimeConfig()
        self.executors: list[ReceiptExecutor] = []

    def __call__(
        self, model: str, *, format: str, config: RuntimeConfig, prefix_store: Path | None = None
    ) -> LLM:
        del model
        assert format == config.format
        self.config = config
        small = dataclasses.replace(
            config, max_tokens=16, max_seqs=2, context=config.context or 128, block_size=4
        )
        blocks = -(-small.context // 4) * 2
        self.executors.append(ReceiptExecutor(FakeModel(258), small, (blocks,)))
        tokenizer = ByteTokenizer()
        tokenizer.chat_template = self.template
        store = None if prefix_store is None else PrefixStore(prefix_store, "fake" * 8)
        return LLM.from_parts(self.executors[-1], tokenizer, eos=(256,), store=store)  # type: ignore[arg-type]


def interrupted_barrier() -> Callable[[FakeExecutor, int], None]:
    """For FakeExecutor._pass_barrier: Ctrl-C comes in the first step, which only cancel ends."""
    seen: list[int] = []

    def pass_barrier(executor: FakeExecutor, row: int) -> None:
        if not seen:
            seen.append(row)
            os.kill(os.getpid(), signal.SIGINT)
            assert executor.cancelled.wait(60), "nobody cancelled the step"
        if executor.cancelled.is_set():
            raise StepCancelled("cancelled")

    return pass_barrier
