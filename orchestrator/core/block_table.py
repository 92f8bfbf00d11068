"""Which workers have a block: block hash -> the set of slots that have it.

Equal sets are one object, so a block costs its key and its place in a dict, at most 100 bytes at any fill, and what
changes along a prompt is seen by identity. The dict is cut into shards, none of which is large: what walks over all of
it (a worker that left, room to be given back) goes a shard at a time, and no insertion stalls its caller while a
million entries are moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from orchestrator.core.blocks import splitmix
from orchestrator.core.slot_sets import Parts, alone, common, difference, flipped, has, members

SHARD: Final = 24  # bits of a hash below those that choose its shard: a dict places by the lowest ones
_ROOM = 64  # bytes of dict a block; a key takes 32 more. Freshly grown it takes 60 at most, after much churn 120
_ALWAYS = 1 << 60  # a count that never comes to 0


class Owners:
    """A set of slots, and how many blocks have just these.

    ``key`` names it: the exclusive or of a random number for each slot (Zobrist, "A new hashing method with application
    for game playing", 1970), so that of two sets that differ in a slot one's name follows from the other's.
    """

    __slots__ = ("blocks", "key", "slots")

    def __init__(self, key: int, slots: Parts, blocks: int = 0) -> None:
        self.key = key
        self.slots = slots
        self.blocks = blocks


class BlockTable:
    """Slots are small numbers; a hash has 60 bits. ``shards`` is a power of two."""

    def __init__(self, shards: int) -> None:
        self.shards: list[dict[int, Owners]] = [{} for _ in range(shards)]
        self.last = shards - 1
        self._sets: dict[int, Owners] = {}  # by key: those that any block has, and those of a single slot
        self._single: list[Owners] = []
        self._tidied = 0

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def single(self, slot: int) -> Owners:
        """The set of just this slot: always the same object."""
        while len(self._single) <= slot:
            number = len(self._single)
            made = Owners(splitmix(number) >> 4, alone(number), _ALWAYS)
            self._single.append(made)
            self._sets[made.key] = made
        return self._single[slot]

    def has(self, block: int, slot: int) -> bool:
        """Whether this slot has it."""
        owners = self.shards[block >> SHARD & self.last].get(block)
        return owners is not None and has(owners.slots, slot)

    def add(self, blocks: Iterable[int], slot: int) -> None:
        """The slot has these from now on; it may have them already."""
        shards, last, single = self.shards, self.last, self.single(slot)
        was = will = single
        moved = 0
        keys: Iterable[Any] = (
            blocks  # natively a number is no object, and one that was made anew would be kept here too
        )
        for key in keys:
            block: int = key
            shard = shards[block >> SHARD & last]
            owners = shard.setdefault(key, single)
            if owners is single:
                continue
            if owners is not was:
                self._count(was, will, moved)
                was, will, moved = owners, owners if has(owners.slots, slot) else self._flipped(owners, slot), 0
            if will is not owners:
                shard[key] = will
                moved += 1
        self._count(was, will, moved)

    def discard(self, blocks: Iterable[int], slot: int) -> None:
        """The slot has these no longer; it may not have had them."""
        shards, last, single = self.shards, self.last, self.single(slot)
        was = will = single
        moved = 0
        for block in blocks:
            shard = shards[block >> SHARD & last]
            owners = shard.get(block)
            if owners is single:
                del shard[block]
            elif owners is not None:
                if owners is not was:
                    self._count(was, will, moved)
                    was, will, moved = owners, self._flipped(owners, slot) if has(owners.slots, slot) else owners, 0
                if will is not owners:
                    shard[block] = will
                    moved += 1
        self._count(was, will, moved)

    def strip(self, number: int, slots: Sequence[int]) -> int:
        """Takes a set of slots (in parts) out of one shard; returns how many blocks it looked at."""
        shard = self.shards[number]
        looked_at = len(shard)
        left = {owners: self._left(owners, gone) for owners, gone in self._touched(shard, slots)}
        for block, owners in [(block, owners) for block, owners in shard.items() if owners in left] if left else ():
            rest = left[owners]
            if rest is None:
                del shard[block]
                self._uncount(owners, 1)
            else:
                shard[block] = rest
                self._count(owners, rest, 1)
        return looked_at

    @staticmethod
    def _touched(shard: dict[int, Owners], slots: Sequence[int]) -> list[tuple[Owners, Parts]]:
        """The sets in it that have any of these slots, and which."""
        found = ((owners, common(owners.slots, slots)) for owners in dict.fromkeys(shard.values()))
        return [(owners, gone) for owners, gone in found if gone]

    def _left(self, owners: Owners, gone: Parts) -> Owners | None:
        """What is left of a set that some block has; None if nothing is."""
        key = owners.key
        for slot in members(gone):
            key ^= self._single[slot].key
        left = difference(owners.slots, gone)
        return (self._sets.get(key) or self._new(key, left)) if left else None

    def tidy(self, shards: int) -> None:
        """Gives room back that the next ``shards`` shards don't need: dicts only ever grow by themselves."""
        for number in range(self._tidied, self._tidied + shards):
            shard = self.shards[number & self.last]
            if shard.__sizeof__() > _ROOM * len(shard) + 300:
                self.shards[number & self.last] = {**shard}  # natively dict(shard) has as much room as before
        self._tidied = self._tidied + shards & self.last

    def _flipped(self, owners: Owners, slot: int) -> Owners:
        """The object that stands for this set with one slot more, or with one less of several."""
        key = owners.key ^ self._single[slot].key
        return self._sets.get(key) or self._new(key, flipped(owners.slots, slot))

    def _new(self, key: int, slots: Parts) -> Owners:
        made = self._sets[key] = Owners(key, slots)
        return made

    def _count(self, was: Owners, will: Owners, moved: int) -> None:
        """So many blocks had one set and have another now."""
        if moved:
            will.blocks += moved
            self._uncount(was, moved)

    def _uncount(self, owners: Owners, blocks: int) -> None:
        """So many blocks have the set no longer; one that no block has is forgotten."""
        owners.blocks -= blocks
        if not owners.blocks:
            self._sets.pop(owners.key, None)

    def check(self) -> None:
        """Raises AssertionError where a set is not the one object for it, or its blocks are miscounted; for tests."""
        uses: dict[Owners, int] = {}
        for number, shard in enumerate(self.shards):
            for block, owners in shard.items():
                assert block >> SHARD & self.last == number, block  # noqa: S101
                assert owners.slots, block  # noqa: S101
                uses[owners] = uses.get(owners, 0) + 1
        for key, owners in self._sets.items():
            assert owners.key == key, owners.slots  # noqa: S101
            assert owners in self._single or uses.get(owners, 0) == owners.blocks > 0, owners.slots  # noqa: S101
        assert uses.keys() <= set(self._sets.values())  # noqa: S101
        assert len({owners.slots for owners in self._sets.values()}) == len(self._sets)  # noqa: S101
