"""CPU of the gateway's thread that goes into deciding, by what it goes into.

Timed with the thread's own CPU clock, so that what the kernel gives to others does not count. What the clock and the
wrapping themselves take is measured first and taken off again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.core import messages as m
from orchestrator.gateway.driver import Driver

HASHING = "block hashes"
ARRIVAL = "the arrival's event, hashes included"
CACHE = "cache changes, from frame to index"
_ROUNDS = 20_000


@dataclass(slots=True)
class Tally:
    """``inner``: calls of other measured functions from within, whose wrapping is not this one's own time."""

    calls: int = 0
    nanoseconds: int = 0
    inner: int = 0


class Meter:
    """Wraps parts of a driver. Belongs to the thread that the driver runs on."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self._seen, self._whole = _calibrated()

    def attach(self, driver: Driver) -> None:
        """Measures every step of the brain, and what the driver does for its sake before."""
        brain: Any = driver._brain
        brain.step = self._by_event(brain.step)
        wrapped: Any = driver
        wrapped._blocks = self.measured(HASHING, driver._blocks)
        wrapped._arrival = self.measured(ARRIVAL, driver._arrival, inner=1)
        wrapped._take_cache = self.measured(CACHE, driver._take_cache)

    def reset(self) -> None:
        for tally in self.tallies.values():
            tally.calls = tally.nanoseconds = tally.inner = 0

    def measured(self, name: str, call: Callable[..., Any], inner: int = 0) -> Callable[..., Any]:
        """``call`` with its CPU put down under ``name``."""
        tally, clock = self._tally(name), time.thread_time_ns

        def measured(*args: Any) -> Any:
            began = clock()
            result = call(*args)
            tally.nanoseconds += clock() - began
            tally.calls += 1
            tally.inner += inner
            return result

        return measured

    def report(self) -> dict[str, dict[str, float]]:
        """Calls and CPU microseconds, by name."""
        return {
            name: {"calls": tally.calls, "microseconds": self._net(tally)}
            for name, tally in self.tallies.items()
            if tally.calls
        }

    def _by_event(self, step: Callable[..., Any]) -> Callable[..., Any]:
        by_type = {kind: self.measured(kind.__name__, step) for kind in m.Event.__args__ if kind is not m.CacheChanged}
        by_type[m.CacheChanged] = step  # measured from the frame on
        return lambda event, now: by_type[type(event)](event, now)

    def _tally(self, name: str) -> Tally:
        return self.tallies.setdefault(name, Tally())

    def _net(self, tally: Tally) -> float:
        return (tally.nanoseconds - tally.calls * self._seen - tally.inner * (self._whole - self._seen)) / 1000


def _calibrated() -> tuple[float, float]:
    """Nanoseconds that a measured call of nothing puts down, and that it takes in all."""
    meter = object.__new__(Meter)
    meter.tallies = {}

    def nothing(*args: Any) -> None:
        return None

    best_seen = best_whole = float("inf")
    for _ in range(5):
        measured = meter.measured("nothing", nothing)
        tally = meter.tallies.pop("nothing")
        began = time.thread_time_ns()
        for _ in range(_ROUNDS):
            measured(None, None)
        best_whole = min(best_whole, (time.thread_time_ns() - began) / _ROUNDS)
        best_seen = min(best_seen, tally.nanoseconds / _ROUNDS)
    return best_seen, best_whole
