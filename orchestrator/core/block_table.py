"""Which workers have a block: block hash -> the set of slots that have it.

Equal sets are one object, so a block costs its key and its place in a dict, at most 100 bytes at any fill, and what
changes along a prompt is seen by identity. The dict is cut into shards, none of which is large: what walks over all of
it (a worker that left, room to be given back) goes a shard at a time, and no insertion stalls its caller while a
million entries are moved.
"""

from __future__ import annotations

from collections.abc import Iterable

_ROOM = 64  # bytes of dict a block; a key takes 32 more. Freshly grown it takes 60 at most, after much churn 120


class Owners:
    """A set of slots, as the bits of an integer, and how many blocks have just these (not told of a single slot)."""

    __slots__ = ("blocks", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.blocks = 0


class BlockTable:
    """Slots are small numbers; a hash has 60 bits. ``shards`` is a power of two."""

    def __init__(self, shards: int) -> None:
        self.shards: list[dict[int, Owners]] = [{} for _ in range(shards)]
        self.last = shards - 1
        self._sets: dict[int, Owners] = {}  # of several slots, by these: those that any block has
        self._single: list[Owners] = []
        self._tidied = 0

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def single(self, slot: int) -> Owners:
        """The set of just this slot: always the same object."""
        while len(self._single) <= slot:
            self._single.append(Owners(1 << len(self._single)))
        return self._single[slot]

    def get(self, block: int) -> int:
        """Who has it, as bits."""
        owners = self.shards[block & self.last].get(block)
        return 0 if owners is None else owners.slots

    def add(self, blocks: Iterable[int], slot: int) -> None:
        """The slot has these from now on; it may have them already."""
        shards, last, alone = self.shards, self.last, self.single(slot)
        was = will = alone
        moved = 0
        for block in blocks:
            shard = shards[block & last]
            owners = shard.setdefault(block, alone)
            if owners is alone:
                continue
            if owners is not was:
                self._count(was, will, moved)
                was, will, moved = owners, self._one(owners.slots | alone.slots), 0
            if will is not owners:
                shard[block] = will
                moved += 1
        self._count(was, will, moved)

    def discard(self, blocks: Iterable[int], slot: int) -> None:
        """The slot has these no longer; it may not have had them."""
        shards, last, alone = self.shards, self.last, self.single(slot)
        was = will = alone
        moved = 0
        for block in blocks:
            shard = shards[block & last]
            owners = shard.get(block)
            if owners is alone:
                del shard[block]
            elif owners is not None:
                if owners is not was:
                    self._count(was, will, moved)
                    was, will, moved = owners, self._one(owners.slots & ~alone.slots), 0
                if will is not owners:
                    shard[block] = will
                    moved += 1
        self._count(was, will, moved)

    def strip(self, number: int, slots: int) -> int:
        """Takes these slots out of one shard; returns how many blocks it looked at."""
        shard = self.shards[number]
        looked_at = len(shard)
        for block, owners in [(block, owners) for block, owners in shard.items() if owners.slots & slots]:
            rest = owners.slots & ~slots
            if rest:
                shard[block] = left = self._one(rest)
                self._count(owners, left, 1)
            else:
                del shard[block]
                self._uncount(owners, 1)
        return looked_at

    def tidy(self, shards: int) -> None:
        """Gives room back that the next ``shards`` shards don't need: dicts only ever grow by themselves."""
        for number in range(self._tidied, self._tidied + shards):
            shard = self.shards[number & self.last]
            if shard.__sizeof__() > _ROOM * len(shard) + 300:
                self.shards[number & self.last] = {**shard}  # natively dict(shard) has as much room as before
        self._tidied = self._tidied + shards & self.last

    def _one(self, slots: int) -> Owners:
        """The object that stands for this set."""
        known = self._sets.get(slots)
        if known is None:
            if not slots & slots - 1:
                return self.single(slots.bit_length() - 1)
            known = self._sets[slots] = Owners(slots)
        return known

    def _count(self, was: Owners, will: Owners, moved: int) -> None:
        """So many blocks had one set and have another now."""
        if moved:
            will.blocks += moved
            self._uncount(was, moved)

    def _uncount(self, owners: Owners, blocks: int) -> None:
        """So many blocks have the set no longer; one that no block has is forgotten."""
        owners.blocks -= blocks
        if not owners.blocks and self._sets.get(owners.slots) is owners:
            del self._sets[owners.slots]

    def check(self) -> None:
        """Raises AssertionError where a set is not the one object for it, or its blocks are miscounted; for tests."""
        uses: dict[int, int] = {}
        for number, shard in enumerate(self.shards):
            for block, owners in shard.items():
                assert block & self.last == number, block  # noqa: S101
                assert self._one(owners.slots) is owners, block  # noqa: S101
                uses[owners.slots] = uses.get(owners.slots, 0) + 1
        for slots, owners in self._sets.items():
            assert owners.slots == slots, slots  # noqa: S101
            assert uses.get(slots, 0) == owners.blocks > 0, (slots, owners.blocks)  # noqa: S101
