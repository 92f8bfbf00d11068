"""How much of one prompt workers hold, as sets of workers: the bits of integers, by their slots in the prefix index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

_FEW = 4  # bits that are quicker found one by one
_WINDOW_BITS = 960
_WINDOW = (1 << _WINDOW_BITS) - 1


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


class Matches:
    """Which workers hold how many leading blocks of one prompt.

    ``levels`` go from the longest match to the shortest: (blocks, slots whose match is exactly that long); a slot that
    holds nothing is in none of them. ``anyone``: all slots that are in any.
    """

    __slots__ = ("_seen", "anyone", "levels")

    def __init__(self, levels: Sequence[tuple[int, int]] = (), anyone: int = 0) -> None:
        self.levels = levels
        self.anyone = anyone
        self._seen: dict[int, int] = {}  # slot -> blocks, of those that ``holders`` came across

    def blocks(self, slot: int) -> int:
        """Leading blocks that this slot's worker holds."""
        seen = self._seen.get(slot)
        if seen is not None:
            return seen
        if not self.anyone >> slot & 1:  # mostly, in a large fleet
            return 0
        for length, slots in self.levels:
            if slots >> slot & 1:
                return length
        return 0

    def holders(self, within: int, at_most: int, start: int = 0) -> list[int]:
        """Up to ``at_most`` slots of the mask ``within`` that hold something, longest match first.

        Among equals those from ``start`` on come first, so that a caller can let them take turns.
        """
        found: list[int] = []
        for length, slots in self.levels:
            here = slots & within
            first = len(found)
            _lowest(here >> start, start, at_most, found)
            if len(found) < at_most and start:
                _lowest(here & (1 << start) - 1, 0, at_most, found)
            for slot in found[first:]:
                self._seen[slot] = length
            if len(found) == at_most:
                break
        return found

    def scores(self) -> dict[int, int]:
        """Every slot that holds something, and how many leading blocks."""
        return {slot: length for length, slots in self.levels for slot in slots_of(slots)}


NO_MATCHES = Matches()


def _lowest(mask: int, base: int, at_most: int, found: list[int]) -> None:
    """Appends ``base`` and the place of each bit that is set, lowest first, until there are ``at_most``.

    With thousands of workers each look at the whole mask costs, so most are at a window of it.
    """
    while mask:
        window = mask & _WINDOW
        while window:
            if len(found) == at_most:
                return
            lowest = window & -window
            found.append(base + lowest.bit_length() - 1)
            window ^= lowest
        mask >>= _WINDOW_BITS
        base += _WINDOW_BITS


def above(levels: Sequence[tuple[int, int]], longer: Mapping[int, int]) -> list[tuple[int, int]]:
    """The levels with some slots taken out of them and put on top, at longer matches."""
    on_top: dict[int, int] = {}
    moved = 0
    for slot, length in longer.items():
        on_top[length] = on_top.get(length, 0) | 1 << slot
        moved |= 1 << slot
    rest = [(length, left) for length, slots in levels if (left := slots & ~moved)]
    return [*sorted(on_top.items(), reverse=True), *rest]
