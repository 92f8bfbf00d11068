"""Which worker's prefix cache holds how much of a prompt.

A block is known by a hash over all tokens up to its end (``blocks``). For each hash the index keeps the set of workers
that have it, by their *slots*, small numbers. What a worker has is closed: with a block come all blocks before it. So
along a prompt the sets only shrink, and where they do is found by bisection.

What a worker has: what it said (``changed``). Where more of a prompt is on its way to some worker than any has yet
(``routed`` until ``settled``, see ``in_flight``), that counts too, so the second of two requests with the same prompt
finds the first one's worker. A worker that tells no events is taken to have what was routed there last, as much as its
cache has room for.

No call walks over the whole index: when a worker leaves, or says that its cache was cleared, its bit is not looked at
until later calls have swept it out, and what it says meanwhile waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

from orchestrator.core.block_table import SHARD, BlockTable
from orchestrator.core.in_flight import InFlight, Prompt
from orchestrator.core.matches import NO_MATCHES, Matches
from orchestrator.core.recent import Recent
from orchestrator.core.slot_sets import Parts, common, has, members, put, take

_SHARDS = 64  # each with what describes it in a cache line or two; more would cost a look at memory
_SWEEP = 32_768  # blocks that one call looks at for those who left: up to ten milliseconds where memory is cold
_VISIT = 16  # what a visit to a shard costs, in blocks
_NOBODY: Final[Parts] = ()


@dataclass(slots=True)
class _Waiting:
    """What was told of a worker while its bit is swept out."""

    news: list[tuple[Sequence[int], Sequence[int]]] = field(default_factory=list)  # removed, stored
    routed: list[Sequence[int]] = field(default_factory=list)


@dataclass(slots=True)
class _Worker:
    """One slot's worker."""

    recent: Recent | None  # where it tells no events
    waiting: _Waiting | None = None  # None when it is clean
    used: bool = False  # whether it may be in the table


