from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from octavo.core.errors import InternalError
from octavo.engine.blocks import ABSENT, BlockPool, Copy, KvPool, Lease
from support.fakes import layout_of

BLOCK = 4


def pool_of(*windows: int | None, blocks: int = 8, max_blocks: int = 16) -> KvPool:
    return KvPool(layout_of(windows, BLOCK), (blocks,) * len(windows), max_blocks)


def test_the_block_freed_last_is_taken_first():
    pool = BlockPool(4, BLOCK)
    first, second = pool.take(), pool.take()
    pool.drop(first)
    pool.drop(second)
    assert [pool.take(), pool.take()] == [second, first]


def test_misuse_of_a_block_is_caught():
    pool = BlockPool(1, BLOCK)
    block = pool.take()
    with pytest.raises(InternalError, match="empty pool"):
        pool.take()
    pool.drop(block)
    with pytest.raises(InternalError, match="freed twice"):
        pool.drop(block)
    with pytest.raises(InternalError, match="while free"):
        pool.share(block)


def test_check_finds_a_leak_and_a_stray_reference():
    pool = BlockPool(2, BLOCK)
    block = pool.take()
    with pytest.raises(InternalError, match="1 references, 0 in tables"):
        pool.check(Counter())
    pool.check(Counter([block]))
    with pytest.raises(InternalError):
        pool.check(Counter([block, block]))


def test_extend_takes_blocks_only_when_they_begin():
    pool = pool_of(None)
    lease = pool.lease()
    for tokens, blocks in ((1, 1), (3, 1), (1, 2), (4, 3)):
        assert lease.extend(tokens)
        assert lease.table(0).size == blocks
    assert lease.n_tokens == 9


def test_extend_is_all_or_nothing_over_groups():
    pool = KvPool(layout_of((None, None), BLOCK), (8, 2), 16)
    lease = pool.lease()
    assert not lease.extend(9)
    assert lease.n_tokens == 0
    assert [group.free for group in pool.groups] == [8, 2]
    assert lease.extend(8)


def test_a_window_group_gives_back_what_has_slid_out():
    """The picture at the head of the module: window 6, block size 4, token 16 comes."""
    pool = pool_of(6, None)
    lease = pool.lease()
    assert lease.extend(13)
    assert lease.extend(3)
    assert lease.extend(1)  # the query at 16 reads 11 .. 16
    assert lease.table(0).tolist()[:2] == [ABSENT, ABSENT]
    assert (lease.table(0)[2:] != ABSENT).all()
    assert (lease.table(1) != ABSENT).all()
    assert [group.free for group in pool.groups] == [5, 3]
    pool.check()


def test_a_long_answer_fits_into_a_small_window_pool():
    pool = pool_of(6, blocks=3, max_blocks=100)
    lease = pool.lease()
    for _ in range(400):
        assert lease.extend(1)
    pool.check()
    assert pool.fits(400, 1)
    assert not pool.fits(400, 5)


