"""The prefix cache: full blocks found again by what they hold.

A block's keys and values depend on all tokens up to its end, so its name is a chain of hashes over
full blocks (vLLM's design; RadixAttention, arXiv:2312.07104, reaches the same by a tree):

    tokens      a b c d | e f g h | i j        block size 4, root = what else decides: salt, adapter
    digests     H(root, abcd) = x    H(x, efgh) = y       the partial block has none

A hash may collide, so an entry keeps its parent and its tokens, and a hit compares both. A free
block keeps its content and its name until the pool takes it for another; the one freed longest ago
goes first, and of a sequence the tail before the head. Window groups need only the last blocks of
a prefix; a prefix counts as cached when every group has all that the next query reads:

    full group     [x] [y] [z]      window group   [-] [y] [z]       both: hit of 12 tokens
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from octavo.backends.base import I32
from octavo.core.errors import InternalError
from octavo.engine.blocks import ABSENT, KvPool, Lease

DIGEST_BYTES = 16


@dataclass(slots=True)
class Chain:
    """The names of a sequence's full blocks, as far as they have been needed."""

    root: bytes
    block_size: int
    digests: list[bytes] = field(default_factory=list)
    blocks: list[bytes] = field(default_factory=list)  # the tokens of each

    def upto(self, tokens: Sequence[int], n_blocks: int) -> None:
        """Names of the first n_blocks blocks of `tokens`; what is named already is not read."""
        for index in range(len(self.digests), n_blocks):
            start = index * self.block_size
            held = np.array(tokens[start : start + self.block_size], np.int32).tobytes()
            self.blocks.append(held)
            self.digests.append(digest(self.parent(index), held))

    def parent(self, index: int) -> bytes:
        return self.digests[index - 1] if index else self.root


def digest(parent: bytes, held: bytes) -> bytes:
    """The name of a block: `held` are its tokens as little-endian int32."""
    return hashlib.blake2b(parent + held, digest_size=DIGEST_BYTES).digest()


def root_of(*parts: str) -> bytes:
    """Where chains begin: sequences with different parts (salt, adapter) share nothing."""
    text = "\0".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    parent: bytes
    held: bytes


class _Group:
    """What the blocks of one KV group hold."""

    def __init__(self) -> None:
        self.block_of: dict[bytes, int] = {}
        self.entry_of: dict[int, _Entry] = {}

    def find(self, chain: Chain, index: int) -> int:
        """The block that holds block `index` of the chain, or ABSENT."""
        block = self.block_of.get(chain.digests[index], ABSENT)
        if block == ABSENT:
            return ABSENT
        entry = self.entry_of[block]
        same = entry.parent == chain.parent(index) and entry.held == chain.blocks[index]
        return block if same else ABSENT

    def put(self, block: int, entry: _Entry) -> bool:
        """Name a block, unless its content or the block has a name already."""
        if entry.digest in self.block_of or block in self.entry_of:
            return False
        self.block_of[entry.digest] = block
        self.entry_of[block] = entry
        return True

    def forget(self, block: int) -> None:
        entry = self.entry_of.pop(block, None)
        if entry is not None:
            del self.block_of[entry.digest]


@dataclass(slots=True)
class Pin:
    """A hold on a prefix: its blocks stay until `until` (of the engine's clock)."""

    name: str
    tokens: tuple[int, ...]
    lease: Lease
    until: float
    salt: str = ""
    restored: bool = False  # from a store, not computed


