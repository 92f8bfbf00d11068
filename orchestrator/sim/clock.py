"""Virtual time: what happens next, ordered by (time, sequence).

Two things due at the same time happen in the order in which they were asked for. The sequence number also keeps the
order from ever depending on actions.

With thousands of engines most of what is planned lies far ahead, and a heap of it all is too large to be near the
processor. So what comes later waits, unordered, with its own short slice of time, and is sorted when that has come;
what is asked for within the present slice is put in its place there.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Action = Callable[[Any], None]
_Entry = tuple[float, int, Action, Any]
_SLICES = 4000.0  # a second


class Clock:
    """Seconds from 0."""

    __slots__ = ("_due", "_edge", "_later", "_next", "_place", "_sequence", "_stopped", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._sequence = 0
        self._due: list[_Entry] = []  # in order: all that is due before ``_edge``, which is a slice
        self._place = 0  # in it, of what comes next
        self._edge = 0
        self._later: dict[int, list[_Entry]] = {}  # by slice
        self._next: list[int] = []  # a heap: the slices that have anything
        self._stopped = False

    def at(self, time: float, action: Action, what: Any = None) -> None:
        """Has ``action(what)`` run at ``time``, which must not have passed."""
        self._sequence += 1
        entry = (time, self._sequence, action, what)
        part = int(time * _SLICES)
        if part < self._edge:
            insort(self._due, entry, self._place)
            return
        waiting = self._later.get(part)
        if waiting is None:
            self._later[part] = [entry]
            heappush(self._next, part)
        else:
            waiting.append(entry)

    def after(self, seconds: float, action: Action, what: Any = None) -> None:
        """Has ``action(what)`` run in ``seconds``."""
        self.at(self.now + seconds, action, what)

    def stop(self, _: object = None) -> None:
        """Ends ``run`` when the action under way has returned."""
        self._stopped = True

    def run(self) -> None:
        """Runs actions in order until ``stop`` or until there are none."""
        self._stopped = False
        while not self._stopped:
            due = self._due
            while self._place < len(due):
                entry = due[self._place]
                self._place += 1
                self.now = entry[0]
                entry[2](entry[3])
                if self._stopped:
                    return
            if not self._next:
                return
            part = heappop(self._next)
            self._due = self._later.pop(part)
            self._due.sort()
            self._place = 0
            self._edge = part + 1
