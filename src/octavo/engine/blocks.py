"""Paged KV: blocks with reference counts, and leases that own them.

The idea is that of PagedAttention (arXiv:2309.06180). A sequence's keys and values lie in blocks of
`block_size` tokens; its block table says which. Layers with equal windows form a group with a pool
of its own, so that window layers give back the blocks that no later query reads, whenever a new
block is due:

    window group, window 6, block size 4, token 16 comes         .  = token    | block |

        | . . . . | . . . . | . . . . | . . . . | .       |   its query reads 11 .. 16:
          slid out  slid out                                  table = [-1, -1, 7, 2, 5]

With `caching`, a free block keeps its content until it is taken, the one freed longest ago first,
and `prefix.PrefixCache` knows what each holds.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from types import TracebackType
from typing import NamedTuple

import numpy as np

from octavo.backends.base import I32, KvLayout
from octavo.core.errors import InternalError

ABSENT = -1


class Copy(NamedTuple):
    """A whole block to copy within a group before the next step writes."""

    group: int
    source: int
    target: int


class BlockPool:
    """The blocks of one KV group. The block freed last is taken first, since its pages are warm;
    with `caching` the one freed first, since what it holds is wanted least."""

    def __init__(self, n_blocks: int, block_size: int, caching: bool = False) -> None:
        self.n_blocks, self.block_size, self.caching = n_blocks, block_size, caching
        self._refs = [0] * n_blocks
        self._free = OrderedDict.fromkeys(range(n_blocks))  # the next to be taken is the first
        self.on_reuse: Callable[[int], None] | None = None  # a block's content is about to change

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

    @property
    def queue(self) -> list[int]:
        """Free blocks in the order in which they will be taken."""
        return list(self._free)

    def refs(self, block: int) -> int:
        """How many leases hold the block."""
        return self._refs[block]

    def take(self) -> int:
        """A block of one's own. The caller has looked at `free`."""
        if not self._free:
            raise InternalError("a block was taken from an empty pool")
        block, _ = self._free.popitem(last=False)
        self._refs[block] = 1
        self.rewrite(block)
        return block

    def rewrite(self, block: int) -> None:
        """The block's content is about to change."""
        if self.on_reuse is not None:
            self.on_reuse(block)

    def share(self, block: int) -> None:
        """One more holder of a held block."""
        if self._refs[block] == 0:
            raise InternalError(f"block {block} was shared while free")
        self._refs[block] += 1

    def revive(self, block: int) -> None:
        """One more holder of a block that may be free, for what it holds."""
        if self._refs[block] == 0:
            del self._free[block]
        self._refs[block] += 1

    def drop(self, block: int) -> None:
        """One holder less; the last frees it."""
        if self._refs[block] == 0:
            raise InternalError(f"block {block} was freed twice")
        self._refs[block] -= 1
        if self._refs[block] == 0:
            self._free[block] = None
            if not self.caching:
                self._free.move_to_end(block, last=False)

    def check(self, held: Counter[int]) -> None:
        """`held` counts each block in all tables. Raises InternalError where the books differ."""
        free = self._free
        for block, refs in enumerate(self._refs):
            if refs != held[block] or (refs == 0) != (block in free):
                raise InternalError(
                    f"block {block}: {refs} references, {held[block]} in tables,"
                    f" {'free' if block in free else 'not free'}"
                )


