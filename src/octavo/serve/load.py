"""A load on a server, and what it felt like: the figures that `vllm bench serve` prints.

Times count from sending a request to the first *token*, not the first chunk, which may hold only a
role. Prompts are random words unless they share a prefix on purpose, since repeated prompts would
hit a prefix cache and measure that instead; a warm run says so by its name.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from octavo.core.errors import OctavoError, UserError

_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman",
    "life", "child", "world", "school", "state", "family", "student", "group",
    "country", "problem", "hand", "part", "place", "case", "week", "company",
    "system", "program", "question", "work", "government", "number", "night", "point",
    "home", "water", "room", "mother", "area", "money", "story", "fact",
    "month", "lot", "right", "study", "book", "eye", "job", "word",
    "business", "issue", "side", "kind", "head", "house", "service", "friend",
    "father", "power", "hour", "game", "line",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workload:
    """requests in all; `concurrency` at once at most; `rate` requests a second by a Poisson process
    (None: as fast as concurrency allows); about `prompt` and exactly `output` tokens; the first
    `shared` tokens of every prompt alike; `turns` of a conversation, each with the answers before
    it; `warm`: every prompt is sent once before it counts."""

    requests: int = 64
    concurrency: int = 16
    rate: float | None = None
    prompt: int = 128
    output: int = 128
    shared: int = 0
    turns: int = 1
    seed: int = 0
    warm: bool = False

    def __post_init__(self) -> None:
        if min(self.requests, self.concurrency, self.prompt, self.output, self.turns) < 1:
            raise UserError("requests, concurrency, prompt, output and turns are at least 1")
        if (
            not (self.rate is None or 0 < self.rate < math.inf)
            or not 0 <= self.shared <= self.prompt
        ):
            raise UserError("rate is above 0, and shared between 0 and prompt")


@dataclass(slots=True)
class Sample:
    """One request: seconds from sending to each chunk with text, and what the server counted."""

    begin: float
    arrivals: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    error: str = ""

    @property
    def first(self) -> float:
        return self.arrivals[0] - self.begin

    @property
    def whole(self) -> float:
        return self.arrivals[-1] - self.begin

    @property
    def per_token(self) -> float:
        """Seconds a token after the first."""
        return (self.arrivals[-1] - self.arrivals[0]) / max(1, self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


Message = dict[str, str]
Send = Callable[[Sequence[Message], int], AsyncIterator[dict[str, Any]]]


class ServerUnderLoad:
    """A server's chat endpoint. Use it in an `async with`."""

    def __init__(self, url: str, model: str | None, key: str | None, timeout: float) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url.rstrip("/").removesuffix("/v1")
        # One connection a chat: some servers close an idle one just as it would be used again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)
        self._model = model

    async def __aenter__(self) -> ServerUnderLoad:
        if self._model is None:
            self._model = await self._first_model()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.aclose()

    async def _first_model(self) -> str:
        try:
            answer = await self._http.get(f"{self._url}/v1/models")
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError) as error:
            raise UserError(f"{self._url}: no server of this API answers there: {error}") from error

    async def send(self, messages: Sequence[Message], output: int) -> AsyncIterator[dict[str, Any]]:
        """The events of one streamed chat."""
        body = {
            "model": self._model,
            "messages": list(messages),
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        url = f"{self._url}/v1/chat/completions"
        async with self._http.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                raise OctavoError(f"status {response.status_code}: {text[:200]}")
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line[6:])


async def measure(
    send: Send, messages: Sequence[Message], output: int, clock: Callable[[], float]
) -> Sample:
    """One request, timed."""
    sample = Sample(clock())
    try:
        async for event in send(messages, output):
            _take(sample, event, clock())
    except (OctavoError, httpx.HTTPError, ValueError) as error:
        sample.error = f"{type(error).__name__}: {error}"
    if not sample.error and not sample.arrivals:
        sample.error = "no token came"
    return sample


