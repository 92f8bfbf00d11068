"""The index says of each worker just how much of a prompt it has, through anything that workers and requests do."""

from __future__ import annotations

import functools
import itertools
import random
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.core import in_flight
from orchestrator.core.blocks import chain, root
from orchestrator.core.in_flight import MOST
from orchestrator.core.matches import NO_MATCHES, Matches
from orchestrator.core.mirror import BlocksRemoved, BlocksStored, CacheMirror, CacheNews, Cleared
from orchestrator.core.prefix import PrefixIndex

Prompt = tuple[int, ...]
ROOT = root("m")
PROMPTS = [prompt for length in range(1, 6) for prompt in itertools.product((0, 1), repeat=length)]
LONGEST = PROMPTS[-32:]
SOME = st.sampled_from(PROMPTS)


@functools.cache
def hashes(prompt: Prompt) -> list[int]:
    return chain(ROOT, 0, prompt, 1)


def heads(prompt: Prompt) -> list[Prompt]:
    return [prompt[: end + 1] for end in range(len(prompt))]


@dataclass
class Worker:
    """What one worker really has. A block is the prompt that ends with it; ``under_way``: routed and not settled."""

    slot: int
    capacity: int | None
    mirror: CacheMirror = field(default_factory=lambda: CacheMirror("m", 1))
    copies: Counter[Prompt] = field(default_factory=Counter)
    under_way: list[tuple[Prompt, in_flight.Prompt]] = field(default_factory=list)
    recent: list[Prompt] = field(default_factory=list)

    def blocks(self) -> set[Prompt]:
        if self.capacity is not None:
            return set(self.recent)
        return {block for block in self.copies if all(self.copies[one] for one in heads(block))}

    def coming(self) -> set[Prompt]:
        return {block for prompt, _ in self.under_way for block in heads(prompt)}

    def longest(self, prompt: Prompt, blocks: set[Prompt]) -> int:
        return max([len(block) for block in heads(prompt) if block in blocks], default=0)


