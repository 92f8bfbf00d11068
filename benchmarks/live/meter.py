"""CPU of the gateway's thread that goes into deciding, by what it goes into.

Timed with the thread's own CPU clock, so that what the kernel gives to others does not count. What the clock and the
wrapping themselves take, where caches are warm, is measured first and taken off again. A gateway does much else between
two decisions, so each finds the processor's caches cold: the same steps are therefore taken once more at the end, one
right after the other, by another brain that is fed the same events from the first one on.

Nothing of the core is touched, so that a compiled one is measured as it is: what is wrapped stands around it.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.core.spec import ClusterSpec
from orchestrator.gateway import gateway
from orchestrator.gateway.driver import Driver
from orchestrator.record.journal import Journal

HASHING = "block hashes"
ARRIVAL = "an arrival's event"
CACHE = "a cache change's event"
LOAD = "a load report's event"
NOTHING = "nothing, measured first so that the clock is warm"
COLLECTOR = "garbage collections, wherever they fall"
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
    """Wraps parts of the gateway, before there are any objects of them. Belongs to the gateway's thread."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self._current = Tally()
        self._seen, self._whole = _calibrated()
        self._state: Any = None  # of the brain's dice, before the first event
        self._plain_hash = Driver._blocks
        self._steps: list[tuple[m.Event, float]] = []  # all of them, from the first one on
        self._hashed: list[tuple[Any, ...]] = []  # those that count
        self._first = self._last = 0  # which of the steps count
        self._nothing = self.measured(NOTHING, lambda: None)
        self._collection_began = 0
        self._loop_thread = 0

    def attach(self) -> None:
        """Measures every step of the brain, and what the driver does for its sake before."""
        driver: Any = Driver
        module: Any = gateway
        module.Journal = lambda recorder=None: _Around(Journal(recorder), self)
        driver.submit = self._clock_first(Driver.submit)
        driver.stepped = self._clock_first(Driver.stepped)
        driver._blocks = self._noting_hashes(self.measured(HASHING, Driver._blocks))
        driver._arrival = self.measured(ARRIVAL, Driver._arrival)
        driver._take_cache = self.measured(CACHE, Driver._take_cache)
        driver._take_load = self.measured(LOAD, Driver._take_load)
        gc.callbacks.append(self._collected)

    def reset(self) -> None:
        """What counts begins here. On the thread that is measured."""
        self._loop_thread = threading.get_ident()
        self._first = self._last = len(self._steps)
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
        """Calls and CPU microseconds without those of measured calls from within, by name; what counts ends here."""
        self._last = len(self._steps)
        return {
            name: {"calls": tally.calls, "microseconds": self._own(tally) / 1000}
            for name, tally in self._tallies.items()
            if tally.calls
        }

    def warm(self, spec: ClusterSpec) -> dict[str, float]:
        """CPU microseconds that all steps and hashes that count take back to back, by name."""
        dice, clock = Random(), time.thread_time_ns
        dice.setstate(self._state)
        brain = Brain.of(spec, dice)
        spent = dict.fromkeys([HASHING, *(kind.__name__ for kind in m.Event.__args__)], 0.0)
        gc.collect()  # none of the steps' doing, and long in a process of this size
        for place, (event, now) in enumerate(self._steps[: self._last]):
            began = clock()
            brain.step(event, now)
            ended = clock()
            if place >= self._first:
                spent[type(event).__name__] += ended - began - self._seen
        for args in list(self._hashed):
            began = clock()
            self._plain_hash(*args)
            spent[HASHING] += clock() - began - self._seen
        return {name: nanoseconds / 1000 for name, nanoseconds in spent.items() if nanoseconds}

    def step_of(self, brain: Brain) -> Callable[[m.Event, float], list[m.Command]]:
        """The brain's step, measured by event and noted."""
        by_type = {kind: self.measured(kind.__name__, brain.step) for kind in m.Event.__args__}
        note = self._steps.append
        self._state = brain._rng.getstate()

        def noting(event: m.Event, now: float) -> Any:
            note((event, now))
            return by_type[type(event)](event, now)

        return noting

    def _clock_first(self, call: Callable[..., Any]) -> Callable[..., Any]:
        nothing = self._nothing

        def called(*args: Any) -> Any:
            nothing()
            return call(*args)

        return called

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        if threading.get_ident() != self._loop_thread:
            return
        if phase == "start":
            self._collection_began = time.thread_time_ns()
        else:
            tally = self._tallies.setdefault(COLLECTOR, Tally())
            tally.calls += 1
            tally.nanoseconds += time.thread_time_ns() - self._collection_began

    def _noting_hashes(self, call: Callable[..., Any]) -> Callable[..., Any]:
        note = self._hashed.append

        def noting(*args: Any) -> Any:
            note(args)
            return call(*args)

        return noting

    def _own(self, tally: Tally) -> float:
        around_inner = tally.inner_nanoseconds + tally.inner * (self._whole - self._seen)
        return tally.nanoseconds - tally.calls * self._seen - around_inner


class _Around:
    """A journal, measured, around a brain that is."""

    def __init__(self, journal: Journal, meter: Meter) -> None:
        self._journal = journal
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def around(self, step: Any) -> Any:
        return self._meter.measured(JOURNAL, self._journal.around(self._meter.step_of(step.__self__)))


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
