"""What a client asks for, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

UNSHARED = 1 << 58  # hashes from here on are of blocks that no other prompt has
_GROUP = 1 << 16


class Offer(NamedTuple):
    """One request: ``at`` in seconds from the first one, ``blocks`` the hashes of its prompt's full blocks."""

    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int]
    tenant: str = ""
    affinity: str = ""


def spread(number: int) -> int:
    """A hash that looks like one: numbers in a row come out all over 58 bits, no two alike."""
    return number * 0x2545F4914F6CDD1D & (UNSHARED - 1)


def placed(number: int) -> int:
    """A hash for what is numbered, no two alike. Those in a row are near each other in the lowest bits, by which dicts
    place them, and after 65,536 of them come others in another shard of the index (``core.block_table``)."""
    low, shard, middle, high = number & _GROUP - 1, number >> 16 & 63, number >> 22 & 255, number >> 30
    return high << 30 | shard << 24 | middle << 16 | low


def unshared(number: int, count: int) -> Sequence[int]:
    """Hashes of so many blocks that no other prompt has, numbered from ``number`` on."""
    if (number & _GROUP - 1) + count <= _GROUP:
        first = UNSHARED + placed(number)
        return range(first, first + count)
    return [UNSHARED + placed(each) for each in range(number, number + count)]


def best_hits(offers: Sequence[Offer], block_size: int) -> int:
    """Prompt tokens that one cache without bounds would have saved, if each prompt were in it at once."""
    seen: set[int] = set()
    saved = 0
    for offer in offers:
        blocks = offer.blocks
        most = min(len(blocks), (offer.prompt_tokens - 1) // block_size)
        low, high = 0, most  # chained hashes: what is known is a front
        while low < high:
            middle = (low + high + 1) // 2
            if blocks[middle - 1] in seen:
                low = middle
            else:
                high = middle - 1
        saved += low * block_size
        seen.update(blocks[low:])
    return saved
