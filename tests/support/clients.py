"""The typed clients of others, with their strict validation on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import openai


def with_openai(url: str, work: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        base = f"{url}/v1"
        async with openai.AsyncOpenAI(
            api_key="k", base_url=base, max_retries=0, _strict_response_validation=True
        ) as client:
            return await work(client)

    return asyncio.run(run())


def with_anthropic(url: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with anthropic.AsyncAnthropic(
            api_key="k", base_url=url, max_retries=0, _strict_response_validation=True
        ) as client:
            return await work(client)

    return asyncio.run(run())
