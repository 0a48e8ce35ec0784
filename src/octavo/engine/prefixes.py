"""Prefixes that stay: pins with a time to live, made from a request's marks.

A pin holds blocks that requests then can't use, so all pins together get at most half of each
pool; a mark beyond that is not kept, and `refused` counts it. When a request can't be served
otherwise, the pin that ends first is given up.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.engine.prefix import Pin, PrefixCache, root_of
from octavo.engine.request import Mark, Request

_SHARE = 0.5  # of a pool that pins may hold


class Prefixes:
    """The prefix cache as applications see it: names, times, and how well it does."""

    def __init__(self, cache: PrefixCache, clock: Callable[[], float]) -> None:
        self.cache = cache
        self._clock = clock
        self.refused = 0

    def keep(self, request: Request, mark: Mark) -> Pin | None:
        """Pin what a mark asks for, or count it as refused."""
        tokens = request.prompt[: mark.tokens]
        name = mark.name or root_of(request.cache.salt, *map(str, tokens)).hex()
        until = self._clock() + mark.ttl
        pin = self.cache.pin(name, request.cache.salt, tokens, until)
        if pin is not None and self._too_much():
            self.cache.unpin(name)
            pin = None
        self.refused += pin is None
        return pin

    def _too_much(self) -> bool:
        pools = self.cache.pool.groups
        held = self.cache.pinned_blocks
        return any(n > _SHARE * pool.n_blocks for n, pool in zip(held, pools, strict=True))

    def expire(self) -> None:
        if self.cache.pins:
            self.cache.expire(self._clock())

    def drop(self, name: str) -> bool:
        """Let a named prefix go; whether there was one."""
        return self.cache.unpin(name)
