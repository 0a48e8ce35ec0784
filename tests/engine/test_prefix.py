from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from octavo.core.errors import InternalError
from octavo.engine import prefix
from octavo.engine.blocks import ABSENT, KvPool, Lease
from octavo.engine.prefix import Chain, PrefixCache, root_of
from support.fakes import layout_of

BLOCK = 4


def cache_of(*windows: int | None, blocks: int = 10, max_blocks: int = 16) -> PrefixCache:
    layout = layout_of(windows or (None,), BLOCK)
    return PrefixCache(KvPool(layout, (blocks,) * len(windows or (None,)), max_blocks, True))


def begin(cache: PrefixCache, tokens: list[int], salt: str = "") -> tuple[Lease, Chain, int]:
    """A lease over `tokens`, whatever is cached of them reused, the rest computed and published."""
    chain, lease = cache.chain(salt), cache.pool.lease()
    hit = cache.match(chain, tokens, len(tokens) - 1)
    if hit:
        cache.adopt(lease, chain, hit)
    assert lease.extend(len(tokens) - hit)
    cache.publish(lease, chain, tokens, hit // BLOCK, len(tokens) // BLOCK)
    return lease, chain, hit


def test_the_golden_vector_of_paged_attention():
    """vLLM's documented example: block 4, 10 blocks, three requests."""
    cache = cache_of()
    pool = cache.pool.groups[0]
    shared = list(range(100, 112))
    first, chain, _ = begin(cache, [*shared, 1, 2, 3])
    first.extend(3)
    tokens = [*shared, 1, 2, 3, 4, 5, 6]
    cache.publish(first, chain, tokens, 3, 4)
    assert first.table(0).tolist() == [0, 1, 2, 3, 4]
    second, _, hit = begin(cache, [*shared[:10], 7, 8, 9, 10])
    assert (hit, second.table(0).tolist()) == (8, [0, 1, 5, 6])
    first.release()
    second.release()
    assert pool.queue == [7, 8, 9, 4, 3, 2, 6, 5, 1, 0]
    chain, third = cache.chain(""), cache.pool.lease()
    tokens = [*shared, *range(200, 217)]
    hit = cache.match(chain, tokens, 28)
    cache.adopt(third, chain, hit)
    assert (hit, pool.queue) == (12, [7, 8, 9, 4, 3, 6, 5])
    third.extend(29 - hit)
    assert third.table(0).tolist()[3:] == [7, 8, 9, 4, 3]
    cache.check()


def test_another_salt_or_adapter_never_hits():
    cache = cache_of()
    tokens = list(range(9))
    begin(cache, tokens, "a")
    assert cache.match(cache.chain("a"), tokens, 8) == 8
    assert cache.match(cache.chain("b"), tokens, 8) == 0
    assert cache.match(cache.chain("a", "adapter"), tokens, 8) == 0
    assert root_of("ab", "c") != root_of("a", "bc")


def test_a_hash_that_collides_is_no_hit(monkeypatch):
    monkeypatch.setattr(prefix, "digest", lambda parent, held: b"same")
    cache = cache_of()
    begin(cache, [1, 2, 3, 4, 5])
    assert cache.match(cache.chain(""), [1, 2, 3, 4, 5], 4) == 4
    assert cache.match(cache.chain(""), [1, 2, 3, 9, 5], 4) == 0


def test_a_block_taken_for_another_is_forgotten():
    cache = cache_of(blocks=3)
    lease, _, _ = begin(cache, list(range(12)))
    lease.release()
    begin(cache, [50, 51])[0].release()  # takes the tail, the last of the first sequence
    assert cache.match(cache.chain(""), list(range(12)), 12) == 8


def test_writing_into_a_named_block_takes_its_name():
    """A roll-back into a full block, then other tokens."""
    cache = cache_of()
    lease, _, _ = begin(cache, list(range(8)))
    lease.truncate(6)
    lease.extend(1)
    assert cache.match(cache.chain(""), list(range(8)), 8) == 4
    cache.check()


def test_a_window_group_needs_only_the_last_blocks():
    cache = cache_of(None, 5)
    tokens = list(range(20))
    lease, chain, _ = begin(cache, tokens[:16])
    lease.extend(1)  # the window group gives back its first blocks
    cache.publish(lease, chain, tokens, 4, 4)
    other = cache.pool.lease()
    fresh = cache.chain("")
    assert cache.match(fresh, tokens, 16) == 16
    cache.adopt(other, fresh, 16)
    assert other.table(1).tolist()[:3] == [ABSENT, ABSENT, ABSENT]
    assert (other.table(0) != ABSENT).all()
    assert other.extend(3)
    cache.pool.check()


def test_a_window_block_that_is_gone_shortens_the_hit():
    cache = cache_of(None, 5, blocks=6)
    lease, _, _ = begin(cache, list(range(16)))
    lease.release()
    gone = cache._groups[1].block_of[cache_chain(list(range(16))).digests[3]]
    while gone in cache.pool.groups[1].queue:
        cache.pool.groups[1].take()
    assert cache.match(cache.chain(""), list(range(16)), 16) == 12


def cache_chain(tokens: list[int]) -> Chain:
    chain = Chain(root_of("", ""), BLOCK)
    chain.upto(tokens, len(tokens) // BLOCK)
    return chain


def test_a_pin_outlives_pressure_and_ends_in_time():
    cache = cache_of(blocks=4)
    begin(cache, list(range(8)))[0].release()
    assert cache.pin("book", "", list(range(9)), until=5.0) is not None
    for start in range(20, 60, 8):
        begin(cache, list(range(start, start + 8)))[0].release()
    assert cache.match(cache.chain(""), list(range(8)), 8) == 8
    assert cache.pinned_blocks == (2,)
    cache.expire(4.9)
    assert "book" in cache.pins
    cache.expire(5.0)
    assert cache.pinned_blocks == (0,)
    assert cache.pool.groups[0].free == 4


def test_what_is_not_cached_whole_is_not_pinned():
    cache = cache_of()
    begin(cache, list(range(8)))
    assert cache.pin("a", "", list(range(12)), 1.0) is None
    assert cache.pin("a", "", [1, 2], 1.0) is None
    assert cache.pins == {}


def test_clear_forgets_everything_but_what_is_in_use():
    cache = cache_of()
    lease, _, _ = begin(cache, list(range(8)))
    cache.pin("a", "", list(range(8)), 1.0)
    cache.clear()
    assert cache.match(cache.chain(""), list(range(8)), 8) == 0
    assert cache.pool.groups[0].free == 8
    lease.release()
    cache.pool.check()


def test_check_finds_a_wrong_name():
    cache = cache_of()
    begin(cache, list(range(4)))
    [entry] = cache._groups[0].block_of
    cache._groups[0].block_of[b"other"] = cache._groups[0].block_of.pop(entry)
    with pytest.raises(InternalError, match="differ"):
        cache.check()


def test_a_pool_that_keeps_nothing_is_refused():
    with pytest.raises(InternalError, match="keeps the content"):
        PrefixCache(KvPool(layout_of((None,), BLOCK), (4,), 4))


class Caching(RuleBasedStateMachine):
    """Random sequences over a tiny alphabet, against what was really written to each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = (None, 6)
        self.cache = cache_of(*self.windows, blocks=9, max_blocks=8)
        self.cells: list[dict[int, list[int]]] = [{}, {}]  # block -> all tokens up to its end
        self.live: list[tuple[Lease, list[int]]] = []

    def _write(self, lease: Lease, tokens: list[int], start: int) -> None:
        for group in range(2):
            for index in range(start // BLOCK, -(-len(tokens) // BLOCK)):
                block = int(lease.table(group)[index])
                self.cells[group][block] = tokens[: (index + 1) * BLOCK]

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=28), salt=st.sampled_from("ab"))
    def sequence(self, tokens: list[int], salt: str) -> None:
        marked = [*tokens[:1], ord(salt), *tokens[1:]]  # the salt is content of its own here
        chain, lease = self.cache.chain(salt), self.cache.pool.lease()
        hit = self.cache.match(chain, marked, len(marked) - 1)
        assert hit % BLOCK == 0
        assert hit < len(marked)
        if hit:
            self.cache.adopt(lease, chain, hit)
        for group, window in enumerate(self.windows):
            first = 0 if window is None else max(0, hit - window + 1) // BLOCK
            for index in range(first, hit // BLOCK):
                block = int(lease.table(group)[index])
                assert self.cells[group][block] == marked[: (index + 1) * BLOCK]
        if not lease.extend(len(marked) - hit):
            lease.release()
            return
        self._write(lease, marked, hit)
        self.cache.publish(lease, chain, marked, hit // BLOCK, len(marked) // BLOCK)
        self.live.append((lease, marked))

    @rule(index=st.integers(0, 20))
    def finish(self, index: int) -> None:
        if self.live:
            self.live.pop(index % len(self.live))[0].release()

    @rule(index=st.integers(0, 20), back=st.integers(1, 3))
    def roll_back_and_rewrite(self, index: int, back: int) -> None:
        if not self.live:
            return
        lease, tokens = self.live[index % len(self.live)]
        start = len(tokens) - back
        slid_out = int((lease.table(1) == ABSENT).sum())
        if start < 1 or max(0, start - 6 + 1) // BLOCK < slid_out:
            return
        lease.truncate(start)
        if lease.extend(1):
            lease.take_copies()
            tokens[start:] = [99]
            self._write(lease, tokens, start)
        else:
            del tokens[start:]

    @rule(index=st.integers(0, 20), name=st.sampled_from("xy"))
    def pin(self, index: int, name: str) -> None:
        if self.live:
            tokens = self.live[index % len(self.live)][1]
            self.cache.pin(name, chr(tokens[1]) if len(tokens) > 1 else "", tokens, 1.0)

    @rule()
    def expire(self) -> None:
        self.cache.expire(2.0)

    @invariant()
    def sound(self) -> None:
        self.cache.check()
        self.cache.pool.check()


Caching.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestCaching = Caching.TestCase
