"""Virtual time: what happens next, ordered by (time, sequence).

Two things due at the same time happen in the order in which they were asked for. The sequence number also keeps the
order from ever depending on actions.

With thousands of engines most of what is planned lies far ahead, and a heap of it all is too large to be near the
processor. So only the present thousandth of a second is a heap; what comes later waits, unordered, with its own
thousandth, and becomes the heap when its time has come.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

Action = Callable[[Any], None]
_Entry = tuple[float, int, Action, Any]
_SLICES = 1000.0  # a second


class Clock:
    """Seconds from 0."""

    __slots__ = ("_due", "_edge", "_later", "_next", "_sequence", "_stopped", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._sequence = count()
        self._due: list[_Entry] = []  # a heap: all that is due before ``_edge``, which is a slice
        self._edge = 0
        self._later: dict[int, list[_Entry]] = {}  # by slice
        self._next: list[int] = []  # a heap: the slices that have anything
        self._stopped = False

    def at(self, time: float, action: Action, what: Any = None) -> None:
        """Has ``action(what)`` run at ``time``, which must not have passed."""
        part = int(time * _SLICES)
        if part < self._edge:
            heappush(self._due, (time, next(self._sequence), action, what))
            return
        waiting = self._later.get(part)
        if waiting is None:
            self._later[part] = [(time, next(self._sequence), action, what)]
            heappush(self._next, part)
        else:
            waiting.append((time, next(self._sequence), action, what))

    def after(self, seconds: float, action: Action, what: Any = None) -> None:
        """Has ``action(what)`` run in ``seconds``."""
        self.at(self.now + seconds, action, what)

    def stop(self, _: object = None) -> None:
        """Ends ``run`` when the action under way has returned."""
        self._stopped = True

    def run(self) -> None:
        """Runs actions in order until ``stop`` or until there are none."""
        self._stopped = False
        pop = heappop
        while not self._stopped:
            due = self._due
            while due and not self._stopped:
                self.now, _, action, what = pop(due)
                action(what)
            if self._stopped or not self._next:
                return
            part = pop(self._next)
            self._due = self._later.pop(part)
            heapify(self._due)
            self._edge = part + 1
