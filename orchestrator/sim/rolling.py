"""The hash of a tuple of numbers, without the tuple: kept for a while, its numbers would be all over the memory.

Rounds of xxHash (Collet) as CPython hashes tuples, and so the same hash. Natively numbers of 64 bits wrap around.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mypy_extensions import i64

# xxHash's primes, and what CPython makes of the last one, as signed numbers of 64 bits.
_FIRST: Final = 0x9E3779B185EBCA87 - (1 << 64)
_SECOND: Final = 0xC2B2AE3D27D4EB4F - (1 << 64)
_FIFTH: Final = 0x27D4EB2F165667C5
_LENGTHS: Final = _FIFTH ^ 3527539
_LOW: Final = (1 << 31) - 1
_HALF: Final = (1 << 32) - 1
_SIGN: Final = 1 << 31  # of an upper half
_MINUS_ONE: Final = 1546275796  # stands for -1, which is no hash


class Rolling:
    """``count`` numbers so far."""

    __slots__ = ("_first", "_second", "_sum", "count")

    def __init__(self) -> None:
        self.count = 0
        self._sum: i64 = _FIFTH
        self._first: i64 = _FIRST  # natively a constant of over 62 bits would be made a plain number at each use
        self._second: i64 = _SECOND

    def add(self, hashed: i64) -> None:
        """The next number's hash; that of an integer of up to 60 bits is itself."""
        mixed: i64 = self._sum + hashed * self._second
        self._sum = _wrapped((mixed << 31 | (mixed >> 33) & _LOW) * self._first)
        self.count += 1

    def take(self) -> i64:
        """The hash of all since the last call."""
        length: i64 = self.count
        found: i64 = _wrapped(self._sum + (length ^ _LENGTHS))
        self.count, self._sum = 0, _FIFTH
        return _MINUS_ONE if found == -1 else found


def _wrapped(number: i64) -> i64:
    """In 64 bits, as it is natively anyway."""
    upper: i64 = ((number >> 32) & _HALF ^ _SIGN) - _SIGN
    return upper << 32 | number & _HALF
