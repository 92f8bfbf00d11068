"""The brain's door: one event at a time, and its commands are carried out before the next one goes in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from orchestrator.core import messages as m
from orchestrator.record.journal import Step
from orchestrator.telemetry import logs

log = logs.events("gateway.feed")


class Feed:
    """Never raises what the brain does.

    Args:
        carry_out: takes each command, in order.
        broken: takes an event that the brain failed at.
    """

    def __init__(
        self,
        step: Step,
        clock: Callable[[], float],
        carry_out: Callable[[m.Command], None],
        broken: Callable[[m.Event], None],
    ) -> None:
        self._step = step
        self._clock = clock
        self._carry_out = carry_out
        self._broken = broken
        self._events: deque[m.Event] = deque()
        self._busy = False
        self._frame_at: float | None = None

    def now(self) -> float:
        """The time of what goes in."""
        return self._clock() if self._frame_at is None else self._frame_at

    def frame_begins(self) -> None:
        """What one frame brings happened at one time, however long this process takes to go through it."""
        self._frame_at = self._clock()

    def frame_ends(self) -> None:
        """Each event has a time of its own again."""
        self._frame_at = None

    def put(self, event: m.Event) -> None:
        """Carrying out a command may bring the next event: it waits until all commands of this one are done."""
        if self._busy:
            self._events.append(event)
            return
        self._busy = True
        try:
            self.put_now(event)
            while self._events:
                self.put_now(self._events.popleft())
        finally:
            self._busy = False

    def put_now(self, event: m.Event) -> None:
        """Before those that wait."""
        try:
            commands = self._step(event, self.now())
        except Exception as error:
            log.error("brain_failed", error, at_event=type(event).__name__)
            self._broken(event)
            return
        for command in commands:
            self._carry_out(command)
