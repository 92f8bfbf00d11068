"""Hashes of a prompt's blocks (``blocks`` defines them) in the machine's own arithmetic, where this file is compiled.

As it stands it gives the same results, but slowly: then ``gateway.hashing`` takes vectors, which are quicker than this
interpreted and several times as slow as this compiled, most of all where a gateway did other things in between.

Numbers of 64 bits are taken for signed ones, which changes no bit of them. Compiled they wrap around; interpreted they
grow, but nothing above bit 63 is ever looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Final

from orchestrator.core import blocks

if TYPE_CHECKING:
    from mypy_extensions import i64

_HALF: Final = 32
_LOW: Final = (1 << 32) - 1


class _Weight:
    """A number that is read without a Python object being made of it."""

    __slots__ = ("value",)

    def __init__(self, value: i64) -> None:
        self.value = value


def hashes(tokens: list[int], block_size: int, root: int, extras: Mapping[int, int]) -> list[int]:
    """Hashes of the full blocks of ``tokens``; ``extras`` (see ``blocks.extra_term``) by the number of the block.

    Raises:
        OverflowError: a token has more than 63 bits (where this is compiled).
    """
    weights = _weights(block_size)
    start: i64 = _signed(blocks.START)
    step: i64 = blocks.STEP & blocks.MASK
    mask: i64 = blocks.MASK
    low: i64 = _LOW
    half: i64 = _HALF
    before: i64 = root
    power: i64 = 1
    place: i64 = 0
    found: list[int] = []
    for number in range(len(tokens) // block_size):
        x: i64 = start
        for weight in weights:
            token: i64 = tokens[place]
            x += token * weight.value
            place += 1
        if extras:
            x += _signed(extras.get(number, 0))
        power = (power * step) & mask
        before = (before + (x ^ ((x >> half) & low)) * power) & mask
        found.append(before)
    return found


@cache
def _weights(block_size: int) -> list[_Weight]:
    return [_Weight(_signed(number)) for number in blocks.coefficients(block_size)]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
