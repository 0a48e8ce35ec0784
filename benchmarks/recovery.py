"""How long a killed engine is away, and what is left of a pinned prefix.

    python benchmarks/recovery.py smollm2-135m --format int4_g32 --kills 3

Streams run, one prompt's beginning is pinned in a store, and `kill -9` ends the engine's process.
The bar: requests are answered again within 5 s plus the time that loading took at the start, every
stream has ended whole or with an error that says to try again, and what was pinned is found.
Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from server_process import Running, octavo_server

_BAR = 5.0  # seconds besides loading
_STREAMS = 16
_BEHIND = 32  # tokens that the prompt has behind the mark, at most, in whole blocks
_TICKS = os.sysconf("SC_CLK_TCK")
_RULES = "The harbour has forty rules, and this is what they say. " * 20
_BODY = {"max_tokens": 200, "temperature": 0, "ignore_eos": True}


def running_for(pid: int) -> float:
    """Seconds since a process began."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS


async def stream(http: httpx.AsyncClient, number: int, begun: asyncio.Semaphore) -> str:
    """How one stream ended: "whole", "told" by its last event, or "cut" without a word."""
    body = {**_BODY, "prompt": f"Story {number}:", "stream": True}
    last = ""
    try:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    last = line[6:]
                    begun.release()
    except httpx.HTTPError:
        return "cut"
    if last == "[DONE]":
        return "whole"
    return "told" if "sent again" in json.loads(last).get("error", {}).get("message", "") else "cut"


async def ask_pinned(http: httpx.AsyncClient) -> httpx.Response:
    part = {"type": "text", "text": _RULES, "prompt_cache_breakpoint": {"mode": "explicit"}}
    messages = [{"role": "system", "content": [part]}, {"role": "user", "content": "Which?"}]
    return await http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})


async def kill(server: Running, http: httpx.AsyncClient) -> dict[str, Any]:
    """Kill the engine under load, and wait until it answers."""
    begun = asyncio.Semaphore(0)
    streams = [asyncio.ensure_future(stream(http, i, begun)) for i in range(_STREAMS)]
    for _ in range(_STREAMS):
        await begun.acquire()
    [engine] = server.children()
    os.kill(engine, signal.SIGKILL)
    begin = time.monotonic()
    ends = await asyncio.gather(*streams)
    while (await http.get("/health")).status_code != 200:
        await asyncio.sleep(0.05)
    answer = await ask_pinned(http)
    away = time.monotonic() - begin
    usage = answer.json()["usage"]["prompt_tokens_details"]
    return {"seconds": away, "ends": dict(Counter(ends)), "cached_tokens": usage["cached_tokens"]}


async def measure(server: Running, kills: int) -> dict[str, Any]:
    [engine] = server.children()
    load = running_for(engine)
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as http:
        pinned = (await ask_pinned(http)).json()["usage"]["prompt_tokens_details"]
        written = pinned["cache_write_tokens"] + pinned["cached_tokens"]
        found = [await kill(server, http) for _ in range(kills)]
        health = (await http.get("/health")).json()
    faults = [f"away for {one['seconds']:.2f} s" for one in found if one["seconds"] > _BAR + load]
    faults += [f"{one['cached_tokens']} tokens of the pinned prefix found"
               for one in found if one["cached_tokens"] < written - _BEHIND]  # fmt: skip
    faults += ["a stream was cut without a word" for one in found if "cut" in one["ends"]]
    faults += [f"{health}"] if health["restarts"] != kills else []
    return {"load_seconds": load, "pinned_tokens": written, "kills": found, "faults": faults}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--format", default="source")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--kills", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, octavo_server(
        asked.model, "--format", asked.format, "--threads", str(asked.threads), "--context", "1024",
        "--kv-tokens", "16384", "--prefix-store", directory,
    ) as server:  # fmt: skip
        found = asyncio.run(measure(server, asked.kills))
    print(json.dumps(found, indent=2))
    return min(1, len(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
