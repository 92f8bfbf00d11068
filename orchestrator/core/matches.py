"""How much of one prompt workers hold, as sets of workers: their slots in the prefix index."""

from __future__ import annotations

from typing import Final

from orchestrator.core.slot_sets import BITS, LAST, SHIFT, Parts, gather, has, members
from orchestrator.core.values import mypyc_attr


@mypyc_attr(free_list_len=1)
class Matches:
    """Which workers hold how many leading blocks of one prompt.

    ``levels`` go from the longest match to the shortest: (blocks, slots with a match of at least that length), so each
    set is part of the next. ``on_their_way``: slots with a longer one than that by what is on its way to them.
    """

    __slots__ = ("levels", "on_their_way")

    def __init__(
        self, levels: list[tuple[int, Parts]] | None = None, on_their_way: dict[int, int] | None = None
    ) -> None:
        self.levels: list[tuple[int, Parts]] = levels if levels is not None else []
        self.on_their_way: dict[int, int] = on_their_way if on_their_way is not None else {}

    def __bool__(self) -> bool:
        """Whether anybody has any."""
        return bool(self.levels or self.on_their_way)

    def blocks(self, slot: int) -> int:
        """Leading blocks that this slot's worker holds."""
        if self.on_their_way:
            known = self.on_their_way.get(slot)
            if known is not None:
                return known
        part, bit = slot >> SHIFT, BITS[slot & LAST]
        longest = 0
        for level in range(len(self.levels) - 1, -1, -1):  # mostly it isn't even in the largest set
            length, slots = self.levels[level]
            if part >= len(slots) or not slots[part] & bit:
                break
            longest = length
        return longest

    def holders(self, within: list[int], at_most: int, start: int = 0) -> list[int]:
        """Up to ``at_most`` slots of the set ``within`` that hold something, longest match first.

        Among equals those from ``start`` on downwards come first, so that a caller can let them take turns.
        """
        found: list[int] = []
        if self.on_their_way:
            for slot in sorted(self.on_their_way, key=self.blocks, reverse=True):
                if len(found) < at_most and has(within, slot):
                    found.append(slot)
        for _, slots in self.levels:
            if len(found) == at_most:
                break
            gather(slots, within, start, at_most, found)
        return found

    def scores(self) -> dict[int, int]:
        """Every slot that holds something, and how many leading blocks."""
        found: dict[int, int] = {}
        longer: Parts = ()
        for length, slots in self.levels:
            found.update(dict.fromkeys(members(slots, longer), length))
            longer = slots
        found.update(self.on_their_way)
        return found


NO_MATCHES: Final = Matches()
