"""The prefix store behind a thread of its own: files and checksums never keep a step waiting.

What is in blocks is copied out of them, and into them, on the engine's thread, between two steps:
at the speed of memory, and nobody else can touch the blocks meanwhile. Everything slower (hashing,
the disk) is a job of the other thread, and jobs run one after the other, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from octavo.backends.base import Executor
from octavo.engine.prefix import Pin, PrefixCache
from octavo.engine.store import Header, PrefixStore, Stored

T = TypeVar("T")


class Shelf:
    """The store, and the executor whose blocks go there and come from there. Only the engine's
    thread calls; `wake` is called on the other one, whenever a job is done."""

    def __init__(self, store: PrefixStore, executor: Executor, wake: Callable[[], None]) -> None:
        self.store, self._executor, self._wake = store, executor, wake
        self._thread: ThreadPoolExecutor | None = None
        self._saves: dict[tuple[str, str], Future[None]] = {}  # by salt and name
        self.saving: dict[str, list[Future[None]]] = {}  # by request
        self._loads: dict[str, Future[list[bytes] | None]] = {}  # by file

    def held(self) -> dict[tuple[str, str], Stored]:
        return {(entry.header.salt, entry.header.name): entry for entry in self.store.stored()}

    def save(self, request_id: str, pin: Pin, ttl: float) -> None:
        """Have a pin's blocks written, unless just these are stored; `request_id` waits for it."""
        layout = self._executor.layout
        tables = [pin.lease.table(group) for group in range(len(layout.groups))]
        firsts = [int((table < 0).sum()) for table in tables]
        pairs = zip(firsts, tables, layout.block_bytes, strict=True)
        blocks = [(first, (table.size - first) * size) for first, table, size in pairs]
        header = self.store.header(pin.name, pin.salt, pin.tokens, ttl, layout.block_size, blocks)
        if self.store.has(header):
            return
        read = self._executor.read_blocks
        held = [table[first:].tolist() for first, table in zip(firsts, tables, strict=True)]
        data = [read(group, ids) for group, ids in enumerate(held)]
        job = self._save(header, data)
        self.saving.setdefault(request_id, []).append(job)

    def _save(self, header: Header, data: Sequence[bytes]) -> Future[None]:
        job = self._run(lambda: self.store.save(header, data))
        self._saves[header.salt, header.name] = job
        return job

    def saved(self, request_id: str) -> bool:
        """Whether everything that a request had to be kept is on disk. Raises what a write failed
        of, other than the disk."""
        jobs = self.saving.get(request_id, ())
        if not all(job.done() for job in jobs):
            return False
        for job in self.saving.pop(request_id, ()):
            job.result()
        self._saves = {key: job for key, job in self._saves.items() if not job.done()}
        return True

    def load(self, entry: Stored) -> Future[list[bytes] | None]:
        """What is in a stored prefix, whole and checked, or None; read once for all who ask."""
        key = str(entry.path)
        job = self._loads.get(key)
        if job is None:
            job = self._loads[key] = self._run(lambda: self.store.load(entry))
        return job

    def put(self, entry: Stored, data: list[bytes], cache: PrefixCache) -> bool:
        """Put a stored prefix into free blocks, which then have their names."""
        header, layout = entry.header, self._executor.layout
        first = cache.first_blocks(len(header.tokens) // layout.block_size)
        counts = [len(header.tokens) // layout.block_size - start for start in first]
        sizes = tuple(n * size for n, size in zip(counts, layout.block_bytes, strict=True))
        if (header.block_size, header.first, header.sizes) != (layout.block_size, first, sizes):
            return False

        def write(group: int, blocks: list[int]) -> None:
            self._executor.write_blocks(group, blocks, data[group])

        return cache.restore(header.salt, header.tokens, write)

    def forget(self, entry: Stored) -> None:
        """Nobody waits for this one's data any more."""
        self._loads.pop(str(entry.path), None)

    def drop(self, salt: str, name: str) -> bool:
        """Remove a stored prefix; whether there was one. One that is being written comes first."""
        if (job := self._saves.get((salt, name))) is not None:
            job.result()
        return self.store.drop(salt, name)

    def _run(self, what: Callable[[], T]) -> Future[T]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "octavo-store")
        job = self._thread.submit(what)
        job.add_done_callback(lambda _: self._wake())
        return job