class IndexMachine(RuleBasedStateMachine):
    """Workers come, go, store, evict, clear and get requests in any order; some tell events, some don't."""

    sweep = 1 << 20  # all at once: what was told last is true at once

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(self.sweep, shards=8)
        self.workers: list[Worker] = []
        self.gone: list[int] = []
        self.left: list[in_flight.Prompt] = []  # was on its way to them

    @initialize()
    def two_workers(self) -> None:
        self.join(None)
        self.join(None)

    @rule(capacity=st.sampled_from([None, None, 0, 3, 8]))
    def join(self, capacity: int | None) -> None:
        slot = self.index.join(capacity)
        assert slot not in [worker.slot for worker in self.workers]
        self.workers.append(Worker(slot, capacity))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        worker = self.any_worker(data)
        self.workers.remove(worker)
        self.gone.append(worker.slot)
        self.left += [sent for _, sent in worker.under_way]
        self.index.leave(worker.slot)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), prompt=SOME)
    def store(self, data: st.DataObject, prompt: Prompt) -> None:
        """What an engine does that computes a prompt: it lacks no parent."""
        worker = self.any_worker(data)
        first = next((end for end in range(len(prompt)) if not worker.copies[prompt[: end + 1]]), len(prompt) - 1)
        blocks = [prompt[: end + 1] for end in range(first, len(prompt))]
        worker.copies.update(blocks)
        parent = repr(prompt[:first]).encode() if first else None
        event = BlocksStored([repr(block).encode() for block in blocks], parent, prompt[first:])
        self.tell(worker, worker.mirror.take([event]))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), more=st.booleans())
    def evict(self, data: st.DataObject, more: bool) -> None:
        worker = self.any_worker(data)
        held = sorted(worker.copies.elements())
        if held:
            blocks = data.draw(st.lists(st.sampled_from(held), min_size=1, max_size=4 if more else 1, unique=True))
            worker.copies.subtract(blocks)
            events = [BlocksRemoved([repr(block).encode() for block in blocks])]
            self.tell(worker, worker.mirror.take(events))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), back=st.booleans())
    def clear(self, data: st.DataObject, back: bool) -> None:
        """An engine's cache is reset, or (``back``) all of it is told anew, as after a stream that was slow."""
        worker = self.any_worker(data)
        if back and worker.capacity is None:
            self.tell(worker, CacheNews(cleared=True, stored=worker.mirror.snapshot()))
        else:
            worker.copies.clear()
            worker.recent.clear()
            self.tell(worker, worker.mirror.take([Cleared()]))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), prompt=SOME)
    def route(self, data: st.DataObject, prompt: Prompt) -> None:
        worker = self.any_worker(data)
        if sum(len(each.under_way) for each in self.workers) == MOST:
            return  # of more than these the newest are looked at
        blocks = list(hashes(prompt))
        sent = self.index.routed(worker.slot, blocks)
        assert (sent is None) is (worker.capacity is not None)
        if sent is not None:
            worker.under_way.append((prompt, sent))
            return
        latest = heads(prompt)[: worker.capacity]
        rest = [block for block in worker.recent if block not in latest]
        worker.recent = [*rest, *reversed(latest)]
        del worker.recent[: max(0, len(worker.recent) - worker.capacity)]

    @precondition(lambda self: any(worker.under_way for worker in self.workers))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.under_way]))
        _, sent = worker.under_way.pop(data.draw(st.integers(0, len(worker.under_way) - 1)))
        self.index.settled(sent)

    @precondition(lambda self: self.gone)
    @rule(prompt=SOME)
    def late_news(self, prompt: Prompt) -> None:
        """Of workers that are gone. Their slot may be another's by now; a settle that nobody waits for is no error."""
        slot = self.gone[-1]
        if slot not in [worker.slot for worker in self.workers]:
            self.index.changed(slot, stored=hashes(prompt))
            assert self.index.routed(slot, hashes(prompt)) is None
        for sent in self.left:
            self.index.settled(sent)

    @invariant()
    def every_match_is_right(self) -> None:
        held = {worker.slot: worker.blocks() for worker in self.workers}
        for prompt in LONGEST:
            matches = self.index.match(hashes(prompt))
            lengths = [length for length, _ in matches.levels]
            assert lengths == sorted(set(lengths), reverse=True)
            told = {worker.slot: worker.longest(prompt, held[worker.slot]) for worker in self.workers}
            most = max(told.values(), default=0)
            coming = {worker.slot: worker.longest(prompt, worker.coming()) for worker in self.workers}
            longer = {slot: length for slot, length in coming.items() if length > most}
            self.compare(matches.scores(), told, longer)

    def compare(self, found: dict[int, int], told: dict[int, int], longer: dict[int, int]) -> None:
        assert found == {slot: length for slot, length in (told | longer).items() if length}

    @invariant()
    def the_books_balance(self) -> None:
        self.index.check()

    def any_worker(self, data: st.DataObject) -> Worker:
        return data.draw(st.sampled_from(self.workers))

    def tell(self, worker: Worker, news: CacheNews) -> None:
        self.index.changed(worker.slot, stored=news.stored, removed=news.removed, cleared=news.cleared)


class SlowIndexMachine(IndexMachine):
    """The same where each call sweeps one shard: a slot that is swept shows nothing, never anything wrong."""

    sweep = 1

    def compare(self, found: dict[int, int], told: dict[int, int], longer: dict[int, int]) -> None:
        on_the_way = {worker.slot: {len(prompt) for prompt, _ in worker.under_way} for worker in self.workers}
        for slot, length in found.items():
            assert length == told[slot] or length <= max(on_the_way[slot])

    def teardown(self) -> None:
        """Once all is swept out, all is right again."""
        for _ in range(8 * len(self.workers) + 8):
            for worker in self.workers:
                self.index.changed(worker.slot)
        self.compare = super().compare  # type: ignore[method-assign]
        self.every_match_is_right()


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestSlowIndex = SlowIndexMachine.TestCase
TestSlowIndex.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def filled(workers: int, blocks: int) -> tuple[PrefixIndex, list[list[int]]]:
    """An index in which each worker has as many blocks of its own, in one long prompt."""
    index, dice = PrefixIndex(), random.Random(3)
    told = []
    for _ in range(workers):
        prompt = [dice.getrandbits(60) for _ in range(blocks)]
        index.changed(index.join(), stored=prompt)
        told.append(prompt)
    return index, told