class PrefixCache:
    """Names of blocks, and holds on them, over a pool that was made with `caching`."""

    def __init__(self, pool: KvPool) -> None:
        if not pool.caching:
            raise InternalError("a prefix cache needs a pool that keeps the content of free blocks")
        self.pool = pool
        self._groups = tuple(_Group() for _ in pool.groups)
        for blocks, names in zip(pool.groups, self._groups, strict=True):
            blocks.on_reuse = names.forget
        self.pins: dict[str, Pin] = {}
        self._names = count()
        self.queried = self.hit = 0  # tokens, since the start

    def chain(self, salt: str, adapter: str = "") -> Chain:
        return Chain(root_of(salt, adapter), self.pool.block_size)

    def match(self, chain: Chain, tokens: Sequence[int], limit: int) -> int:
        """Tokens of the longest cached prefix, whole blocks, at most `limit`."""
        best = 0
        runs = [0] * len(self._groups)  # cached blocks in a row, up to here
        for index in range(limit // self.pool.block_size):
            chain.upto(tokens, index + 1)
            for group, names in enumerate(self._groups):
                found = names.find(chain, index) != ABSENT
                runs[group] = runs[group] + 1 if found else 0
            if self._covers(runs, index + 1):
                best = index + 1
            elif self._broken(runs, index + 1):
                break
        return best * self.pool.block_size

    def _covers(self, runs: list[int], n_blocks: int) -> bool:
        return all(run >= n_blocks - self._first(group, n_blocks) for group, run in enumerate(runs))

    def _broken(self, runs: list[int], n_blocks: int) -> bool:
        """Whether a group that needs every block lacks one."""
        specs = self.pool.layout.groups
        return any(g.window is None and run < n_blocks for g, run in zip(specs, runs, strict=True))

    def _first(self, group: int, n_blocks: int) -> int:
        """The first block that a query behind n_blocks reads."""
        window = self.pool.layout.groups[group].window
        n_tokens = n_blocks * self.pool.block_size
        return 0 if window is None else max(0, n_tokens - window + 1) // self.pool.block_size

    def adopt(self, lease: Lease, chain: Chain, n_tokens: int) -> None:
        """Let an empty lease hold a prefix that `match` found."""
        n_blocks = n_tokens // self.pool.block_size
        table = np.full((len(self._groups), n_blocks), ABSENT, np.int32)
        for group, names in enumerate(self._groups):
            for index in range(self._first(group, n_blocks), n_blocks):
                table[group, index] = names.find(chain, index)
        lease.adopt(table)

    def publish(
        self, lease: Lease, chain: Chain, tokens: Sequence[int], first: int, stop: int
    ) -> list[int]:
        """Name the lease's blocks first .. stop, all of whose tokens have been computed. Returns
        the indices of those whose content no other block has."""
        chain.upto(tokens, stop)
        fresh: set[int] = set()
        for group, names in enumerate(self._groups):
            table: I32 = lease.table(group)
            for index in range(first, stop):
                if table[index] != ABSENT:
                    entry = _Entry(chain.digests[index], chain.parent(index), chain.blocks[index])
                    if names.put(int(table[index]), entry):
                        fresh.add(index)
        return sorted(fresh)

    def named(self, group: int, block: int) -> bool:
        return block in self._groups[group].entry_of

    def pin(self, name: str, salt: str, tokens: Sequence[int], until: float) -> Pin | None:
        """Hold the cached prefix of `tokens`, whole blocks, until a time; None when not all of it
        is cached. A pin of the same name is replaced."""
        chain = self.chain(salt)
        n_tokens = len(tokens) // self.pool.block_size * self.pool.block_size
        if n_tokens == 0 or self.match(chain, tokens, n_tokens) < n_tokens:
            return None
        lease = self.pool.lease()
        self.adopt(lease, chain, n_tokens)
        self.unpin(name)
        self.pins[name] = Pin(name, tuple(tokens[:n_tokens]), lease, until, salt)
        return self.pins[name]

    def first_blocks(self, n_blocks: int) -> tuple[int, ...]:
        """Per group, the first of n_blocks blocks that a query behind them reads."""
        return tuple(self._first(group, n_blocks) for group in range(len(self._groups)))

    def restore(
        self, salt: str, tokens: Sequence[int], write: Callable[[int, list[int]], None]
    ) -> bool:
        """Name blocks whose content `write` (group, blocks) puts there; False, and nothing is
        changed, when too few are free. They are free and found, until others need them."""
        n_blocks = len(tokens) // self.pool.block_size
        first, lease = self.first_blocks(n_blocks), self.pool.lease()
        try:
            if not lease.occupy(first, n_blocks):
                return False
            for group, start in enumerate(first):
                write(group, lease.table(group)[start:].tolist())
            self.publish(lease, self.chain(salt), tokens, 0, n_blocks)
        finally:
            lease.release()
        return True

    def unpin(self, name: str) -> bool:
        pin = self.pins.pop(name, None)
        if pin is not None:
            pin.lease.release()
        return pin is not None

    def expire(self, now: float) -> None:
        for name in [pin.name for pin in self.pins.values() if pin.until <= now]:
            self.unpin(name)

    @property
    def pinned_blocks(self) -> tuple[int, ...]:
        """Per group, the blocks that pins hold."""
        held: list[set[int]] = [set() for _ in self._groups]
        for pin in self.pins.values():
            for group, blocks in enumerate(held):
                blocks.update(int(b) for b in pin.lease.table(group) if b != ABSENT)
        return tuple(len(blocks) for blocks in held)

    def clear(self) -> None:
        """Forget every name; blocks in use stay in use."""
        for name in list(self.pins):
            self.unpin(name)
        for names in self._groups:
            names.block_of.clear()
            names.entry_of.clear()

    def check(self) -> None:
        """Both books of each group agree. Raises InternalError."""
        for group, names in enumerate(self._groups):
            back = {block: entry.digest for block, entry in names.entry_of.items()}
            if {digest_: block for block, digest_ in back.items()} != names.block_of:
                raise InternalError(f"group {group}: names and blocks differ")
            for entry in names.entry_of.values():
                if digest(entry.parent, entry.held) != entry.digest:
                    raise InternalError(f"group {group}: a block's name is not its content's")
