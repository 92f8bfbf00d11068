"""Counts by size, in steps of half a percent: percentiles of any number of values in little memory."""

from __future__ import annotations

from math import ceil, log
from typing import Final

_STEP: Final = log(1.005)
_LEAST = 1e-6


class _Bin:
    __slots__ = ("count", "sum")

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0.0


class Histogram:
    """Values in seconds; those below a microsecond count as one. A step stands for the mean of what is in it."""

    __slots__ = ("_bins", "_last", "_value", "count")

    def __init__(self) -> None:
        self.count = 0
        self._bins: dict[int, _Bin] = {}
        self._value = 0.0  # the last one, which mostly comes again
        self._last = self._bin(0.0)

    def add(self, value: float, count: int = 1) -> None:
        """``count`` values of that size."""
        if value != self._value:
            self._value, self._last = value, self._bin(value)
        last = self._last
        last.count += count
        last.sum += count * value
        self.count += count

    def _bin(self, value: float) -> _Bin:
        place = int(log(value / _LEAST) / _STEP + 0.5) if value > _LEAST else 0
        found = self._bins.get(place)
        if found is None:
            found = self._bins[place] = _Bin()
        return found

    def curve(self) -> list[tuple[float, float]]:
        """(value, share of values that are not above it), rising."""
        points, seen = [], 0
        for each in self._rising():
            seen += each.count
            points.append((each.sum / each.count, seen / self.count))
        return points

    def percentile(self, percent: float) -> float | None:
        """The value that so many percent are not above; None if there are no values."""
        wanted = ceil(self.count * percent / 100)
        seen = 0
        for each in self._rising():
            seen += each.count
            if seen >= wanted:
                return each.sum / each.count
        return None

    def _rising(self) -> list[_Bin]:
        """Those that have anything, smallest values first."""
        return [self._bins[place] for place in sorted(self._bins) if self._bins[place].count]