class KvPool:
    """One `BlockPool` per KV group, and the leases over all of them.

    max_blocks bounds the block table of a sequence (the context, in blocks).
    """

    def __init__(
        self, layout: KvLayout, kv_blocks: Sequence[int], max_blocks: int, caching: bool = False
    ) -> None:
        self.layout, self.max_blocks, self.caching = layout, max_blocks, caching
        self.block_size = layout.block_size
        self.groups = tuple(BlockPool(size, layout.block_size, caching) for size in kv_blocks)
        self._leases: set[Lease] = set()
        self._stamps = count()

    def lease(self) -> Lease:
        """A lease of no tokens yet."""
        table = np.full((len(self.groups), self.max_blocks), ABSENT, np.int32)
        return self._register(Lease(self, table))

    def _register(self, lease: Lease) -> Lease:
        self._leases.add(lease)
        return lease

    def fits(self, n_tokens: int, chunk: int) -> bool:
        """Whether one sequence of `n_tokens`, computed in chunks, fits into empty pools."""
        needs = (self._most_blocks(g, n_tokens, chunk) for g in range(len(self.groups)))
        enough = all(need <= pool.n_blocks for need, pool in zip(needs, self.groups, strict=True))
        return enough and n_tokens <= self.max_blocks * self.block_size

    def _most_blocks(self, group: int, n_tokens: int, chunk: int) -> int:
        whole = -(-n_tokens // self.block_size)
        window = self.layout.groups[group].window
        if window is None:
            return whole
        span = window - 1 + min(chunk, n_tokens)  # keys that a chunk reads, its own included
        return min(whole, -(-(span - 1) // self.block_size) + 1)

    def check(self) -> None:
        """Every invariant of pools and tables. Raises InternalError; cheap enough when idle."""
        for lease in self._leases:
            lease.check()
        for group, pool in enumerate(self.groups):
            held: Counter[int] = Counter()
            for lease in self._leases:
                held.update(int(b) for b in lease.table(group) if b != ABSENT)
            pool.check(held)


class Lease:
    """A sequence's hold on its blocks in every group; releases them as a context manager.

    Made by `KvPool.lease` and `Lease.fork`. `n_tokens` are covered by blocks. A block that another
    lease also holds is never written: `extend` replaces it and asks for a copy (`take_copies`).
    """

    def __init__(self, pool: KvPool, table: I32, n_tokens: int = 0) -> None:
        self._pool = pool
        self._table = table  # [group, block index in the sequence]
        self._n_tokens = n_tokens
        self._n_blocks = -(-n_tokens // pool.block_size)
        self._first = [0] * len(pool.groups)  # blocks before it have slid out of the window
        self._room = 0  # tokens that need neither a block nor a look at the tail's holders
        self._copies: list[Copy] = []
        self.stamp = next(pool._stamps)  # changes with the table; never the same for two leases

    @property
    def n_tokens(self) -> int:
        return self._n_tokens

    @property
    def blocks(self) -> I32:
        """All tables: int32 [groups, blocks of the sequence], a view, -1 where slid out."""
        return self._table[:, : self._n_blocks]

    def table(self, group: int) -> I32:
        """The group's block ids in order: int32 [blocks], a view, -1 where slid out."""
        return self._table[group, : self._n_blocks]

    def extend(self, n_tokens: int) -> bool:
        """Cover n_tokens more, or change nothing but what has slid out and return False."""
        if n_tokens > self._room:
            return self._extend_blocks(n_tokens)
        self._room -= n_tokens
        self._n_tokens += n_tokens
        return True

    def _extend_blocks(self, n_tokens: int) -> bool:
        stop = self._n_tokens + n_tokens
        n_blocks = -(-stop // self._pool.block_size)
        if n_blocks > self._pool.max_blocks:
            raise InternalError(f"{stop} tokens are more than a block table holds")
        self._slide()
        fresh = n_blocks - self._n_blocks
        shared = [self._tail_is_shared(group) for group in range(len(self._first))]
        for pool, tail in zip(self._pool.groups, shared, strict=True):
            if fresh + tail > pool.free:
                return False
        for group, pool in enumerate(self._pool.groups):
            if shared[group]:
                self._own_tail(group)
            elif self._n_tokens % pool.block_size:
                pool.rewrite(int(self._table[group, self._n_blocks - 1]))
            for index in range(self._n_blocks, n_blocks):
                self._table[group, index] = pool.take()
        self._n_tokens, self._n_blocks = stop, n_blocks
        self._room = n_blocks * self._pool.block_size - stop
        return True

    def _slide(self) -> None:
        """Free the blocks that no query from position n_tokens on reads."""
        self.stamp = next(self._pool._stamps)
        for group, spec in enumerate(self._pool.layout.groups):
            if spec.window is not None:
                first = self._first_needed(spec.window, self._n_tokens)
                self._drop(group, self._first[group], first)
                self._first[group] = max(first, self._first[group])

    def _first_needed(self, window: int, position: int) -> int:
        return max(0, position - window + 1) // self._pool.block_size

    def _tail_is_shared(self, group: int) -> bool:
        """Whether the next write goes into a block that another lease holds too."""
        if self._n_tokens % self._pool.block_size == 0:
            return False
        return self._pool.groups[group].refs(int(self._table[group, self._n_blocks - 1])) > 1

    def _own_tail(self, group: int) -> None:
        pool, index = self._pool.groups[group], self._n_blocks - 1
        source, target = int(self._table[group, index]), pool.take()
        pool.drop(source)
        self._table[group, index] = target
        self._copies.append(Copy(group, source, target))

    @property
    def copies_due(self) -> bool:
        return bool(self._copies)

    def take_copies(self) -> list[Copy]:
        """The copies that must be done, in order, before the next write; forgets them."""
        copies, self._copies = self._copies, []
        return copies

    def truncate(self, n_tokens: int) -> None:
        """Forget all but the first n_tokens (roll-back, or 0 for a new start)."""
        if n_tokens > self._n_tokens:
            raise InternalError(f"truncate to {n_tokens} of {self._n_tokens} tokens")
        keep = -(-n_tokens // self._pool.block_size)
        for group, spec in enumerate(self._pool.layout.groups):
            if n_tokens and spec.window is not None:
                self._check_window(group, self._first_needed(spec.window, n_tokens))
            self._drop(group, max(keep, self._first[group]), self._n_blocks)
            self._first[group] = min(self._first[group], keep)
        self._n_tokens, self._n_blocks, self._room = n_tokens, keep, 0
        self.stamp = next(self._pool._stamps)
        self._copies = [] if n_tokens == 0 else self._copies

    def _check_window(self, group: int, needed: int) -> None:
        if needed < self._first[group]:
            raise InternalError(f"truncate needs block {needed}, which has slid out of its window")

    def adopt(self, table: I32) -> None:
        """Hold whole blocks that are computed already: int32 [groups, blocks], -1 where a window
        group needs none. The lease is empty before."""
        if self._n_tokens:
            raise InternalError("a lease adopted a prefix while it held tokens")
        n_blocks = table.shape[1]
        for group, pool in enumerate(self._pool.groups):
            held = [int(block) for block in table[group] if block != ABSENT]
            for block in held:
                pool.revive(block)
            self._first[group] = n_blocks - len(held)
        self._table[:, :n_blocks] = table
        self._n_blocks, self._n_tokens = n_blocks, n_blocks * self._pool.block_size
        self._room = 0
        self.stamp = next(self._pool._stamps)

    def occupy(self, first: Sequence[int], n_blocks: int) -> bool:
        """Hold n_blocks whole fresh blocks, of each group only those from first[group] on, or
        change nothing and return False. The lease is empty before."""
        if self._n_tokens:
            raise InternalError("a lease that holds tokens can't be given others")
        for start, pool in zip(first, self._pool.groups, strict=True):
            if n_blocks - start > pool.free:
                return False
        for group, pool in enumerate(self._pool.groups):
            for index in range(first[group], n_blocks):
                self._table[group, index] = pool.take()
        self._first, self._room = list(first), 0
        self._n_blocks, self._n_tokens = n_blocks, n_blocks * self._pool.block_size
        self.stamp = next(self._pool._stamps)
        return True

    def fork(self) -> Lease:
        """A second lease on the same blocks. Either copies a block before it writes there."""
        if self._copies:
            raise InternalError("a lease was forked before its copies were taken")
        twin = Lease(self._pool, self._table.copy(), self._n_tokens)
        twin._first = list(self._first)
        self._room = 0  # the tail is shared from here on
        for group, pool in enumerate(self._pool.groups):
            for block in self._table[group, self._first[group] : self._n_blocks].tolist():
                pool.share(block)
        return self._pool._register(twin)

    def release(self) -> None:
        """Give everything back. May be called again."""
        self.truncate(0)
        self._pool._leases.discard(self)

    def _drop(self, group: int, start: int, stop: int) -> None:
        """Give back the blocks start .. stop, last first, so that the first is taken next."""
        if start >= stop:
            return
        row, pool = self._table[group], self._pool.groups[group]
        for block in reversed(row[start:stop].tolist()):
            pool.drop(block)
        row[start:stop] = ABSENT

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def check(self) -> None:
        """The table holds a block exactly where a later query may read or a write may come."""
        if self._n_blocks != -(-self._n_tokens // self._pool.block_size):
            raise InternalError(f"{self._n_blocks} blocks for {self._n_tokens} tokens")
        for group, row in enumerate(self._table):
            held = row[self._first[group] : self._n_blocks]
            if (held == ABSENT).any() or (row != ABSENT).sum() != held.size:
                raise InternalError(f"group {group}: the table has a hole or a stale block")
            if len(set(held.tolist())) != held.size:
                raise InternalError(f"group {group}: a block stands twice in one table")