def _take(sample: Sample, event: dict[str, Any], now: float) -> None:
    if "error" in event:
        raise OctavoError(str(event["error"].get("message", event["error"])))
    for choice in event.get("choices", ()):
        text = choice.get("delta", {}).get("content") or ""
        if text:
            sample.text += text
            sample.arrivals.append(now)
    usage = event.get("usage")
    if usage:
        sample.prompt_tokens = usage["prompt_tokens"]
        sample.output_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        sample.cached_tokens = details.get("cached_tokens") or 0


class Load:
    """A workload on a server."""

    def __init__(
        self, work: Workload, send: Send, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._work, self._send, self._clock = work, send, clock
        self._random = random.Random(work.seed)
        self._head = self._words(work.shared)

    def _words(self, count: int) -> str:
        """About `count` tokens: a common word is one."""
        return " ".join(self._random.choice(_WORDS) for _ in range(count))

    def prompts(self) -> list[str]:
        work = self._work
        return [f"{self._head} {self._words(work.prompt - work.shared)}".strip()
                for _ in range(work.requests)]  # fmt: skip

    async def run(self, done: Callable[[], None]) -> tuple[list[Sample], float]:
        """All samples, and seconds from the first request to the last answer. `done` is called
        after each request."""
        prompts = self.prompts()
        if self._work.warm:
            for prompt in prompts:
                await measure(self._send, [_user(prompt)], 1, self._clock)
        places = asyncio.Semaphore(self._work.concurrency)
        begin = self._clock()
        tasks = []
        for prompt in prompts:
            tasks.append(asyncio.create_task(self._conversation(prompt, places, done)))
            if self._work.rate is not None:
                await asyncio.sleep(self._random.expovariate(self._work.rate))
        samples = [sample for group in await asyncio.gather(*tasks) for sample in group]
        return samples, self._clock() - begin

    async def _conversation(
        self, prompt: str, places: asyncio.Semaphore, done: Callable[[], None]
    ) -> list[Sample]:
        messages, samples = [_user(prompt)], []
        async with places:
            for turn in range(self._work.turns):
                sample = await measure(self._send, messages, self._work.output, self._clock)
                samples.append(sample)
                if sample.error:
                    break
                more = f"Go on, part {turn + 2}."
                messages = [*messages, {"role": "assistant", "content": sample.text}, _user(more)]
        done()
        return samples


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


@dataclass(frozen=True, slots=True)
class Spread:
    """In milliseconds."""

    mean: float
    median: float
    p95: float
    p99: float


def spread(seconds: Sequence[float]) -> Spread | None:
    """None when there is nothing to measure."""
    values = sorted(1000 * s for s in seconds)
    if not values:
        return None
    return Spread(
        sum(values) / len(values), quantile(values, 0.5), quantile(values, 0.95),
        quantile(values, 0.99),
    )  # fmt: skip


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between neighbours, as numpy's default."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Times are of requests that succeeded. goodput: requests a second whose first token came
    within `slo_first` and whose tokens within `slo_token` milliseconds."""

    completed: int
    failed: int
    duration: float
    total_input: int
    total_cached: int
    total_output: int
    request_throughput: float
    request_goodput: float
    output_throughput: float
    total_token_throughput: float
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2el: Spread | None
    errors: tuple[str, ...]


def report(
    samples: Sequence[Sample], duration: float, slo_first: float, slo_token: float
) -> LoadReport:
    good = [sample for sample in samples if not sample.error]
    within = [s for s in good if 1000 * s.first <= slo_first and 1000 * s.per_token <= slo_token]
    prompts, outputs = sum(s.prompt_tokens for s in good), sum(s.output_tokens for s in good)
    return LoadReport(
        completed=len(good),
        failed=len(samples) - len(good),
        duration=duration,
        total_input=prompts,
        total_cached=sum(s.cached_tokens for s in good),
        total_output=outputs,
        request_throughput=len(good) / duration,
        request_goodput=len(within) / duration,
        output_throughput=outputs / duration,
        total_token_throughput=(prompts + outputs) / duration,
        ttft=spread([s.first for s in good]),
        tpot=spread([s.per_token for s in good if s.output_tokens > 1]),
        itl=spread([gap for s in good for gap in s.gaps]),
        e2el=spread([s.whole for s in good]),
        errors=tuple(sorted({s.error for s in samples if s.error})),
    )
