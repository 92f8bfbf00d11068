"""CPU of the gateway's thread that goes into deciding, by what it goes into.

Timed with the thread's own CPU clock, so that what the kernel gives to others does not count. What the clock and the
wrapping themselves take is measured first and taken off again. A gateway does much else between two decisions, so each
finds the processor's caches cold: the same steps are therefore taken once more at the end, one right after the other,
by a copy of the brain.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.gateway.driver import Driver
from orchestrator.record.journal import Journal

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
    """Wraps parts of the gateway's classes, before there are any objects of them. Belongs to the gateway's thread."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self._current = Tally()
        self._seen, self._whole = _calibrated()
        self._brain: Brain | None = None
        self._before: Brain | None = None
        self._plain_step = Brain.step
        self._plain_hash = Driver._blocks
        self._steps: list[tuple[m.Event, float]] = []
        self._hashed: list[tuple[Any, ...]] = []

    def attach(self) -> None:
        """Measures every step of the brain, and what the driver does for its sake before."""
        brain: Any = Brain
        driver: Any = Driver
        journal: Any = Journal
        brain.step = self._by_event(Brain.step)
        around = Journal.around
        journal.around = lambda kept, step: self.measured(JOURNAL, around(kept, step))
        driver._blocks = self._noting_hashes(self.measured(HASHING, Driver._blocks))
        driver._arrival = self.measured(ARRIVAL, Driver._arrival)
        driver._take_cache = self.measured(CACHE, Driver._take_cache)

    def reset(self) -> None:
        """Begins anew, while no request is under way."""
        self._before = copy.deepcopy(self._brain)
        self._steps.clear()
        self._hashed.clear()
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

    def warm(self) -> dict[str, float]:
        """CPU microseconds that all steps and hashes since ``reset`` take back to back, by name."""
        brain, clock = self._before, time.thread_time_ns
        assert brain is not None
        spent = dict.fromkeys([HASHING, *(kind.__name__ for kind in m.Event.__args__)], 0.0)
        gc.collect()  # none of the steps' doing, and long in a process of this size
        for event, now in list(self._steps):
            began = clock()
            self._plain_step(brain, event, now)
            spent[type(event).__name__] += clock() - began - self._seen
        for args in list(self._hashed):
            began = clock()
            self._plain_hash(*args)
            spent[HASHING] += clock() - began - self._seen
        return {name: nanoseconds / 1000 for name, nanoseconds in spent.items() if nanoseconds}

    def _by_event(self, step: Callable[..., Any]) -> Callable[..., Any]:
        by_type = {kind: self.measured(kind.__name__, step) for kind in m.Event.__args__}
        note = self._steps.append

        def noting(brain: Brain, event: m.Event, now: float) -> Any:
            self._brain = brain
            note((event, now))
            return by_type[type(event)](brain, event, now)

        return noting

    def _noting_hashes(self, call: Callable[..., Any]) -> Callable[..., Any]:
        note = self._hashed.append

        def noting(*args: Any) -> Any:
            note(args)
            return call(*args)

        return noting

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
