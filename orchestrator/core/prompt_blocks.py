"""Hashes of a prompt's blocks (``blocks`` defines them) in the machine's own arithmetic, where this file is compiled.

As it stands it gives the same results, but slowly, the more so the larger a block is: then ``gateway.hashing`` takes
vectors, which are quicker than this interpreted and several times as slow as this compiled, most of all where a gateway
did other things in between.

Numbers of 64 bits are taken for signed ones, which changes no bit of them. Compiled they wrap around; interpreted they
grow, but nothing above bit 63 is ever looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orchestrator.core import blocks

if TYPE_CHECKING:
    from mypy_extensions import i64

_HALF: Final = 32
_LOW: Final = (1 << 32) - 1


def hashes(tokens: list[int], block_size: int, root: int, extras: Mapping[int, int]) -> list[int]:
    """Hashes of the full blocks of ``tokens``; ``extras`` (see ``blocks.extra_term``) by the number of the block.

    Raises:
        ValueError: a token has more than 63 bits (where this is compiled).
    """
    size: i64 = block_size
    start: i64 = _signed(blocks.START)
    factor: i64 = _signed(blocks.FACTOR)
    step: i64 = blocks.STEP & blocks.MASK
    mask: i64 = blocks.MASK
    low: i64 = _LOW
    half: i64 = _HALF
    before: i64 = root
    power: i64 = 1
    special = bool(extras)
    found: list[int] = []
    x: i64 = 0
    left: i64 = size
    token: i64
    for token in tokens:
        x = x * factor + token
        left -= 1
        if left == 0:
            x += start
            if special:
                x += _signed(extras.get(len(found), 0))
            power = (power * step) & mask
            before = (before + (x ^ ((x >> half) & low)) * power) & mask
            found.append(before)
            x, left = 0, size
    return found


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
