"""Virtual time: what happens next.

Two things due at the same time happen in the order in which they were asked for.

With thousands of engines most of what is planned lies ahead, and a heap of it all is too large to be near the
processor. So the next seconds are cut into short slices: what is asked for waits in its slice, unordered, and is sorted
when the slice has come; what is asked for within the present slice is put in its place there. Only what lies further
ahead waits in a heap. A slice is in the order of asking, which a stable sort keeps among equals; only the heap needs
numbers for that.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from operator import attrgetter
from typing import Any, Final

from orchestrator.core.values import mypyc_attr

Action = Callable[[Any], None]
_SLICES = 4000.0  # a second
_SPAN: Final = 8192  # slices ahead, a power of two
_PLACE: Final = _SPAN - 1  # of a slice's number, what is its place among them
_when: Final = attrgetter("time")


class Due:
    """What happens at ``time``, which the clock sets. What happens often is a class of its own: one object is all that
    is kept of it, and natively no arguments are packed for it."""

    __slots__ = ("time",)

    time: float

    def happen(self) -> None:
        """It is time."""
        raise NotImplementedError


@mypyc_attr(free_list_len=1)
class Call(Due):
    """``action(what)``; once it has happened it may be planned again."""

    __slots__ = ("_action", "_what")

    def __init__(self, action: Action, what: Any) -> None:
        self._action = action
        self._what = what

    def happen(self) -> None:
        self._action(self._what)


class Clock:
    """Seconds from 0."""

    __slots__ = ("_asked", "_due", "_edge", "_far", "_near", "_ring", "_stopped", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[Due] = []  # the present slice, what comes next at its end
        self._edge = 0  # the slice after it
        self._ring: list[list[Due]] = [[] for _ in range(_SPAN)]  # slices by number, mod SPAN; the present one too
        self._near = 0  # entries in those to come
        self._far: list[tuple[float, int, Due]] = []  # a heap by (time, order of asking): what comes after those
        self._asked = 0
        self._stopped = False

    def at(self, time: float, action: Action, what: Any = None) -> None:
        """Has ``action(what)`` run at ``time``, which must not have passed."""
        self.plan(time, Call(action, what))

    def after(self, seconds: float, action: Action, what: Any = None) -> None:
        """Has ``action(what)`` run in ``seconds``."""
        self.at(self.now + seconds, action, what)

    def plan(self, time: float, due: Due) -> None:
        """Has it happen at ``time``, which must not have passed; it must not be planned already."""
        due.time = time
        part = int(time * _SLICES)
        if part < self._edge:
            self._put(due)
        elif part < self._edge + _SPAN - 1:
            self._ring[part & _PLACE].append(due)
            self._near += 1
        else:
            self._asked += 1
            heappush(self._far, (time, self._asked, due))

    def stop(self, _: object = None) -> None:
        """Ends ``run`` when the action under way has returned."""
        self._stopped = True

    def run(self) -> None:
        """Runs actions in order until ``stop`` or until there are none."""
        self._stopped = False
        while not self._stopped:
            due = self._due
            while due:
                next_one = due.pop()
                self.now = next_one.time
                next_one.happen()
                if self._stopped:
                    return
            if not self._turn():
                return

    def _put(self, newest: Due) -> None:
        """Into the present slice: it is the newest, so of all that is due at its time it comes last."""
        due, time = self._due, newest.time
        low, high = 0, len(due)
        while low < high:
            middle = (low + high) >> 1
            if due[middle].time > time:
                low = middle + 1
            else:
                high = middle
        due.insert(low, newest)

    def _turn(self) -> bool:
        """The next slice that has anything becomes the present one; False if there is none."""
        if not self._near:
            if not self._far:
                return False
            self._edge = int(self._far[0][0] * _SLICES)
        while True:
            far = self._far
            while far and int(far[0][0] * _SLICES) < self._edge + _SPAN - 1:
                time, _, far_one = heappop(far)
                self._ring[int(time * _SLICES) & _PLACE].append(far_one)
                self._near += 1
            due = self._due = self._ring[self._edge & _PLACE]
            self._edge += 1
            if due:
                self._near -= len(due)
                due.reverse()  # what was asked for first comes last among equals, and so is taken first
                due.sort(key=_when, reverse=True)
                return True
