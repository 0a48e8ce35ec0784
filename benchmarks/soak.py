"""Hours in minutes: a server with a tiny KV pool under random requests, cancels and bad prompts.

    python benchmarks/soak.py smollm2-135m --format int4_g32 --minutes 10 --requests 5000
    python benchmarks/soak.py smollm2-135m --format int4_g32 --quick

Runs until both the minutes and the requests are done. Every greedy answer that ends is compared
with the same prompt's answer alone, token for token; answers other than 200 and the 400 of an
over-long prompt are failures; at the end nothing runs or waits, no block is in use, and the memory
of server and engine is what it was after the warm-up, within 2 %. Exit status 1 when one is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
from server_process import Running, octavo_server

_AT_ONCE = 24
_TOLERANCE = 0.02  # of memory
_WARM = 0.25  # of the requests and of the time, before memory is noted
_PROMPTS = 60
_CONTEXT = 512
_WORDS = ("the", "old", "sea", "was", "calm", "and", "a", "ship", "came", "home", "with", "salt")


@dataclass(slots=True)
class Soak:
    """One run: what is asked for, what alone it would be, and what went wrong."""

    server: Running
    http: httpx.AsyncClient
    prompts: list[str]
    alone: dict[str, list[int]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    compared: int = 0

    def body(self, prompt: str, **fields: Any) -> dict[str, Any]:
        return {"prompt": prompt, "max_tokens": 32, "temperature": 0, "return_token_ids": True,
                **fields}  # fmt: skip

    async def learn(self) -> None:
        """Every prompt's answer, one after another."""
        for prompt in self.prompts:
            answer = await self.http.post("/v1/completions", json=self.body(prompt))
            self.alone[prompt] = answer.json()["choices"][0]["token_ids"]

    async def one(self, rng: random.Random) -> None:
        kinds = (self.whole, self.streamed, self.dropped, self.choices, self.sampled, self.too_long)
        kind = rng.choices(kinds, (30, 20, 20, 10, 10, 10))[0]
        self.seen[kind.__name__] += 1
        try:
            await kind(rng, rng.choice(self.prompts))
        except (httpx.HTTPError, ValueError, LookupError) as error:
            self.faults.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    async def whole(self, rng: random.Random, prompt: str) -> None:
        self.judge(prompt, await self.ask(self.body(prompt, priority=rng.choice((0, 0, 1)))))

    async def choices(self, rng: random.Random, prompt: str) -> None:
        self.judge(prompt, await self.ask(self.body(prompt, n=rng.randint(2, 4))))

    async def sampled(self, rng: random.Random, prompt: str) -> None:
        await self.ask(self.body(prompt, temperature=1.0, user=rng.choice("xyz")))

    async def too_long(self, rng: random.Random, prompt: str) -> None:
        body = self.body(prompt * rng.randint(40, 80))
        answer = await self.http.post("/v1/completions", json=body)
        if answer.status_code != 400:
            self.faults.append(f"an over-long prompt: status {answer.status_code}")

    async def ask(self, body: dict[str, Any]) -> list[list[int]]:
        answer = await self.http.post("/v1/completions", json=body)
        if answer.status_code != 200:
            self.faults.append(f"status {answer.status_code}: {answer.text[:200]}")
            return []
        return [choice["token_ids"] for choice in answer.json()["choices"]]

    async def streamed(self, rng: random.Random, prompt: str) -> None:
        self.judge(prompt, [await self.read(prompt, 10**9)])

    async def dropped(self, rng: random.Random, prompt: str) -> None:
        """A stream that its client leaves in the middle."""
        got = await self.read(prompt, rng.randint(0, 4))
        if got != self.alone[prompt][: len(got)]:
            self.faults.append(f"a stream began otherwise: {prompt[:40]!r}")

    async def read(self, prompt: str, events: int) -> list[int]:
        tokens: list[int] = []
        body = self.body(prompt, stream=True)
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if events <= 0 or line == "data: [DONE]":
                    break
                if line.startswith("data: "):
                    events -= 1
                    tokens += json.loads(line[6:])["choices"][0]["token_ids"]
        return tokens

    def judge(self, prompt: str, answers: list[list[int]]) -> None:
        for tokens in answers:
            self.compared += 1
            if tokens != self.alone[prompt]:
                self.faults.append(f"another answer than alone: {prompt[:40]!r}")

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
        memory, count = await _load(run, rng, minutes, requests)
        gauges = await _idle(run)
    last = server.memory()
    growth = {name: last[name] / size - 1 for name, size in memory.items()}
    run.faults += [f"{name} is {value} at rest" for name, value in gauges.items() if value]
    run.faults += [f"memory of the {name} grew by {100 * share:.1f} %"
                   for name, share in growth.items() if share > _TOLERANCE]  # fmt: skip
    return {"requests": count, "kinds": dict(run.seen), "compared": run.compared,
            "memory_after_warm_up": memory, "growth": growth, "faults": run.faults}  # fmt: skip


async def _load(
    run: Soak, rng: random.Random, minutes: float, requests: int
) -> tuple[dict[str, int], int]:
    """The memory after the warm-up, and how many requests were sent."""
    begin, count, memory = time.monotonic(), 0, dict[str, int]()
    end = begin + 60 * minutes

    async def worker() -> None:
        nonlocal count, memory
        while count < requests or time.monotonic() < end:
            count += 1
            await run.one(rng)
            warm = time.monotonic() >= begin + _WARM * (end - begin) and count >= _WARM * requests
            if warm and not memory:
                memory = run.server.memory()

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
    return memory, count


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
