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
ARRIVAL = "an arrival's event"
CACHE = "a cache change's event"
JOURNAL = "the journal's notes"
_ROUNDS = 20_000


@dataclass(slots=True)
class Tally:
    """``inner`` and ``inner_nanoseconds``: measured calls from within, and what they took by their own account."""

    calls: int = 0
    nanoseconds: int = 0
    inner: int = 0
    inner_nanoseconds: int = 0


class Meter:
    """Wraps parts of a driver. Belongs to the thread that the driver runs on."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self._current = Tally()
        self._seen, self._whole = _calibrated()

    def attach(self, driver: Driver) -> None:
        """Measures every step of the brain, and what the driver does for its sake before."""
        wrapped: Any = driver
        wrapped._step = self.measured(JOURNAL, driver._journal.around(self._by_event(driver._brain.step)))
        wrapped._blocks = self.measured(HASHING, driver._blocks)
        wrapped._arrival = self.measured(ARRIVAL, driver._arrival)
        wrapped._take_cache = self.measured(CACHE, driver._take_cache)

    def reset(self) -> None:
        for tally in self._tallies.values():
            tally.calls = tally.nanoseconds = tally.inner = tally.inner_nanoseconds = 0

    def measured(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call`` with its CPU put down under ``name``."""
        tally, clock = self._tallies.setdefault(name, Tally()), time.thread_time_ns

        def measured(*args: Any) -> Any:
            around, self._current = self._current, tally
            began = clock()
            try:
                return call(*args)
            finally:
                spent = clock() - began
                self._current = around
                around.inner += 1
                around.inner_nanoseconds += spent
                tally.calls += 1
                tally.nanoseconds += spent

        return measured

    def report(self) -> dict[str, dict[str, float]]:
        """Calls and CPU microseconds without those of measured calls from within, by name."""
        return {
            name: {"calls": tally.calls, "microseconds": self._own(tally) / 1000}
            for name, tally in self._tallies.items()
            if tally.calls
        }

    def _by_event(self, step: Callable[..., Any]) -> Callable[..., Any]:
        by_type = {kind: self.measured(kind.__name__, step) for kind in m.Event.__args__}
        return lambda event, now: by_type[type(event)](event, now)

    def _own(self, tally: Tally) -> float:
        around_inner = tally.inner_nanoseconds + tally.inner * (self._whole - self._seen)
        return tally.nanoseconds - tally.calls * self._seen - around_inner


def _calibrated() -> tuple[float, float]:
    """Nanoseconds that a measured call of nothing puts down, and that it takes in all."""
    meter = object.__new__(Meter)
    meter._tallies, meter._current = {}, Tally()

    def nothing(*args: Any) -> None:
        return None

    least_seen = least_whole = float("inf")
    for _ in range(5):
        measured = meter.measured("nothing", nothing)
        tally = meter._tallies.pop("nothing")
        began = time.thread_time_ns()
        for _ in range(_ROUNDS):
            measured(None, None)
        least_whole = min(least_whole, (time.thread_time_ns() - began) / _ROUNDS)
        least_seen = min(least_seen, tally.nanoseconds / _ROUNDS)
    return least_seen, least_whole
