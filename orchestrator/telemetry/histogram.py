"""A histogram for the path of every token: prometheus_client's takes a lock a bucket, some ten times the price."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily


class StepHistogram:
    """Counts of values by upper bound. One thread writes; a reader sees each count whole."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    @staticmethod
    def family(name: str, help_text: str, labels: Sequence[str]) -> HistogramMetricFamily:
        """An empty metric to ``add_to``."""
        return HistogramMetricFamily(name, help_text, labels=labels)

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Adds one series, in Prometheus's cumulative form."""
        bounds = [*map(str, self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)
