"""Which worker's prefix cache holds how much of a prompt.

A block is known by a hash over all tokens up to its end (``blocks``). For each hash the index keeps the set of workers
that have it, as the bits of an integer: a worker's bit is its *slot*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Matches:
    """Which workers hold how many leading blocks of one prompt.

    ``levels`` go from the longest match to the shortest: (blocks, slots whose match is exactly that long); a slot that
    holds nothing is in none of them.
    """

    levels: Sequence[tuple[int, int]] = ()

    def blocks(self, slot: int) -> int:
        """Leading blocks that this slot's worker holds."""
        bit = 1 << slot
        for length, slots in self.levels:
            if slots & bit:
                return length
        return 0


NO_MATCHES = Matches()


class PrefixIndex:
    """One model's index. What is told of a slot that is not joined is ignored: news crosses."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._joined = 0

    def join(self, capacity: int | None = None) -> int:
        """A slot for a new worker. ``capacity`` (blocks): it tells no events, so what is routed there is taken for
        stored until that many newer blocks were; None: it tells events."""
        slot = 0
        while self._joined >> slot & 1:
            slot += 1
        self._joined |= 1 << slot
        return slot

    def leave(self, slot: int) -> None:
        """The worker is gone, and its entries with it."""
        self._joined &= ~(1 << slot)
        self.changed(slot, cleared=True)

    def changed(
        self, slot: int, *, stored: Sequence[int] = (), removed: Sequence[int] = (), cleared: bool = False
    ) -> None:
        """The worker's own word of its cache; in the order cleared, removed, stored."""
        bit = 1 << slot
        for block in list(self._holders) if cleared else removed:
            self._holders[block] = self._holders.get(block, 0) & ~bit
        for block in stored:
            self._holders[block] = self._holders.get(block, 0) | bit

    def routed(self, slot: int, blocks: Sequence[int], known: int) -> None:
        """A request with these blocks was sent there, ``known`` of which were matched: the others will soon be stored,
        so a request with the same prompt that comes before the worker says so finds it too."""

    def settled(self, slot: int, blocks: Sequence[int], known: int) -> None:
        """The opposite of ``routed``, once for each: the worker has said by now what it stored, or never will."""

    def match(self, blocks: Sequence[int]) -> Matches:
        """Who holds how many of the leading blocks."""
        levels: list[tuple[int, int]] = []
        everyone = self._joined
        for length, block in enumerate([*blocks, None]):
            still = everyone & self._holders.get(block, 0) if block is not None else 0
            if length and everyone & ~still:
                levels.append((length, everyone & ~still))
            everyone = still
            if not everyone:
                break
        return Matches(levels[::-1])
