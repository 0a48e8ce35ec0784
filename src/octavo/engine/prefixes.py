"""Prefixes that stay: pins with a time to live, made from a request's marks.

A pin holds blocks that requests then can't use, so all pins together get at most a share of each
pool; a mark beyond that is not kept, and `refused` counts it. When a request can't be served
otherwise, the pin that ends first is given up.

With a store, what is pinned is written before the request that asked for it hears of its first
token, and read again, in this process or a later one, when a request begins with it: `waits` keeps
both of them waiting, and nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.engine.prefix import Pin, PrefixCache, root_of
from octavo.engine.request import Mark, Request
from octavo.engine.shelf import Shelf
from octavo.engine.store import Stored

PIN_SHARE = 0.5  # of a pool that pins may hold


@dataclass(frozen=True, slots=True)
class NamedPrefix:
    """A prefix that is kept. tokens: how many, whole blocks; seconds: left at least; held: in the
    cache now; stored: on disk."""

    name: str
    salt: str
    tokens: int
    seconds: float
    held: bool
    stored: bool


class Prefixes:
    """The prefix cache as applications see it: names, times, and how well it does."""

    def __init__(
        self,
        cache: PrefixCache,
        clock: Callable[[], float],
        share: float = PIN_SHARE,
        shelf: Shelf | None = None,
    ) -> None:
        self.cache = cache
        self._clock, self._share, self.shelf = clock, share, shelf
        self.refused = 0
        self.restored = 0  # tokens, since the start

    def keep(self, request: Request, mark: Mark) -> Pin | None:
        """Pin what a mark asks for, or count it as refused. A store writes it meanwhile."""
        tokens = request.prompt[: mark.tokens]
        salt, until = request.cache.salt, self._clock() + mark.ttl
        name = mark.name or root_of(salt, *map(str, tokens)).hex()
        pin = self._renewed(name, salt, tokens, until) or self._pin(name, salt, tokens, until)
        self.refused += pin is None
        if pin is not None and self.shelf is not None:
            self.shelf.save(request.id, pin, mark.ttl)
        return pin

    def _pin(self, name: str, salt: str, tokens: tuple[int, ...], until: float) -> Pin | None:
        pin = self.cache.pin(name, salt, tokens, until)
        if pin is not None and self._too_much():
            self.cache.unpin(name)
            return None
        return pin

    def _renewed(self, name: str, salt: str, tokens: tuple[int, ...], until: float) -> Pin | None:
        """The pin of that name, if it holds just that."""
        pin, size = self.cache.pins.get(name), self.cache.pool.block_size
        if pin is None or (pin.salt, pin.tokens) != (salt, tokens[: len(tokens) // size * size]):
            return None
        pin.until = until
        return pin

    def _too_much(self) -> bool:
        pools = self.cache.pool.groups
        held = self.cache.pinned_blocks
        return any(n > self._share * pool.n_blocks for n, pool in zip(held, pools, strict=True))

    def wanted(self, request: Request) -> Stored | None:
        """What the store has of a request's prompt, unless as much is cached."""
        if self.shelf is None or not request.cache.read:
            return None
        salt, prompt = request.cache.salt, request.prompt
        found = self.shelf.store.find(salt, prompt)
        if found is None:
            return None
        size = len(found.header.tokens)
        cached = self.cache.match(self.cache.chain(salt), prompt, size)
        return None if cached == size else found

    def restore(self, entry: Stored, data: list[bytes]) -> None:
        """Put what was read from the store into the cache, and hold it as it was held."""
        if self.shelf is None or not self.shelf.put(entry, data, self.cache):
            return
        tokens, until = entry.header.tokens, self._clock() + entry.header.ttl
        self.restored += len(tokens)
        pin = self._pin(entry.header.name, entry.header.salt, tokens, until)
        if pin is not None:
            pin.restored = True

    def expire(self) -> None:
        if self.cache.pins:
            self.cache.expire(self._clock())

    def drop(self, name: str, salt: str = "") -> bool:
        """Let a named prefix go, from the store too; whether there was one."""
        stored = self.shelf is not None and self.shelf.drop(salt, name)
        return self.cache.unpin(name) or stored

    def named(self) -> list[NamedPrefix]:
        """All that are held or stored, by name."""
        now = self._clock()
        on_disk = {} if self.shelf is None else self.shelf.held()
        found = {
            (pin.salt, pin.name): NamedPrefix(
                pin.name, pin.salt, len(pin.tokens), pin.until - now, True,
                (pin.salt, pin.name) in on_disk,
            )
            for pin in self.cache.pins.values()
        }  # fmt: skip
        for key, entry in on_disk.items():
            held = entry.header
            found.setdefault(
                key, NamedPrefix(held.name, held.salt, len(held.tokens), held.ttl, False, True)
            )
        return sorted(found.values(), key=lambda prefix: (prefix.name, prefix.salt))