def test_a_long_prompt_s_levels_are_found_by_few_looks() -> None:
    index, (prompt, *_) = filled(64, 2000)
    for slot, length in [(1, 1999), (2, 700), (3, 700), (4, 1)]:
        index.changed(slot, stored=prompt[:length])
    matches = index.match(prompt)
    assert matches.levels == [(2000, (1,)), (1999, (3,)), (700, (15,)), (1, (31,))]
    assert [matches.blocks(slot) for slot in range(6)] == [2000, 1999, 700, 700, 1, 0]
    assert index.match([]) == index.match([1, 2, 3]) == NO_MATCHES


def test_holders_come_longest_first_and_take_turns() -> None:
    matches = Matches([(9, (0b0010,)), (5, (0b1101_0010,)), (2, (0b1101_0011,))])
    assert matches.holders([0b1111_1111], 10) == [1, 7, 6, 4, 0]
    assert matches.holders([0b1111_1111], 2) == [1, 7]
    assert matches.holders([0b1111_1111], 3, start=5) == [1, 4, 7]
    assert matches.holders([0b1111_1111], 10, start=6) == [1, 6, 4, 7, 0]
    assert matches.holders([0b0100_0001], 10) == [6, 0]
    assert NO_MATCHES.holders([1], 5) == matches.holders([0xFF], 0) == []


def test_a_worker_that_leaves_is_swept_out_in_slices() -> None:
    index, told = filled(2, 150_000)
    index.leave(0)
    assert len(index) > 200_000, "not all at once"
    assert index.match(told[0]) == NO_MATCHES
    assert index.join() == 2, "a slot is another's only when it is clean"
    for _ in range(20):
        index.changed(1)
    assert len(index) == 150_000
    assert index.join() == 0
    assert index.match(told[0]) == NO_MATCHES
    assert index.match(told[1]).blocks(1) == 150_000


def test_the_second_of_two_requests_finds_the_first_one_s_worker() -> None:
    index = PrefixIndex()
    slot = index.join()
    prompt = hashes((1, 0, 1, 1))
    sent = index.routed(slot, prompt)
    assert sent is not None
    assert index.match(prompt).blocks(slot) == 4
    index.changed(slot, stored=prompt[:2])
    index.settled(sent)
    assert index.match(prompt).blocks(slot) == 2, "what the worker never stored goes"


def test_a_worker_without_events_keeps_the_latest_blocks() -> None:
    index = PrefixIndex()
    slot = index.join(5)
    old, new = hashes((1, 1, 1, 1)), hashes((0, 0, 0))
    assert index.routed(slot, old) is None, "there is nothing to settle"
    assert index.match(old).blocks(slot) == 4
    index.routed(slot, new)
    assert index.match(new).blocks(slot) == 3
    assert index.match(old).blocks(slot) == 2, "of the older prompt its end went first"


@pytest.mark.parametrize("workers", [64, 1000])
def test_a_block_costs_at_most_100_bytes_at_any_fill(workers: int) -> None:
    """While it fills, under churn, and when most of it is gone. Half of the blocks are one worker's, half several's."""
    dice = random.Random(5)
    tracemalloc.start()
    try:
        index, told = PrefixIndex(shards=64), []
        slots = [index.join() for _ in range(workers)]
        groups = [dice.sample(slots, 3) for _ in range(50)]
        worst = 0.0
        base = tracemalloc.get_traced_memory()[0]
        for step in range(1500):
            if step >= 600:  # first as many come as go, then more go
                group, seed = told.pop(dice.randrange(len(told)))
                for slot in group:
                    index.changed(slot, removed=some_blocks(seed))
            if step < 1000 or step % 3 == 0:
                group = dice.choice(groups) if step % 2 else [dice.choice(slots)]
                for slot in group:
                    index.changed(slot, stored=some_blocks(step))
                told.append((group, step))
            if len(index) > 5000:
                worst = max(worst, (tracemalloc.get_traced_memory()[0] - base) / len(index))
        assert len(index) < 30_000
        assert 60 < worst <= 100
    finally:
        tracemalloc.stop()


def some_blocks(seed: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.getrandbits(60) for _ in range(100)]
