"""Prompts on their way to workers: of two requests with the same prompt the second finds the first one's worker,
though that worker has not said yet that it has any of it.

A prompt is found by its *marks*, the blocks that end its first 1, 4, 16, 64 ... blocks. Two prompts that share their
first n blocks share the largest mark up to n, and as a block's hash stands for all before it, how much they share
beyond that mark is found by bisection. So a prompt costs a few dictionary entries, however long it is, and nothing has
to be taken back block by block when it has arrived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from orchestrator.core.values import mypyc_attr

Hash = object
"""Here only ever compared, and so left what it is: made a plain number natively, it would be made an object anew for
each look."""
MOST = 8  # prompts that are looked at a mark: the newest, as what was sent first is there first
_APART = 2  # bits from one mark to the next


@mypyc_attr(free_list_len=1)
class Prompt:
    """What is on its way to one worker, ``times`` requests with it; ``older`` is what was sent there before."""

    __slots__ = ("blocks", "older", "slot", "times")

    def __init__(self, slot: int, blocks: Sequence[Hash], older: Prompt | None) -> None:
        self.slot = slot
        self.blocks = blocks
        self.times = 1
        self.older = older


class InFlight:
    """The prompts of one model, by worker (a slot of the prefix index)."""

    def __init__(self) -> None:
        self._marks: dict[Hash, Prompt | dict[Prompt, None]] = {}  # by hash; most marks have one, which needs no dict
        self._newest: list[Prompt | None] = []  # by slot; each worker has a few at a time

    def __len__(self) -> int:
        return sum(prompt.times for prompt in self._all())

    def add(self, slot: int, blocks: Sequence[Hash]) -> Prompt | None:
        """A request with these blocks was sent there; returns what to ``remove`` again, None where there are none."""
        length = len(blocks)
        if not length:
            return None
        while len(self._newest) <= slot:
            self._newest.append(None)
        newest = known = self._newest[slot]
        while known is not None:
            if known.blocks is blocks:
                known.times += 1
                return known
            known = known.older
        prompt = self._newest[slot] = Prompt(slot, blocks, newest)
        marks = self._marks
        for mark in _marks(length):
            block = blocks[mark - 1]
            marked = marks.get(block)
            if marked is None:
                marks[block] = prompt
            elif isinstance(marked, Prompt):
                marks[block] = {marked: None, prompt: None}
            else:
                marked[prompt] = None
        return prompt

    def remove(self, prompt: Prompt) -> None:
        """The opposite. One that left with its worker is no error."""
        if not prompt.times:
            return
        prompt.times -= 1
        if prompt.times:
            return
        newer = self._newest[prompt.slot]
        if newer is prompt:
            self._newest[prompt.slot] = prompt.older
        while newer is not None:
            if newer.older is prompt:
                newer.older = prompt.older
                break
            newer = newer.older
        self._unmark(prompt)

    def leave(self, slot: int) -> None:
        """The worker is gone, and what was on its way to it."""
        if slot < len(self._newest):
            prompt, self._newest[slot] = self._newest[slot], None
            while prompt is not None:
                prompt.times = 0
                self._unmark(prompt)
                prompt = prompt.older

    def longer(self, blocks: Sequence[Hash], than: int) -> dict[int, int]:
        """Slots that a prompt is on its way to which shares more than ``than`` leading blocks with this one, and how
        many. Of many such prompts the newest are looked at."""
        found: dict[int, int] = {}
        marks, length = self._marks, len(blocks)
        if not marks or than >= length:
            return found
        beyond = blocks[than]  # whoever shares more has this one too
        mark = 1 << (length.bit_length() - 1) // _APART * _APART
        while mark and mark << _APART > than:
            marked = marks.get(blocks[mark - 1])
            if marked is not None:
                for looked_at, prompt in enumerate((marked,) if isinstance(marked, Prompt) else reversed(marked)):
                    if looked_at == MOST:
                        break
                    other = prompt.blocks
                    if len(other) > than and other[than] == beyond:
                        shared = _shared(blocks, other, mark)
                        if shared > found.get(prompt.slot, 0):
                            found[prompt.slot] = shared
            mark >>= _APART
        return found

    def _unmark(self, prompt: Prompt) -> None:
        marks, blocks = self._marks, prompt.blocks
        for mark in _marks(len(blocks)):
            block = blocks[mark - 1]
            marked = marks[block]
            if isinstance(marked, Prompt):
                del marks[block]
            else:
                del marked[prompt]
                if not marked:
                    del marks[block]

    def _all(self) -> Iterator[Prompt]:
        for prompt in self._newest:
            while prompt is not None:
                yield prompt
                prompt = prompt.older

    def check(self) -> None:
        """Raises AssertionError where marks are not those of the prompts; for tests."""
        expected = {(prompt.blocks[mark - 1], prompt) for prompt in self._all() for mark in _marks(len(prompt.blocks))}
        marked = {
            (block, prompt) for block, at in self._marks.items() for prompt in ((at,) if isinstance(at, Prompt) else at)
        }
        assert expected == marked  # noqa: S101
        assert all(prompt.times > 0 for _, prompt in expected)  # noqa: S101


_ALL_MARKS: Final = tuple(1 << bit for bit in range(0, 40, _APART))


def _marks(length: int) -> Sequence[int]:
    return _ALL_MARKS[: -(-length.bit_length() // _APART)]


def _shared(blocks: Sequence[Hash], other: Sequence[Hash], mark: int) -> int:
    """Leading blocks that two prompts share, at least ``mark`` and less than the next mark unless one ends there."""
    low, high = mark, min(len(blocks), len(other), mark << _APART)
    while low < high:
        middle = (low + high + 1) >> 1
        if blocks[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
