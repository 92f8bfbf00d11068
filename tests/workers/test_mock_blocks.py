"""The mock's blocks are conserved, whatever is done with them."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.core.mirror import BlocksStored
from workers.mock_blocks import BlockPool, Holding

TOTAL, SIZE = 12, 4


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, grow, are sealed and go, in any order; few prompts, so that they share blocks often."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL, SIZE)
        self.live: list[tuple[list[int], Holding]] = []
        self.cached: set[bytes] = set()

    @rule(head=st.integers(0, 2), length=st.integers(1, 30))
    def arrive(self, head: int, length: int) -> None:
        tokens = [head * 100 + k // 9 for k in range(length)]
        cached = self.pool.cached(tokens[:-1])
        before = self.pool.used
        holding = self.pool.hold(cached, -(-length // SIZE) - len(cached))
        if holding is None:
            assert self.pool.used == before
            return
        assert holding.blocks == -(-length // SIZE)
        for block in range(len(cached), length // SIZE):
            self.pool.seal(holding, tokens[block * SIZE : (block + 1) * SIZE])
        self.live.append((tokens, holding))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        tokens, holding = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        shared = len(tokens) // SIZE
        self.pool.release(holding)
        self.pool.release(holding)
        assert len(self.pool.cached(tokens)) == shared  # what was sealed is found again

    @precondition(lambda self: self.live)
    @rule()
    def grow(self) -> None:
        free = self.pool.free
        assert self.pool.grow(self.live[0][1], 1) == (free > 0)

    @invariant()
    def used_blocks_are_those_held(self) -> None:
        shared = {digest for _, holding in self.live for digest in holding.shared}
        assert self.pool.used == len(shared) + sum(holding.private for _, holding in self.live)
        assert 0 <= self.pool.used <= TOTAL

    @invariant()
    def events_tell_what_the_cache_holds(self) -> None:
        for event in self.pool.take_events():
            if isinstance(event, BlocksStored):
                assert not self.cached & set(event.names)
                self.cached |= set(event.names)
            else:
                assert self.cached >= set(event.names)
                self.cached -= set(event.names)
        assert self.cached >= {digest for _, holding in self.live for digest in holding.shared}
        assert len(self.cached) <= TOTAL


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
