"""Sets of small numbers, here the slots of a prefix index, as the bits of integers.

A fleet has thousands of slots, and an integer with a bit for each is slow to shift, to hash and to copy for the sake of
one of them. So the bits are in parts: whoever asks about a slot looks at one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

Parts = tuple[int, ...]
"""The set as a value: the bits of slots 0 to 1023, of 1024 to 2047 ...; the last part is not 0, so that equal sets are
equal."""

SHIFT = 10
PART: Final = 1 << SHIFT
LAST: Final = PART - 1
_FEW = 4  # bits that are quicker found one by one
BITS: Final = tuple(1 << slot for slot in range(PART))  # made once: they are large


def has(parts: Sequence[int], slot: int) -> bool:
    part = slot >> SHIFT
    return part < len(parts) and bool(parts[part] & BITS[slot & LAST])


def put(parts: list[int], slot: int) -> None:
    """Into a set that changes."""
    part = slot >> SHIFT
    while len(parts) <= part:
        parts.append(0)
    parts[part] |= 1 << (slot & LAST)


def take(parts: list[int], slot: int) -> None:
    """Out of a set that changes; it may not be there."""
    if has(parts, slot):
        parts[slot >> SHIFT] ^= 1 << (slot & LAST)
        _trim(parts)


def alone(slot: int) -> Parts:
    """The set of one."""
    return (*[0] * (slot >> SHIFT), 1 << (slot & LAST))


def flipped(parts: Parts, slot: int) -> Parts:
    """With the slot if it was not there, without it if it was."""
    changed = list(parts)
    if has(parts, slot):
        take(changed, slot)
    else:
        put(changed, slot)
    return tuple(changed)


def common(parts: Sequence[int], others: Sequence[int]) -> Parts:
    """What is in both."""
    both = [parts[place] & others[place] for place in range(min(len(parts), len(others)))]
    _trim(both)
    return tuple(both)


def difference(parts: Sequence[int], others: Sequence[int]) -> Parts:
    """What is in the first only."""
    rest = [bits & ~others[place] if place < len(others) else bits for place, bits in enumerate(parts)]
    _trim(rest)
    return tuple(rest)


def top(parts: Sequence[int]) -> int:
    """One more than the highest slot."""
    return (len(parts) - 1 << SHIFT) + parts[-1].bit_length() if parts else 0


def gather(parts: Parts, within: list[int], start: int, most: int, found: list[int]) -> None:
    """Appends slots that are in both, if they aren't in ``found`` yet, until that has ``most``: from ``start`` on
    downwards, and then from the highest one."""
    count = min(len(parts), len(within))
    known = len(found)
    if known >= most:
        return
    first, bit = start >> SHIFT, start & LAST
    if first >= count:
        first, bit = count - 1, LAST
    for turn in range(count + 1 if count else 0):
        part = (first - turn) % count
        here = parts[part] & within[part]
        if turn == 0:
            here &= (2 << bit) - 1
        elif turn == count:
            here = here >> bit + 1 << bit + 1
        while here:
            highest = here.bit_length() - 1
            slot = (part << SHIFT) + highest
            if not known or slot not in found:
                found.append(slot)
                if len(found) == most:
                    return
            here ^= BITS[highest]


def members(parts: Sequence[int], but: Sequence[int] = ()) -> list[int]:
    """All slots that are not in ``but``, which is a part of the set."""
    found: list[int] = []
    for part, bits in enumerate(parts):
        rest = bits ^ but[part] if part < len(but) else bits
        base = part << SHIFT
        found += [base + slot for slot in _bits(rest)] if base else _bits(rest)
    return found


def _trim(parts: list[int]) -> None:
    while parts and not parts[-1]:
        parts.pop()


def _bits(mask: int) -> Sequence[int]:
    """The bits that are set."""
    if mask.bit_count() > _FEW:
        return _many_bits(mask)
    found = []
    while mask:
        highest = mask.bit_length() - 1
        found.append(highest)
        mask ^= 1 << highest
    return found


@lru_cache(512)  # the same sets come again and again
def _many_bits(mask: int) -> Sequence[int]:
    bits = bin(mask)[:1:-1]
    found = []
    place = bits.find("1")
    while place >= 0:
        found.append(place)
        place = bits.find("1", place + 1)
    return found
