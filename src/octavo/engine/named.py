"""Prefixes that an application names: computed once, pinned, found by prompts that begin so."""

from __future__ import annotations

import time
from dataclasses import dataclass

from octavo.core.errors import RequestError
from octavo.engine.client import InProcessClient
from octavo.engine.engine import Engine
from octavo.engine.prefixes import NamedPrefix
from octavo.engine.request import CachePolicy, CacheUse, Mark, Request, SamplingParams


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """What `keep` did. All counts are tokens.

    tokens    of the prefix
    kept      of them pinned: whole blocks
    read      found computed, so not computed again; at most all but the last
    restored  of those, read from the store
    seconds   that it took
    """

    name: str
    tokens: int
    kept: int
    read: int
    restored: int
    seconds: float


def keep(
    client: InProcessClient, id_: str, name: str, tokens: tuple[int, ...], ttl: float
) -> KeptPrefix:
    """Compute a prefix and pin it under a name for `ttl` seconds at least.

    Raises RequestError when it is shorter than a block, doesn't fit into the context, or into what
    pins may hold of the cache.
    """
    block = client.between_steps(lambda engine: engine.executor.layout.block_size)
    if not name or len(tokens) < block:
        raise RequestError(
            f"a prefix needs a name and at least {block} tokens (one block of the cache), got"
            f" {name!r} and {len(tokens)}",
            param="prefix",
        )
    begin = time.perf_counter()
    policy = CachePolicy(marks=(Mark(len(tokens), ttl, name),))
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    before = client.between_steps(_restored)
    use = _run(client, Request(id_, tokens, params, cache=policy))
    kept = client.between_steps(lambda engine: _pinned(engine, name, tokens))
    if not kept:
        raise RequestError(
            f"the prefix {name!r} of {len(tokens)} tokens finds no room in the KV cache beside"
            " others; drop one, or load with more kv_tokens",
            param="prefix",
        )
    restored = min(use.read, client.between_steps(_restored) - before)
    return KeptPrefix(name, len(tokens), kept, use.read, restored, time.perf_counter() - begin)


def _run(client: InProcessClient, request: Request) -> CacheUse:
    use = CacheUse(0, 0, "first")
    with client.generate(request) as stream:
        for output in stream:
            if output.error is not None:
                raise output.error
            use = output.cache or use
    return use


def _restored(engine: Engine) -> int:
    return 0 if engine.prefixes is None else engine.prefixes.restored


def _pinned(engine: Engine, name: str, tokens: tuple[int, ...]) -> int:
    """Tokens of the pin of that name, 0 if it isn't of these."""
    pin = None if engine.prefixes is None else engine.prefixes.cache.pins.get(name)
    return 0 if pin is None or tokens[: len(pin.tokens)] != pin.tokens else len(pin.tokens)


def prefixes(client: InProcessClient) -> list[NamedPrefix]:
    """All that are pinned or stored."""
    return client.between_steps(lambda e: [] if e.prefixes is None else e.prefixes.named())


def drop(client: InProcessClient, name: str) -> bool:
    """Let a prefix go, from the store too; whether there was one."""
    return client.between_steps(lambda e: e.prefixes is not None and e.prefixes.drop(name))
