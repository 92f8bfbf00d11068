"""How much of one prompt workers hold, as sets of workers: the bits of integers, by their slots in the prefix index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

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

    ``levels`` go from the longest match to the shortest: (blocks, slots with a match of at least that length), so each
    set is part of the next. ``on_their_way``: slots with a longer one than that by what is on its way to them.
    """

    __slots__ = ("_known", "levels", "on_their_way")

    def __init__(
        self, levels: Sequence[tuple[int, int]] = (), on_their_way: Mapping[int, int] = MappingProxyType({})
    ) -> None:
        self.levels = levels
        self.on_their_way = on_their_way
        self._known: dict[int, int] = {**on_their_way}  # slot -> blocks: and of those that ``holders`` came across

    def __bool__(self) -> bool:
        """Whether anybody has any."""
        return bool(self.levels or self.on_their_way)

    def blocks(self, slot: int) -> int:
        """Leading blocks that this slot's worker holds."""
        known = self._known.get(slot)
        if known is not None:
            return known
        if not self.levels or not self.levels[-1][1] >> slot & 1:  # mostly, in a large fleet
            return 0
        return next(length for length, slots in self.levels if slots >> slot & 1)

    def holders(self, within: int, at_most: int, start: int = 0) -> list[int]:
        """Up to ``at_most`` slots of the mask ``within`` that hold something, longest match first.

        Among equals those from ``start`` on come first, so that a caller can let them take turns.
        """
        found: list[int] = []
        for slot in sorted(self.on_their_way, key=self.blocks, reverse=True) if self.on_their_way else ():
            if len(found) < at_most and within >> slot & 1:
                found.append(slot)
        for length, slots in self.levels:
            if len(found) == at_most:
                break
            here = slots & within
            first = len(found)
            _lowest(here >> start, start, at_most, found)
            if len(found) < at_most and start:
                _lowest(here & (1 << start) - 1, 0, at_most, found)
            for slot in found[first:]:
                self._known[slot] = length
        return found

    def scores(self) -> dict[int, int]:
        """Every slot that holds something, and how many leading blocks."""
        found: dict[int, int] = {}
        longer = 0
        for length, slots in self.levels:
            found.update(dict.fromkeys(slots_of(slots ^ longer), length))
            longer = slots
        found.update(self.on_their_way)
        return found


NO_MATCHES = Matches()


def _lowest(mask: int, base: int, at_most: int, found: list[int]) -> None:
    """Appends ``base`` and the place of each bit that is set, lowest first, if it isn't in yet, until ``at_most`` are.

    With thousands of workers each look at the whole mask costs, so most are at a window of it.
    """
    while mask:
        window = mask & _WINDOW
        while window:
            if len(found) == at_most:
                return
            lowest = window & -window
            slot = base + lowest.bit_length() - 1
            if slot not in found:
                found.append(slot)
            window ^= lowest
        mask >>= _WINDOW_BITS
        base += _WINDOW_BITS
