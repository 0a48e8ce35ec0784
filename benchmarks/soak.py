"""Hours in minutes: a server with a tiny KV pool under random requests, cancels and bad prompts.

    python benchmarks/soak.py smollm2-135m --format int4_g32 --minutes 10 --requests 5000
    python benchmarks/soak.py smollm2-135m --format int4_g32 --quick

Runs until both the minutes and the requests are done: whole answers and streams, free and held to a
schema, several choices, sampled ones, streams that their client leaves, over-long prompts. Every
greedy answer that ends is compared with the same prompt's answer alone, token for token; answers
other than 200 and the 400 of an over-long prompt are failures; at the end nothing runs or waits, no
block is in use, and the memory of server and engine has not grown by more than 2 % from the second
quarter of the run to the last (medians: what is allocated at a moment comes and goes).
Exit status 1 when one is not so. The JSON has the memory at all points.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
from server_process import Running, octavo_server

_AT_ONCE = 24
_TOLERANCE = 0.02  # of memory
_PROMPTS = 60
_CONTEXT = 512
_POINTS = 20  # of memory in the report
_SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {"port": {"type": "integer"}, "calm": {"type": "boolean"}},
     "required": ["port", "calm"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["sea", "ship", "salt"]}, "maxItems": 4},
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}},
     "required": ["name"], "additionalProperties": False},
)  # fmt: skip
_FREE = -1  # in place of a schema's number
_WORDS = ("the", "old", "sea", "was", "calm", "and", "a", "ship", "came", "home", "with", "salt")


@dataclass(slots=True)
class Soak:
    """One run: what is asked for, what alone it would be, and what went wrong."""

    server: Running
    http: httpx.AsyncClient
    prompts: list[str]
    alone: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    compared: int = 0

    def body(self, prompt: str, schema: int = _FREE, **fields: Any) -> dict[str, Any]:
        held = {} if schema == _FREE else {"guided_json": _SCHEMAS[schema]}
        return {"prompt": prompt, "max_tokens": 32, "temperature": 0, "return_token_ids": True,
                **held, **fields}  # fmt: skip

    async def learn(self) -> None:
        """Every prompt's answers, one after another: free, and held to each schema."""
        for prompt in self.prompts:
            for schema in range(_FREE, len(_SCHEMAS)):
                body = self.body(prompt, schema)
                answer = await self.http.post("/v1/completions", json=body)
                self.alone[prompt, schema] = answer.json()["choices"][0]["token_ids"]

    async def one(self, rng: random.Random) -> None:
        kinds = (self.whole, self.streamed, self.dropped, self.choices, self.sampled, self.too_long)
        kind = rng.choices(kinds, (30, 20, 20, 10, 10, 10))[0]
        schema = rng.choice((_FREE, _FREE, *range(len(_SCHEMAS))))
        self.seen[f"{kind.__name__}, {'free' if schema == _FREE else 'schema'}"] += 1
        try:
            await kind(rng, rng.choice(self.prompts), schema)
        except (httpx.HTTPError, ValueError, LookupError) as error:
            self.faults.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    async def whole(self, rng: random.Random, prompt: str, schema: int) -> None:
        body = self.body(prompt, schema, priority=rng.choice((0, 0, 1)))
        self.judge(prompt, schema, await self.ask(body))

    async def choices(self, rng: random.Random, prompt: str, schema: int) -> None:
        body = self.body(prompt, schema, n=rng.randint(2, 4))
        self.judge(prompt, schema, await self.ask(body))

    async def sampled(self, rng: random.Random, prompt: str, schema: int) -> None:
        await self.ask(self.body(prompt, schema, temperature=1.0, user=rng.choice("xyz")))

    async def too_long(self, rng: random.Random, prompt: str, schema: int) -> None:
        body = self.body(prompt * rng.randint(_CONTEXT, 2 * _CONTEXT), schema)
        answer = await self.http.post("/v1/completions", json=body)
        if answer.status_code != 400:
            self.faults.append(f"an over-long prompt: status {answer.status_code}")

    async def ask(self, body: dict[str, Any]) -> list[list[int]]:
        answer = await self.http.post("/v1/completions", json=body)
        if answer.status_code != 200:
            self.faults.append(f"status {answer.status_code}: {answer.text[:200]}")
            return []
        return [choice["token_ids"] for choice in answer.json()["choices"]]

    async def streamed(self, rng: random.Random, prompt: str, schema: int) -> None:
        self.judge(prompt, schema, [await self.read(prompt, schema, 10**9)])

    async def dropped(self, rng: random.Random, prompt: str, schema: int) -> None:
        """A stream that its client leaves in the middle."""
        got = await self.read(prompt, schema, rng.randint(0, 4))
        if got != self.alone[prompt, schema][: len(got)]:
            self.faults.append(f"a stream began otherwise: {prompt[:40]!r}")

    async def read(self, prompt: str, schema: int, events: int) -> list[int]:
        tokens: list[int] = []
        body = self.body(prompt, schema, stream=True)
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if events <= 0 or line == "data: [DONE]":
                    break
                if line.startswith("data: "):
                    events -= 1
                    tokens += json.loads(line[6:])["choices"][0]["token_ids"]
        return tokens

    def judge(self, prompt: str, schema: int, answers: list[list[int]]) -> None:
        for tokens in answers:
            self.compared += 1
            if tokens != self.alone[prompt, schema]:
                self.faults.append(f"another answer than alone: {prompt[:40]!r}, schema {schema}")

    async def gauges(self) -> dict[str, float]:
        text = (await self.http.get("/metrics")).text
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return {name: float(re.findall(rf"octavo:{name}{{.*}} (\S+)", text)[0]) for name in names}


