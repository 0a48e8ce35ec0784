"""Through HTTP: an answer gets a token in every step, whatever else is being read."""

from __future__ import annotations

import asyncio
import itertools
import threading

import httpx

from support.serving import Served


def test_decodes_never_stall_behind_a_long_prefill():
    served = Served()
    steps: list[list[int]] = []
    second = threading.Event()
    step, send = served.executor.step, served.client.send

    def recorded(batch):
        if len(steps) == 2:
            assert second.wait(60), "the long prompt never came"
        starts = batch.row_start[: batch.n_seqs + 1]
        steps.append([b - a for a, b in itertools.pairwise(starts.tolist())])
        return step(batch)

    def noted(requests, inbox):
        sent = send(requests, inbox)
        if any(len(request.prompt) > 100 for request in requests):
            second.set()
        return sent

    served.executor.step, served.client.send = recorded, noted

    async def ask(http: httpx.AsyncClient, prompt: list[int], tokens: int, user: str):
        body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "user": user}
        answer = await http.post("/v1/completions", json=body)
        assert answer.status_code == 200
        return answer.json()["usage"]["completion_tokens"]

    async def both() -> list[int]:
        async with served.http() as http:
            first = asyncio.ensure_future(ask(http, [5, 6, 7], 40, "a"))
            while not steps:
                await asyncio.sleep(0)
            return [await ask(http, [9] * 240, 4, "b"), await first]

    assert asyncio.run(both()) == [4, 40]
    served.close()
    answering = steps[1 : 1 + 39]  # the first answer's decodes, one in each of 39 steps in a row
    assert all(sizes[0] == 1 for sizes in answering)
    assert sum(max(sizes) > 1 for sizes in answering) >= 3  # the prompt came in pieces meanwhile
    stats = served.client.stats
    assert (stats.step_rows, stats.step_sequences) == (1, 1)
    assert stats.prefill_rows >= 16
