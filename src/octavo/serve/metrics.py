"""Prometheus metrics under vLLM's names, with a prefix of our own (and, on request, vLLM's too)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from octavo.serve.answering import Piece
from octavo.serve.served import ServedModel

PREFIX = "octavo:"
_LABELS = ("model_name", "engine")
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
                7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
              1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
_WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
          240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class _Gauges(Collector):
    """What the engine said last."""

    def __init__(self, model: ServedModel) -> None:
        self._labels = (model.name, "0")
        self._client = model.client

    def collect(self) -> Iterable[Metric]:
        stats = self._client.stats
        yield self._gauge("num_requests_running", "Sequences in the step.", stats.running)
        yield self._gauge("num_requests_waiting", "Sequences that wait.", stats.waiting)
        yield self._gauge("kv_cache_usage_perc", "KV blocks in use, 1 is all.", stats.kv_usage)
        yield self._gauge("kv_cache_tokens", "Tokens that the KV cache holds.", stats.kv_tokens)
        yield self._gauge("prefix_cache_pins", "Prefixes held for a time.", stats.pins)
        yield self._gauge(
            "step_prefill_rows", "Tokens of prompts that a step may have now.", stats.prefill_rows
        )
        yield self._gauge("step_rows", "Tokens of the last step.", stats.step_rows)
        yield self._gauge("step_sequences", "Sequences of the last step.", stats.step_sequences)
        yield self._gauge("step_seconds", "How long the last step took.", stats.step_seconds)
        counters = (
            ("prefix_cache_restored", "Prompt tokens read from the store.", stats.prefix_restored),
            ("num_preemptions", "Sequences that gave up their blocks.", stats.preemptions),
            ("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_queried),
            ("prefix_cache_hits", "Prompt tokens found.", stats.prefix_hit),
        )
        for name, text, value in counters:
            family = CounterMetricFamily(PREFIX + name, text, labels=_LABELS)
            family.add_metric(self._labels, value)
            yield family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family


class Metrics:
    """The metrics of one server."""

    def __init__(self, model: ServedModel, compat: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(model))
        self._compat = compat
        self._labels = (model.name, "0")
        self.first_token = self._histogram("time_to_first_token_seconds", _FIRST_TOKEN)
        self.between = self._histogram("inter_token_latency_seconds", _PER_TOKEN)
        self.per_token = self._histogram("request_time_per_output_token_seconds", _PER_TOKEN)
        self.whole = self._histogram("e2e_request_latency_seconds", _WHOLE)
        self.prompt_sizes = self._histogram("request_prompt_tokens", _TOKENS)
        self.answer_sizes = self._histogram("request_generation_tokens", _TOKENS)
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens.")
        self.answer_tokens = self._counter("generation_tokens", "Tokens that were made.")
        self._ends = Counter(
            PREFIX + "request_success",
            "Requests that ended, by reason.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        text = name.replace("_", " ") + "."
        made = Histogram(PREFIX + name, text, _LABELS, buckets=buckets, registry=self._registry)
        return made.labels(*self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, _LABELS, registry=self._registry).labels(*self._labels)

    def ended(self, reason: str) -> None:
        self._ends.labels(*self._labels, reason).inc()

    def render(self) -> bytes:
        """The exposition text."""
        text = generate_latest(self._registry)
        return text + text.replace(PREFIX.encode(), b"vllm:") if self._compat else text


class Stopwatch:
    """Times one call. `clock` in seconds."""

    def __init__(
        self, metrics: Metrics, prompts: Iterable[int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics, self._clock = metrics, clock
        self._begin = clock()
        self._first: dict[tuple[int, int], float] = {}
        self._last: dict[tuple[int, int], float] = {}
        self._made: dict[tuple[int, int], int] = {}
        for size in prompts:
            metrics.prompt_tokens.inc(size)
            metrics.prompt_sizes.observe(size)

    def watch(self, pieces: list[Piece]) -> Iterator[Piece]:
        """Passes pieces on, noting when they came."""
        now = self._clock()
        for piece in pieces:
            self._note(piece, now)
            yield piece

    def _note(self, piece: Piece, now: float) -> None:
        key, count = (piece.request, piece.choice), len(piece.tokens)
        metrics = self._metrics
        if count and key not in self._first:
            self._first[key] = now
            metrics.first_token.observe(now - self._begin)
        elif count:
            for _ in range(count):
                metrics.between.observe((now - self._last[key]) / count)
        if count:
            self._last[key] = now
            self._made[key] = self._made.get(key, 0) + count
            metrics.answer_tokens.inc(count)
        if piece.finish is not None:
            self._end(key, piece.finish, now)

    def _end(self, key: tuple[int, int], finish: str, now: float) -> None:
        made = self._made.get(key, 0)
        self._metrics.ended(finish)
        self._metrics.answer_sizes.observe(made)
        self._metrics.whole.observe(now - self._begin)
        if made > 1:
            self._metrics.per_token.observe((self._last[key] - self._first[key]) / (made - 1))
