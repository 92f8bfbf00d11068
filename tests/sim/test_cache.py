"""The cache of runs holds what a cache of single blocks would: the mock engine's own, which counts as vLLM does."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.sim.cache import BlockCache, Run
from workers.mock_blocks import BlockPool, Holding


def hashes(tokens: list[int]) -> list[int]:
    """Chained, for blocks of one token."""
    return list(accumulate(tokens, lambda parent, token: parent * 31 + token + 1, initial=7))[1:]


@dataclass(eq=False)
class Held:
    """One prompt in both caches. ``private``: blocks that are in no run yet."""

    tokens: list[int]
    blocks: list[int]
    holding: Holding
    run: Run | None
    sealed: int
    private: int


class Both:
    """Does everything twice and compares."""

    def __init__(self, total: int) -> None:
        self.pool, self.cache = BlockPool(total, 1), BlockCache(total)
        self.held: list[Held] = []
        self.told: set[int] = set()

    def take(self, tokens: list[int]) -> None:
        blocks = hashes(tokens)
        known = self.pool.cached(tokens[:-1])
        match = self.cache.match(blocks, len(blocks) - 1)
        assert match.blocks == len(known)
        fresh = len(tokens) - len(known)
        holding = self.pool.hold(known, fresh)
        assert (holding is not None) == (fresh + match.idle <= self.cache.free)
        if holding is not None:
            run = self.cache.hold(match, fresh)
            self.held.append(Held(tokens, blocks, holding, run, match.blocks, fresh))

    def seal(self, held: Held) -> None:
        for block in range(held.sealed, len(held.tokens)):
            self.pool.seal(held.holding, held.tokens[block : block + 1])
        held.run = self.cache.seal(held.run, held.blocks, held.sealed)
        held.private -= len(held.blocks) - held.sealed
        held.sealed = len(held.blocks)

    def give_back(self, held: Held) -> None:
        self.held.remove(held)
        self.pool.release(held.holding)
        self.cache.release(held.run, held.private)

    def compare(self) -> None:
        self.cache.check()
        assert (self.cache.used, self.cache.free) == (self.pool.used, self.pool.free)
        kept = {*self.pool._users, *self.pool._idle}
        assert len(self.cache.contents()) == len(kept)

    def tell(self) -> None:
        """Whoever heard all changes, at whatever times, knows what is there."""
        removed, stored = self.cache.take_changes()
        self.told.difference_update(removed)
        self.told.update(stored)
        assert self.told == set(self.cache.contents())


PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@settings(max_examples=150, deadline=None)
@given(total=st.integers(6, 24), prompts=st.lists(PROMPTS, min_size=1, max_size=40), seed=st.integers(0, 1 << 16))
def test_it_finds_holds_and_evicts_what_a_cache_of_single_blocks_does(
    total: int, prompts: list[list[int]], seed: int
) -> None:
    both, rng = Both(total), Random(seed)
    for prompt in prompts:
        both.take(prompt)
        both.compare()
        if rng.random() < 0.5:
            both.tell()
        for held in [one for one in both.held if rng.random() < 0.5]:
            if held.private:
                both.seal(held)
            else:
                both.give_back(held)
            both.compare()
    for held in list(both.held):
        both.give_back(held)
    both.compare()
    both.tell()
    assert both.cache.used == 0


def test_the_tail_of_a_prompt_goes_before_its_front() -> None:
    both = Both(6)
    both.take([1, 1, 1, 1])
    both.seal(both.held[0])
    both.give_back(both.held[0])
    assert both.cache.take_changes() == ([], hashes([1, 1, 1, 1]))
    both.take([2, 2, 2])
    assert both.cache.match(hashes([1, 1, 1, 1]), 4).blocks == 3
    assert both.cache.take_changes() == (hashes([1, 1, 1, 1])[-1:], [])


def test_without_caching_nothing_is_kept() -> None:
    cache = BlockCache(8, caching=False)
    run = cache.hold(cache.match([1, 2, 3], 2), 3)
    run = cache.seal(run, [1, 2, 3], 0)
    cache.release(run, 3)
    assert (cache.contents(), cache.used, cache.match([1, 2, 3], 3).blocks) == ([], 0, 0)
