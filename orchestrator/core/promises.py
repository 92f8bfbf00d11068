"""What one worker has by its own word, and what it soon will have because requests are on their way to it.

A request that is under way stands for all blocks of its prompt: whatever the worker says of them meanwhile, its engine
will have them. Only those that the worker did not have when the request was sent cost anything here. For the rest the
last block that it had, the request's *anchor*, is enough: a prefix cache that lacks it is told about without any after
it, so as long as the anchor is there, all before it are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.core.block_table import BlockTable


@dataclass(slots=True, eq=False)
class Promise:
    """One request under way. ``low``: how many leading blocks are left to the anchor."""

    blocks: Sequence[int]
    known: int
    low: int


class Promises:
    """One worker's part in the table: what it said that it has, and the blocks of all promises."""

    def __init__(self, table: BlockTable, slot: int) -> None:
        self._table = table
        self._slot = slot
        self._alone = table.single(slot)
        self._counts: dict[int, int] = {}  # twice the promises of a block, and one if the worker said that it has it
        self._standing: dict[tuple[int, int], list[Promise]] = {}
        self._anchored: dict[int, list[Promise]] = {}

    def __iter__(self) -> Iterator[Promise]:
        for promises in self._standing.values():
            yield from promises

    def make(self, blocks: Sequence[int], known: int) -> None:
        """A request with these blocks was sent, ``known`` of which the worker had."""
        if not blocks:
            return
        anchored = known > 0 and bool(self._table.get(blocks[known - 1]) & self._alone)
        promise = Promise(blocks, known, known if anchored else 0)
        self._standing.setdefault((blocks[-1], known), []).append(promise)
        if anchored:
            self._anchored.setdefault(blocks[known - 1], []).append(promise)
        rest = list(blocks[promise.low :])
        if rest and not self._table.get(rest[0]) & self._alone:  # then it has none of those after it either
            self._counts.update(dict.fromkeys(rest, 2))
            self._table.add(rest, self._slot)
        else:
            self._promise(rest)

    def settle(self, blocks: Sequence[int], known: int) -> None:
        """The opposite of ``make``. One that was never made, or that has been forgotten, is no error: news crosses."""
        key = (blocks[-1], known) if blocks else (0, 0)
        standing = self._standing.get(key)
        if not standing:
            return
        promise = standing.pop()
        if not standing:
            del self._standing[key]
        if promise.low:
            self._weigh_anchor(promise)
        gone = []
        counts = self._counts
        for block in promise.blocks[promise.low :]:
            count = counts[block] - 2
            if count > 1:
                counts[block] = count
            else:
                del counts[block]
                if not count:
                    gone.append(block)
        self._drop(gone)

    def stored(self, blocks: Sequence[int]) -> None:
        """The worker has these."""
        counts = self._counts
        if counts:
            unexpected = []
            for block in blocks:
                if block in counts:
                    counts[block] |= 1
                else:
                    unexpected.append(block)
            blocks = unexpected
        self._table.add(blocks, self._slot)

    def removed(self, blocks: Sequence[int]) -> None:
        """The worker has these no longer."""
        counts = self._counts
        if counts:
            unpromised = []
            for block in blocks:
                if block in counts:
                    counts[block] &= ~1
                else:
                    unpromised.append(block)
            blocks = unpromised
        self._drop(blocks)

    def _promise(self, blocks: Sequence[int]) -> None:
        """Counts one promise more for each; those that the worker lacks are its own from now on."""
        counts = self._counts
        missing = []
        for block in blocks:
            if block in counts:
                counts[block] += 2
            elif self._table.get(block) & self._alone:
                counts[block] = 3
            else:
                counts[block] = 2
                missing.append(block)
        self._table.add(missing, self._slot)

    def _drop(self, blocks: Sequence[int]) -> None:
        """Takes blocks that neither the worker nor a promise vouches for out of the table."""
        self._table.discard(blocks, self._slot)
        if self._anchored:
            adrift = [promise for block in blocks for promise in self._anchored.pop(block, ())]
            for promise in adrift:
                low, promise.low = promise.low, 0
                self._promise(promise.blocks[:low])

    def _weigh_anchor(self, promise: Promise) -> None:
        anchor = promise.blocks[promise.low - 1]
        self._anchored[anchor].remove(promise)
        if not self._anchored[anchor]:
            del self._anchored[anchor]

    def check(self) -> None:
        """Raises AssertionError where the counts are not those of the promises; for tests."""
        sums: dict[int, int] = {}
        for promise in self:
            for place, block in enumerate(promise.blocks):
                assert self._table.get(block) & self._alone, (self._slot, block)  # noqa: S101
                if place >= promise.low:
                    sums[block] = sums.get(block, 0) + 2
            assert not promise.low or promise in self._anchored[promise.blocks[promise.low - 1]]  # noqa: S101
        assert sums == {block: count & ~1 for block, count in self._counts.items()}, self._slot  # noqa: S101
        assert all(self._anchored.values())  # noqa: S101


class Recent:
    """What a worker that tells no events is taken to have: what was routed there last, ``capacity`` blocks of it."""

    def __init__(self, table: BlockTable, slot: int, capacity: int) -> None:
        self._table = table
        self._slot = slot
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()  # the oldest first

    def routed(self, blocks: Sequence[int]) -> None:
        """Backwards, so that of a prompt its end is forgotten first."""
        kept, known = list(blocks[: self._capacity]), self._blocks
        self._table.add([block for block in kept if block not in known], self._slot)
        for block in reversed(kept):
            known[block] = None
            known.move_to_end(block)
        self._table.discard([known.popitem(last=False)[0] for _ in range(len(known) - self._capacity)], self._slot)

    def forget(self) -> None:
        """All of it; the table is swept by others."""
        self._blocks.clear()

    def check(self) -> None:
        """Raises AssertionError where the table does not say the same; for tests."""
        assert all(self._table.get(block) >> self._slot & 1 for block in self._blocks), self._slot  # noqa: S101
        assert len(self._blocks) <= self._capacity, self._slot  # noqa: S101