def always_extends(window: int, chunk: int, blocks: int) -> bool:
    """Whether chunks of that size find blocks in an empty pool, wherever they begin."""
    for offset in range(BLOCK):
        with pool_of(window, blocks=blocks, max_blocks=30).lease() as lease:
            sizes = [1] * offset + [chunk] * (60 // chunk)
            if not all(lease.extend(size) for size in sizes):
                return False
    return True


@pytest.mark.parametrize("window", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("chunk", [1, 2, 4, 7])
def test_fits_is_exact(window, chunk):
    for blocks in range(1, 7):
        predicted = pool_of(window, blocks=blocks, max_blocks=30).fits(100, chunk)
        assert predicted == always_extends(window, chunk, blocks)


def test_fork_copies_the_tail_on_write_once():
    pool = pool_of(None)
    parent = pool.lease()
    parent.extend(6)
    child = parent.fork()
    assert child.table(0).tolist() == parent.table(0).tolist()
    assert child.extend(1)
    shared, tail = parent.table(0).tolist()
    assert child.take_copies() == [Copy(0, tail, int(child.table(0)[1]))]
    assert child.table(0)[0] == shared
    assert parent.extend(1)
    assert parent.take_copies() == []  # alone on its tail again
    pool.check()


def test_fork_at_a_block_boundary_copies_nothing():
    pool = pool_of(None)
    parent = pool.lease()
    parent.extend(8)
    child = parent.fork()
    assert child.extend(1)
    assert parent.extend(1)
    assert child.take_copies() == parent.take_copies() == []
    assert child.table(0)[2] != parent.table(0)[2]


def test_truncate_then_write_into_a_shared_block_copies_it():
    pool = pool_of(None)
    parent = pool.lease()
    parent.extend(8)
    child = parent.fork()
    child.truncate(6)
    assert child.extend(1)
    assert [copy.source for copy in child.take_copies()] == [int(parent.table(0)[1])]


def test_truncate_cannot_bring_back_a_window():
    pool = pool_of(4)
    lease = pool.lease()
    lease.extend(12)
    lease.extend(1)  # gives back the first two blocks
    with pytest.raises(InternalError, match="slid out"):
        lease.truncate(6)
    lease.truncate(12)
    lease.truncate(0)
    assert pool.groups[0].free == 8


def test_truncate_beyond_the_end_is_our_bug():
    with pytest.raises(InternalError, match="truncate to 1 of 0"):
        pool_of(None).lease().truncate(1)


def test_fork_with_a_pending_copy_is_our_bug():
    pool = pool_of(None)
    parent = pool.lease()
    parent.extend(2)
    child = parent.fork()
    child.extend(1)
    with pytest.raises(InternalError, match="before its copies"):
        child.fork()


def test_more_tokens_than_a_table_holds_is_our_bug():
    with pytest.raises(InternalError, match="more than a block table"):
        pool_of(None, max_blocks=1).lease().extend(5)


def test_a_lease_releases_itself_and_may_do_so_twice():
    pool = pool_of(None)
    with pool.lease() as lease:
        lease.extend(5)
    lease.release()
    assert pool.groups[0].free == 8
    pool.check()


class Leases(RuleBasedStateMachine):
    """Random extend, truncate, fork, release against what each lease must be able to read.

    `content` models the cache: a cell holds (writer, position, value); a lease must always find in
    its table what it wrote or inherited, whatever the others do.
    """

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.windows = (None, 5)
        self.pool = pool_of(*self.windows, blocks=10, max_blocks=8)
        self.cells: list[dict[tuple[int, int], int]] = [{}, {}]
        self.written: dict[Lease, list[int]] = {}
        self.values = 0

    @rule(target=live)
    def open(self) -> Lease:
        lease = self.pool.lease()
        self.written[lease] = []
        return lease

    @rule(lease=live, count=st.integers(1, 9))
    def extend(self, lease: Lease, count: int) -> None:
        if lease not in self.written or lease.n_tokens + count > 8 * BLOCK:
            return
        before = lease.n_tokens
        if not lease.extend(count):
            assert lease.n_tokens == before
            return
        for copy in lease.take_copies():
            for offset in range(BLOCK):
                cells = self.cells[copy.group]
                cells[copy.target, offset] = cells.get((copy.source, offset), -1)
        for position in range(before, before + count):
            self.values += 1
            self.written[lease].append(self.values)
            for group in range(2):
                cell = int(lease.table(group)[position // BLOCK]), position % BLOCK
                self.cells[group][cell] = self.values

    @rule(target=live, lease=live)
    def fork(self, lease: Lease) -> object:
        if lease not in self.written:
            return multiple()
        twin = lease.fork()
        self.written[twin] = list(self.written[lease])
        return twin

    @rule(lease=live, back=st.integers(0, 3))
    def roll_back(self, lease: Lease, back: int) -> None:
        """As far as the blocks of the window group allow."""
        if lease not in self.written:
            return
        target = max(0, lease.n_tokens - back)
        gone = int((lease.table(1) == ABSENT).sum())
        if target and max(0, target - 5 + 1) // BLOCK < gone:
            with pytest.raises(InternalError):
                lease.truncate(target)
            return
        lease.truncate(target)
        del self.written[lease][target:]

    @rule(lease=live)
    def release(self, lease: Lease) -> None:
        lease.release()
        self.written.pop(lease, None)

    @invariant()
    def readable(self) -> None:
        self.pool.check()
        for lease, values in self.written.items():
            for group, window in enumerate(self.windows):
                first = 0 if window is None else max(0, len(values) - window + 1)
                for position in range(first, len(values)):
                    cell = int(lease.table(group)[position // BLOCK]), position % BLOCK
                    assert self.cells[group][cell] == values[position]

    def teardown(self) -> None:
        for lease in list(self.written):
            lease.release()
        self.pool.check()
        assert [group.free for group in self.pool.groups] == [10, 10]


Leases.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeases = Leases.TestCase
