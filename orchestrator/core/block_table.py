"""Which workers have a block: block hash -> the set of slots that have it, as the bits of an integer.

Equal sets are one object, so a block costs its key and its place in a dict, at most 100 bytes at any fill, and what
changes along a prompt is seen by identity. The dict is cut into shards, none of which is large: what walks over all of
it (a worker that left, room to be given back) goes a shard at a time, and no insertion stalls its caller while a
million entries are moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_ROOM = 64  # bytes of dict a block; a key takes 32 more. Freshly grown it takes 60 at most, after much churn 120
_ALWAYS = 1 << 62

Slots = Any
"""A set of slots: an ``int``. It isn't said to be one, as compiled ints are no objects that could be the same."""


class BlockTable:
    """Slots are small numbers; a hash has 60 bits. ``shards`` is a power of two."""

    def __init__(self, shards: int) -> None:
        self.shards: list[dict[int, Slots]] = [{} for _ in range(shards)]
        self.last = shards - 1
        # The object that stands for all equal ones, and how many blocks have it.
        self._sets: dict[Slots, list[Any]] = {}
        self._single: list[Slots] = []
        self._tidied = 0

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def single(self, slot: int) -> Slots:
        """The set of just this slot: always the same object."""
        while len(self._single) <= slot:
            alone: Slots = 1 << len(self._single)
            self._single.append(alone)
            self._sets[alone] = [alone, _ALWAYS]
        return self._single[slot]

    def get(self, block: int) -> Slots:
        """Who has it."""
        return self.shards[block & self.last].get(block, 0)

    def add(self, blocks: Iterable[int], slot: int) -> None:
        """The slot has these from now on; it may have them already."""
        shards, last, alone = self.shards, self.last, self.single(slot)
        was: Slots = 0
        will: Slots = 0
        moved = 0
        for block in blocks:
            shard = shards[block & last]
            mask = shard.setdefault(block, alone)
            if mask is alone:
                continue
            if mask is not was:
                self._count(was, will, moved)
                was, will, moved = mask, self._one(mask | alone), 0
            if will is not mask:
                shard[block] = will
                moved += 1
        self._count(was, will, moved)

    def discard(self, blocks: Iterable[int], slot: int) -> None:
        """The slot has these no longer; it may not have had them."""
        shards, last, alone = self.shards, self.last, self.single(slot)
        was: Slots = 0
        will: Slots = 0
        moved = 0
        for block in blocks:
            shard = shards[block & last]
            mask = shard.get(block)
            if mask is alone:
                del shard[block]
            elif mask is not None:
                if mask is not was:
                    self._count(was, will, moved)
                    was, will, moved = mask, self._one(mask & ~alone), 0
                if will is not mask:
                    shard[block] = will
                    moved += 1
        self._count(was, will, moved)

    def strip(self, number: int, slots: Slots) -> int:
        """Takes these slots out of one shard; returns how many blocks it looked at."""
        shard = self.shards[number]
        looked_at = len(shard)
        for block, mask in [(block, mask) for block, mask in shard.items() if mask & slots]:
            rest = mask & ~slots
            if rest:
                shard[block] = rest = self._one(rest)
            else:
                del shard[block]
            self._count(mask, rest, 1)
        return looked_at

    def tidy(self, shards: int) -> None:
        """Gives room back that the next ``shards`` shards don't need: dicts only ever grow by themselves."""
        for number in range(self._tidied, self._tidied + shards):
            shard = self.shards[number & self.last]
            if shard.__sizeof__() > _ROOM * len(shard) + 300:
                self.shards[number & self.last] = {**shard}  # natively dict(shard) has as much room as before
        self._tidied = self._tidied + shards & self.last

    def _one(self, mask: Slots) -> Slots:
        """The object that stands for this set."""
        known = self._sets.get(mask)
        if known is None:
            self._sets[mask] = [mask, 0]
            return mask
        return known[0]

    def _count(self, was: Slots, will: Slots, moved: int) -> None:
        """So many blocks had one set and have another now; a set that no block has is forgotten."""
        if not moved:
            return
        for mask, change in ((was, -moved), (will, moved)):
            known = self._sets.get(mask) if mask else None
            if known is not None:
                known[1] += change
                if not known[1]:
                    del self._sets[mask]

    def check(self) -> None:
        """Raises AssertionError where a set is not the one object for it, or its blocks are miscounted; for tests."""
        uses: dict[Slots, int] = {}
        for number, shard in enumerate(self.shards):
            for block, mask in shard.items():
                assert block & self.last == number, block  # noqa: S101
                assert self._sets[mask][0] is mask, block  # noqa: S101
                uses[mask] = uses.get(mask, 0) + 1
        for mask, (_, count) in self._sets.items():
            assert mask & mask - 1 == 0 or uses.get(mask, 0) == count > 0, (mask, count)  # noqa: S101
