"""Virtual time: a heap of what happens next, ordered by (time, sequence).

Two things due at the same time happen in the order in which they were asked for. The sequence number also keeps the
heap from ever comparing actions.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

Action = Callable[[Any], None]


class Clock:
    """Seconds from 0. Those who schedule often push (time, next(``sequence``), action, what) on ``heap`` themselves."""

    __slots__ = ("_stopped", "heap", "now", "sequence")

    def __init__(self) -> None:
        self.now = 0.0
        self.heap: list[tuple[float, int, Action, Any]] = []
        self.sequence = count()
        self._stopped = False

    def at(self, time: float, action: Action, what: Any = None) -> None:
        """Has ``action(what)`` run at ``time``, which must not have passed."""
        heappush(self.heap, (time, next(self.sequence), action, what))

    def after(self, seconds: float, action: Action, what: Any = None) -> None:
        """Has ``action(what)`` run in ``seconds``."""
        self.at(self.now + seconds, action, what)

    def stop(self, _: object = None) -> None:
        """Ends ``run`` when the action under way has returned."""
        self._stopped = True

    def run(self) -> None:
        """Runs actions in order until ``stop`` or until there are none."""
        heap, pop = self.heap, heappop
        self._stopped = False
        while heap and not self._stopped:
            self.now, _, action, what = pop(heap)
            action(what)
