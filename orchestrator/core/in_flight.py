"""Prompts on their way to workers: of two requests with the same prompt the second finds the first one's worker,
though that worker has not said yet that it has any of it.

A prompt is found by its *marks*, the blocks that end its first 1, 2, 4, 8 ... blocks. Two prompts that share their
first n blocks share the largest mark up to n, and as a block's hash stands for all before it, how much they share
beyond that mark is found by bisection. So a prompt costs a few dictionary entries, however long it is, and nothing has
to be taken back block by block when it has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

MOST = 8  # workers that are looked at a mark, and prompts of each: the newest, as what was sent first is there first


class InFlight:
    """The prompts of one model, by worker (a slot of the prefix index)."""

    def __init__(self) -> None:
        self._marks: dict[int, dict[tuple[int, int], Sequence[int]]] = {}  # hash -> (slot, id) -> the prompt's blocks
        self._prompts: dict[int, dict[int, list[Sequence[int]]]] = {}  # slot -> id -> the same, once for each request

    def __len__(self) -> int:
        return sum(len(same) for prompts in self._prompts.values() for same in prompts.values())

    def add(self, slot: int, blocks: Sequence[int]) -> None:
        """A request with these blocks was sent there."""
        if not blocks:
            return
        name, marks = id(blocks), self._marks
        same = self._prompts.setdefault(slot, {}).setdefault(name, [])
        same.append(blocks)  # kept, so that its id stays its own
        if len(same) > 1:
            return
        entry = (slot, name)
        for mark in _marks(len(blocks)):
            block = blocks[mark - 1]
            marked = marks.get(block)
            if marked is None:
                marks[block] = {entry: blocks}
            else:
                marked[entry] = blocks

    def remove(self, slot: int, blocks: Sequence[int]) -> None:
        """The opposite, with the same object. One that is not there is no error: its worker may be gone."""
        prompts = self._prompts.get(slot)
        same = prompts.get(id(blocks)) if prompts else None
        if prompts is None or not same:
            return
        same.pop()
        if not same:
            del prompts[id(blocks)]
            self._unmark(slot, blocks)

    def leave(self, slot: int) -> None:
        """The worker is gone, and what was on its way to it."""
        for same in self._prompts.pop(slot, {}).values():
            self._unmark(slot, same[0])

    def longer(self, blocks: Sequence[int], than: int) -> dict[int, int]:
        """Slots that a prompt is on its way to which shares more than ``than`` leading blocks with this one, and how
        many. Of many such prompts the newest are looked at."""
        found: dict[int, int] = {}
        marks, length = self._marks, len(blocks)
        if not marks or than >= length:
            return found
        beyond = blocks[than]  # whoever shares more has this one too
        mark = 1 << length.bit_length() - 1
        while mark and 2 * mark > than:
            if marked := marks.get(blocks[mark - 1]):
                for (slot, _), other in islice(reversed(marked.items()), MOST):
                    if len(other) > than and other[than] == beyond:
                        shared = _shared(blocks, other, mark)
                        if shared > found.get(slot, 0):
                            found[slot] = shared
            mark >>= 1
        return found

    def _unmark(self, slot: int, blocks: Sequence[int]) -> None:
        marks, entry = self._marks, (slot, id(blocks))
        for mark in _marks(len(blocks)):
            block = blocks[mark - 1]
            marked = marks[block]
            del marked[entry]
            if not marked:
                del marks[block]

    def check(self) -> None:
        """Raises AssertionError where marks are not those of the prompts; for tests."""
        expected = {
            (blocks[mark - 1], slot, id(blocks))
            for slot, prompts in self._prompts.items()
            for (blocks, *_) in prompts.values()
            for mark in _marks(len(blocks))
        }
        marked = {(block, *entry) for block, entries in self._marks.items() for entry in entries}
        assert expected == marked  # noqa: S101


_DOUBLES = tuple(1 << power for power in range(40))


def _marks(length: int) -> Sequence[int]:
    return _DOUBLES[: length.bit_length()]


def _shared(blocks: Sequence[int], other: Sequence[int], mark: int) -> int:
    """Leading blocks that two prompts share, at least ``mark`` and less than twice that unless one ends there."""
    low, high = mark, min(len(blocks), len(other))
    if high > 2 * mark:
        high = 2 * mark
    while low < high:
        middle = (low + high + 1) >> 1
        if blocks[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
