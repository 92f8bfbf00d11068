"""How much of one prompt workers hold, as sets of workers: the bits of integers, by their slots in the prefix index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

_FEW = 4  # bits that are quicker found one by one


def slots_of(mask: int) -> Sequence[int]:
    """The bits that are set."""
    if mask.bit_count() > _FEW:
        return _many_slots(mask)
    found = []
    while mask:
        highest = mask.bit_length() - 1
        found.append(highest)
        mask ^= 1 << highest
    return found


@lru_cache(512)  # the same sets come again and again
def _many_slots(mask: int) -> Sequence[int]:
    bits = bin(mask)[:1:-1]
    found = []
    place = bits.find("1")
    while place >= 0:
        found.append(place)
        place = bits.find("1", place + 1)
    return found


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

    def holders(self, within: int, at_most: int, start: int = 0) -> list[int]:
        """Up to ``at_most`` slots of the mask ``within`` that hold something, longest match first.

        Among equals those from ``start`` on come first, so that a caller can let them take turns.
        """
        found: list[int] = []
        for _, slots in self.levels:
            here = slots & within
            from_start = here >> start << start
            for rest in (from_start, here ^ from_start):
                while rest:
                    if len(found) == at_most:
                        return found
                    lowest = rest & -rest
                    found.append(lowest.bit_length() - 1)
                    rest ^= lowest
        return found

    def scores(self) -> dict[int, int]:
        """Every slot that holds something, and how many leading blocks."""
        return {slot: length for length, slots in self.levels for slot in slots_of(slots)}


NO_MATCHES = Matches()


def above(levels: Sequence[tuple[int, int]], longer: Mapping[int, int]) -> list[tuple[int, int]]:
    """The levels with some slots taken out of them and put on top, at longer matches."""
    on_top: dict[int, int] = {}
    moved = 0
    for slot, length in longer.items():
        on_top[length] = on_top.get(length, 0) | 1 << slot
        moved |= 1 << slot
    rest = [(length, slots & ~moved) for length, slots in levels if slots & ~moved]
    return [*sorted(on_top.items(), reverse=True), *rest]