async def soak(server: Running, minutes: float, requests: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    prompts = [" ".join(rng.choices(_WORDS, k=rng.randint(3, 90))) for _ in range(_PROMPTS)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:
        run = Soak(server, http, prompts)
        await run.learn()
        points = await _load(run, rng, minutes, requests)
        gauges = await _idle(run)
        points.append(server.memory())
    growth = _growth(points)
    run.faults += [f"{name} is {value} at rest" for name, value in gauges.items() if value]
    run.faults += [f"memory of the {name} grew by {100 * share:.1f} %"
                   for name, share in growth.items() if share > _TOLERANCE]  # fmt: skip
    return {"requests": run.seen.total(), "kinds": dict(run.seen), "compared": run.compared,
            "memory": points, "growth": growth, "faults": run.faults}  # fmt: skip


def _growth(points: list[dict[str, int]]) -> dict[str, float]:
    """Per process, from the second quarter to the last; the first warms up."""
    quarter = len(points) // 4
    second, last = points[quarter : 2 * quarter], points[-quarter:]

    def middle(part: list[dict[str, int]], name: str) -> float:
        return statistics.median(point[name] for point in part)

    return {name: middle(last, name) / middle(second, name) - 1 for name in points[0]}


async def _load(
    run: Soak, rng: random.Random, minutes: float, requests: int
) -> list[dict[str, int]]:
    """Until minutes and requests are done; the memory at points that are equally far apart."""
    begin, count, points = time.monotonic(), 0, list[dict[str, int]]()

    def done() -> float:
        passed = (time.monotonic() - begin) / (60 * minutes) if minutes else 1.0
        return min(passed, count / requests)

    async def worker() -> None:
        nonlocal count
        while done() < 1:
            count += 1
            await run.one(rng)
            if done() >= len(points) / _POINTS:
                points.append(run.server.memory())

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
    return points


async def _idle(run: Soak) -> dict[str, float]:
    """The gauges once aborted requests are gone. The engine reports with each step's outputs, so
    a last request brings the last word."""
    for _ in range(50):
        await run.ask(run.body(run.prompts[0], max_tokens=1))
        gauges = await run.gauges()
        if not any(gauges.values()):
            break
        await asyncio.sleep(0.1)
    return gauges


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--format", default="source")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="One minute, 300 requests.")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes, arguments.requests = 1.0, 300
    options = ["--format", arguments.format, "--threads", str(arguments.threads), "--context",
               str(_CONTEXT), "--kv-tokens", str(2 * _CONTEXT), "--max-num-seqs", "8"]  # fmt: skip
    with octavo_server(arguments.model, *options) as server:
        work = soak(server, arguments.minutes, arguments.requests, arguments.seed)
        found = asyncio.run(work)
    print(json.dumps(found, indent=2))
    return min(1, len(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
