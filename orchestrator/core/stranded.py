"""Decode halves whose prefill worker was lost before they had a first token: what they wait for may never come.

Their engine would notice by itself, but by time-outs of its own, of seconds or minutes. Most have their KV by then and
show a first token in a moment, so they get that; the others are placed again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from orchestrator.core.fleet import Fleet, WorkerView
from orchestrator.core.session import Session, State

MOMENT_SECONDS = 0.5  # what is not to exceed a second includes the next tick


class Stranded:
    """Those of one gateway."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._left: deque[tuple[float, Session, str, int]] = deque()  # with decode wire and the prefill worker's epoch

    def lost(self, view: WorkerView, sessions: Iterable[Session], now: float) -> None:
        """A worker is gone; ``sessions`` are all that there are."""
        for session in sessions:
            if session.state is State.DECODING and session.prefill_worker == view.info.worker_id:
                self._left.append((now + MOMENT_SECONDS, session, session.decode_wire, view.info.epoch))

    def due(self, now: float) -> Iterator[Session]:
        """Those that have no first token still. One whose worker is back, as it was, can collect its KV after all."""
        while self._left and self._left[0][0] <= now:
            _, session, wire_id, epoch = self._left.popleft()
            if session.state is not State.DECODING or session.decode_wire != wire_id:
                continue
            view = self._fleet.get(session.prefill_worker)
            if view is None or view.info.epoch != epoch:
                yield session
