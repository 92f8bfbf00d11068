"""Counts by size, in steps of half a percent: percentiles of any number of values in little memory."""

from __future__ import annotations

from math import ceil, log

_STEP = log(1.005)
_LEAST = 1e-6
_REMEMBERED = 4096


class Histogram:
    """Values in seconds; those below a microsecond count as one. A step stands for the mean of what is in it."""

    __slots__ = ("_counts", "_places", "_sums", "count")

    def __init__(self) -> None:
        self.count = 0
        self._counts: dict[int, int] = {}
        self._sums: dict[int, float] = {}
        self._places: dict[float, int] = {}  # of values seen lately: few differ

    def add(self, value: float, count: int = 1) -> None:
        """``count`` values of that size."""
        place = self._places.get(value)
        if place is None:
            if len(self._places) > _REMEMBERED:
                self._places.clear()
            place = self._places[value] = round(log(value / _LEAST) / _STEP) if value > _LEAST else 0
        if place in self._counts:
            self._counts[place] += count
            self._sums[place] += count * value
        else:
            self._counts[place] = count
            self._sums[place] = count * value
        self.count += count

    def curve(self) -> list[tuple[float, float]]:
        """(value, share of values that are not above it), rising."""
        points, seen = [], 0
        for place in sorted(self._counts):
            seen += self._counts[place]
            points.append((self._sums[place] / self._counts[place], seen / self.count))
        return points

    def percentile(self, percent: float) -> float | None:
        """The value that so many percent are not above; None if there are no values."""
        wanted = ceil(self.count * percent / 100)
        seen = 0
        for place in sorted(self._counts):
            seen += self._counts[place]
            if seen >= wanted:
                return self._sums[place] / self._counts[place]
        return None
