"""What sequences take from the prefix cache and leave in it, and why not more."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import numpy as np

from octavo.engine.prefix import PrefixCache
from octavo.engine.request import CacheUse, Mark, Request
from octavo.engine.sequence import Sequence

_KEPT_KEYS = 256  # prompts that misses are compared with, the least recently used goes


class Reuse:
    """The scheduler's hands on the prefix cache."""

    def __init__(self, cache: PrefixCache) -> None:
        self.cache = cache
        self._last: OrderedDict[tuple[str, str], tuple[int, ...]] = OrderedDict()
        self.due: list[tuple[Request, Mark]] = []  # marks whose prefix is computed

    def prepare(self, sequence: Sequence) -> None:
        """A new request's sequence gets its chain of names."""
        policy = sequence.request.cache
        if policy.read or policy.write != "none":
            sequence.chain = self.cache.chain(policy.salt)

    def inherit(self, child: Sequence, parent: Sequence) -> None:
        """A fork shares the parent's blocks, and has names for its own."""
        self.prepare(child)
        child.published, child.cached = parent.published, parent.cached
        child.explained = parent.explained

    def find(self, sequence: Sequence) -> bool:
        """Let a sequence that has nothing computed begin behind its cached prefix."""
        if sequence.computed or sequence.lease.n_tokens:
            return False
        hit = self._match(sequence)
        if sequence.explained is None and not sequence.n_output:
            sequence.cached = hit
            sequence.explained = self._explain(sequence, hit)
            self._remember(sequence.request)
        if hit and sequence.chain is not None:
            self.cache.adopt(sequence.lease, sequence.chain, hit)
            sequence.computed = hit
            sequence.published = hit // self.cache.pool.block_size
        return hit > 0

    def _match(self, sequence: Sequence) -> int:
        """The last known token is always computed: it gives the next one."""
        if sequence.chain is None or not _reads(sequence):
            return 0
        limit = sequence.n_prompt - 1 if sequence.unborn else len(sequence.tokens) - 1
        hit = self.cache.match(sequence.chain, sequence.tokens, limit)
        self.cache.queried += limit
        self.cache.hit += hit
        return hit

    def publish(self, sequence: Sequence) -> None:
        """Name what the step has completed."""
        full = sequence.computed // self.cache.pool.block_size
        if sequence.chain is None or full <= sequence.published:
            return
        stop = min(full, self._wanted(sequence))
        if stop > sequence.published:
            first, chain = sequence.published, sequence.chain
            fresh = self.cache.publish(sequence.lease, chain, sequence.tokens, first, stop)
            self._count(sequence, fresh)
        before, sequence.published = sequence.published, full
        self._note_marks(sequence, before, full)

    def _count(self, sequence: Sequence, fresh: list[int]) -> None:
        """Prompt tokens that were left for others go into what the request is told."""
        size, use = self.cache.pool.block_size, sequence.explained
        written = sum((index + 1) * size <= sequence.n_prompt for index in fresh) * size
        if use is not None and written:
            sequence.explained = dataclasses.replace(use, written=use.written + written)

    def _wanted(self, sequence: Sequence) -> int:
        """Blocks that the policy wants named."""
        policy, size = sequence.request.cache, self.cache.pool.block_size
        if policy.write == "all":
            return sequence.computed // size
        last = max((mark.tokens for mark in policy.marks), default=0)
        return 0 if policy.write == "none" else last // size

    def _note_marks(self, sequence: Sequence, before: int, after: int) -> None:
        for mark in sequence.request.cache.marks if sequence.choice == 0 else ():
            if before < mark.tokens // self.cache.pool.block_size <= after:
                self.due.append((sequence.request, mark))

    def take_due(self) -> list[tuple[Request, Mark]]:
        due, self.due = self.due, []
        return due

    def _explain(self, sequence: Sequence, hit: int) -> CacheUse:
        request, size = sequence.request, self.cache.pool.block_size
        if not _reads(sequence):
            return CacheUse(hit, 0, "not_read")
        earlier = self._last.get((request.cache.salt, request.cache.key))
        if earlier is None:
            return CacheUse(hit, 0, "hit" if hit else "first")
        common = common_prefix(earlier, request.prompt)
        diverged = common if common < min(len(earlier), len(request.prompt)) else -1
        whole = min(common, sequence.n_prompt - 1) // size * size
        if hit < whole:
            return CacheUse(hit, 0, "evicted", diverged)
        return CacheUse(hit, 0, "hit" if diverged < 0 else "input_changed", diverged)

    def _remember(self, request: Request) -> None:
        key = request.cache.salt, request.cache.key
        self._last[key] = request.prompt
        self._last.move_to_end(key)
        if len(self._last) > _KEPT_KEYS:
            self._last.popitem(last=False)

    def give_up_a_pin(self) -> bool:
        """Release the pin that ends first, since a request can't be served otherwise."""
        pins = self.cache.pins.values()
        return bool(pins) and self.cache.unpin(min(pins, key=lambda pin: pin.until).name)


def _reads(sequence: Sequence) -> bool:
    """Whether it may begin behind a cached prefix; prompt rows that are scored must run."""
    return sequence.request.cache.read and sequence.unscored >= sequence.n_prompt - 1


def common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens two prompts share from the start."""
    size = min(len(a), len(b))
    differ = np.nonzero(np.array(a[:size]) != np.array(b[:size]))[0]
    return int(differ[0]) if differ.size else size
