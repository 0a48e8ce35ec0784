"""What the native planner does with a number format on this machine: which kernel runs it, what it
weighs, and, where that is measured, how fast it decodes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.backends.base import Executor, KernelUse, RuntimeConfig
from octavo.core.errors import OctavoError
from octavo.evals.scorer import SingleSequence
from octavo.evals.throughput import SpeedTest, run
from octavo.formats.number_format import NumberFormat
from octavo.io.memory_views import FloatView
from octavo.spec.decoder import AttentionSpec, DecoderSpec, DenseMlp, LayerSpec, Role, RopeSpec
from octavo.spec.graph import role_shape

F32 = npt.NDArray[np.float32]
BASE = "bf16"  # what speed is compared with
_TOKENS, _ROUNDS = 16, 5


@dataclass(frozen=True, slots=True)
class Planned:
    """A format as its kernel runs it. `kernel` is "" and `reason` says why where none does."""

    format: str
    kernel: str
    fallback: str
    bits: float  # per weight as the kernel reads it
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Gain:
    """Decoding in a format against bf16: bytes read a token, and time a token (medians)."""

    format: str
    smaller: float
    faster: float


def planned(name: str) -> Planned:
    """Ask the planner. Never raises for a format that it refuses. A learned codebook of up to 16
    levels is asked for as nf4, whose levels the same kernel reads from a table."""
    spec, format = _model(hidden=256, layers=1), NumberFormat.parse(name)
    learned = format.variant == "learned" and format.bits <= 4
    asked = name.replace(name.partition("_")[0], "nf4", 1) if learned else name
    try:
        with _executor(spec, asked) as executor:
            uses = executor.receipt().kernels
    except OctavoError as error:
        return Planned(name, "", "", 0.0, str(error))
    use = next(use for use in uses if use.role.startswith("layers"))
    return Planned(name, use.kernel, use.fallback, 8 * _bytes(uses) / _weights(uses))


def gains(names: Sequence[str], progress: Callable[[str], None] | None = None) -> tuple[Gain, ...]:
    """Decode speed of made-up weights (26 million) in each format against bf16, in turn, so that a
    busy moment hits both."""
    spec, test = _model(hidden=1024, layers=2), SpeedTest(generate=_TOKENS)
    found = []
    for name in names:
        if progress:
            progress(name)
        with _executor(spec, BASE) as base, _executor(spec, name) as other:
            pair = SingleSequence(base), SingleSequence(other)
            ratios = [_ratio(*pair, test) for _ in range(_ROUNDS)]
            smaller = base.receipt().bytes_per_token / other.receipt().bytes_per_token
        found.append(Gain(name, smaller, statistics.median(ratios)))
    return tuple(found)


def _ratio(base: SingleSequence, other: SingleSequence, test: SpeedTest) -> float:
    """Time of the base over time of the other, one after the other."""
    before = run(base, test, [1, 2], time.perf_counter).seconds
    return before / run(other, test, [1, 2], time.perf_counter).seconds


@contextmanager
def _executor(spec: DecoderSpec, name: str) -> Iterator[Executor]:
    from octavo.backends.native.backend import load

    config = RuntimeConfig(max_tokens=16, max_seqs=1, context=64, format=name)
    executor = load(spec, _Noise(spec), config)
    try:
        yield executor
    finally:
        executor.close()


def _model(hidden: int, layers: int) -> DecoderSpec:
    heads = hidden // 64
    attention = AttentionSpec(heads, heads, 64, 0.125, RopeSpec(10000.0, 64))
    layer = LayerSpec(attention, DenseMlp(3 * hidden))
    return DecoderSpec("made up", 256, hidden, (layer,) * layers, 1e-5, 64, True)


def _weights(uses: Sequence[KernelUse]) -> int:
    return sum(use.products for use in uses)


def _bytes(uses: Sequence[KernelUse]) -> int:
    return sum(use.bytes_per_token for use in uses)


class _Noise:
    """A WeightSource of normal weights, the same for every role of one shape."""

    def __init__(self, spec: DecoderSpec) -> None:
        self._spec = spec
        self._made: dict[tuple[int, ...], F32] = {}

    def tensor(self, role: Role) -> FloatView:
        shape = role_shape(self._spec, role)
        if shape not in self._made:
            draws = np.random.default_rng(len(self._made))
            values = draws.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)
            self._made[shape] = np.ones(shape, np.float32) if len(shape) == 1 else values
        return FloatView(self._made[shape])

    def has(self, role: Role) -> bool:
        return True

    def describe(self) -> str:
        return "made-up weights"