class PrefixIndex:
    """One model's index. What is told of a slot that is not joined is ignored: news crosses.

    A block that one or more workers have costs at most 100 bytes, and each distinct set of workers about 300 and one
    for each 7 slots; a prompt on its way some 400, however long it is; a worker that tells no events about
    150 for each block of its capacity. All in ``shards`` parts, of which a call sweeps out so many that they hold
    ``sweep`` blocks.
    """

    def __init__(self, sweep: int = _SWEEP, shards: int = _SHARDS) -> None:
        self._table = BlockTable(shards)
        self._in_flight = InFlight()
        self._workers: list[_Worker | None] = []  # by slot; None where nobody is joined
        self._visible: list[int] = []  # slots that are joined and clean
        self._free: list[int] = []
        self._dirty: dict[int, int] = {}  # slot -> shards in which it may still be
        self._soiled: list[int] = []  # the same, as a set
        self._at = 0  # the shard that is swept next
        self._sweep_blocks = sweep

    def __len__(self) -> int:
        """Blocks that anybody has, those included that are still to be swept out."""
        return len(self._table)

    def join(self, capacity: int | None = None) -> int:
        """A slot for a new worker. ``capacity`` (blocks): it tells no events, so what is routed there is taken for
        stored until that many newer blocks were; None: it tells events."""
        self._sweep()
        if self._free:
            slot = heappop(self._free)
        else:
            slot = len(self._workers)
            self._workers.append(None)
        recent = None if capacity is None else Recent(self._table, slot, capacity)
        self._workers[slot] = _Worker(recent)
        self._table.single(slot)  # made now, and not on the way of some request
        put(self._visible, slot)
        return slot

    def leave(self, slot: int) -> None:
        """The worker is gone, and its entries with it. The slot is given to another once it is swept out."""
        worker = self._worker(slot)
        if worker is not None:
            self._workers[slot] = None
            self._in_flight.leave(slot)
            self._soil(slot, used=worker.used)
            self._sweep()

    def changed(
        self, slot: int, *, stored: Sequence[int] = (), removed: Sequence[int] = (), cleared: bool = False
    ) -> None:
        """The worker's own word of its cache; in the order cleared, removed, stored. From one that was said to tell no
        events only ``cleared`` is taken."""
        worker = self._worker(slot)
        if worker is None:
            return
        if cleared:
            self._clear(slot, worker)
        if worker.recent is None:
            if worker.waiting is not None:
                worker.waiting.news.append((removed, stored))
            else:
                self._take(slot, worker, removed, stored)
        self._sweep()

    def routed(self, slot: int, blocks: Sequence[int]) -> Prompt | None:
        """A request with these blocks was sent there: another with the same prompt finds it from now on, though the
        worker has said nothing yet. Returns what is ``settled`` later, None where nothing is to be."""
        worker = self._worker(slot)
        if worker is None:
            return None
        prompt = None
        if worker.recent is None:
            prompt = self._in_flight.add(slot, blocks)
        elif worker.waiting is not None:
            worker.waiting.routed.append(blocks)
        else:
            self._remember(worker, worker.recent, blocks)
        self._sweep()
        return prompt

    def settled(self, prompt: Prompt) -> None:
        """The opposite, once for each: the worker has said by now what it stored, or never will."""
        self._in_flight.remove(prompt)

    def _worker(self, slot: int) -> _Worker | None:
        return self._workers[slot] if slot < len(self._workers) else None

    def match(self, blocks: Sequence[int]) -> Matches:
        """Who holds how many of the leading blocks."""
        if not blocks:
            return NO_MATCHES
        shards, last = self._table.shards, self._table.last
        visible, hidden = self._visible, bool(self._dirty)  # with none hidden, sets that are equal are one object
        hashes: Sequence[Any] = blocks  # as they are: natively a number would be made an object for each look
        key = hashes[0]
        block: int = key
        owners = shards[block >> SHARD & last].get(key)
        here = _NOBODY if owners is None else owners.slots
        if hidden:
            here = common(here, visible)
        levels: list[tuple[int, Parts]] = []
        place = 0
        # Right ends of stretches further right, nearest last, and who has those; a stretch with one set at both ends
        # has it all along.
        ends, sets = [len(blocks)], [_NOBODY]
        while here:
            end, there = ends.pop(), sets.pop()
            while there is not here and not (hidden and there == here):
                if end - place == 1:
                    levels.append((end, here))
                    here = there
                    break
                ends.append(end)
                sets.append(there)
                end = place + end >> 1
                key = hashes[end]
                block = key
                owners = shards[block >> SHARD & last].get(key)
                there = _NOBODY if owners is None else owners.slots
                if hidden:
                    there = common(there, visible)
            place = end
        levels.reverse()
        on_their_way = self._in_flight.longer(blocks, levels[0][0] if levels else 0)
        return Matches(levels, on_their_way) if levels or on_their_way else NO_MATCHES

    def _take(self, slot: int, worker: _Worker, removed: Sequence[int], stored: Sequence[int]) -> None:
        if removed:
            self._table.discard(removed, slot)
        if stored:
            worker.used = True
            self._table.add(stored, slot)
        if removed:  # else nothing has left room
            self._table.tidy((len(stored) + len(removed) >> 3) + 1)

    def _remember(self, worker: _Worker, recent: Recent, blocks: Sequence[int]) -> None:
        worker.used = True
        recent.routed(blocks)
        self._table.tidy((len(blocks) >> 3) + 1)

    def _clear(self, slot: int, worker: _Worker) -> None:
        if worker.waiting is not None:
            worker.waiting = _Waiting()
        elif worker.used:
            if worker.recent is not None:
                worker.recent.forget()
            worker.waiting = _Waiting()
            self._soil(slot, used=True)

    def _soil(self, slot: int, *, used: bool) -> None:
        """The slot is not looked at until it is swept out."""
        take(self._visible, slot)
        self._dirty[slot] = len(self._table.shards)
        put(self._soiled, slot)
        if not used:
            self._clean(slot)

    def _sweep(self) -> None:
        """A slice of what is to be swept out."""
        budget = self._sweep_blocks
        while self._dirty and budget > 0:
            budget -= self._table.strip(self._at, self._soiled) + _VISIT
            self._table.tidy(1)
            self._at = self._at + 1 & self._table.last
            for slot, left in list(self._dirty.items()):
                self._dirty[slot] = left - 1
                if left == 1:
                    self._clean(slot)

    def _clean(self, slot: int) -> None:
        del self._dirty[slot]
        take(self._soiled, slot)
        worker = self._worker(slot)
        if worker is None:
            heappush(self._free, slot)
            return
        waiting, worker.waiting, worker.used = worker.waiting or _Waiting(), None, False
        put(self._visible, slot)
        for removed, stored in waiting.news:
            self._take(slot, worker, removed, stored)
        for blocks in waiting.routed:
            if worker.recent is not None:
                self._remember(worker, worker.recent, blocks)

    def check(self) -> None:
        """Raises AssertionError where the books don't balance; for tests."""
        self._table.check()
        self._in_flight.check()
        joined = {slot: worker for slot, worker in enumerate(self._workers) if worker is not None}
        for slot, worker in joined.items():
            clean = worker.waiting is None
            assert clean == (slot not in self._dirty) == has(self._visible, slot), slot  # noqa: S101
            if clean and worker.recent is not None:
                worker.recent.check()
        used = {slot for slot, worker in joined.items() if worker.used} | self._dirty.keys()
        for shard in self._table.shards:
            for block, owners in shard.items():
                assert used.issuperset(members(owners.slots)), block  # noqa: S101
        assert not common(self._visible, self._soiled)  # noqa: S101
        assert set(members(self._soiled)) == self._dirty.keys()  # noqa: S101
        assert not set(self._free) & (joined.keys() | self._dirty.keys())  # noqa: S101
