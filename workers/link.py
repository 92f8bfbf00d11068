"""One gateway's stream: what waits to be written to it, and which requests came over it."""

from __future__ import annotations

import asyncio
from collections import deque

from orchestrator.core.errors import Overloaded, SegueError
from orchestrator.proto.worker_pb2 import Step, WorkerFrame

MAX_FRAMES = 4096
MAX_KV_EVENTS = 65_536


class Link:
    """A bounded queue of step frames.

    Frames that carry nothing of this gateway's own requests are folded into one while they wait, so a slow gateway
    costs a frame for each step that it takes part in, and no more. One that stays behind further than the bounds is
    cut off: ``ended`` gets an Overloaded.
    """

    def __init__(self, gateway_id: str, max_frames: int = MAX_FRAMES) -> None:
        self.gateway_id = gateway_id
        self.wire_ids: set[str] = set()
        self.ended: asyncio.Future[SegueError | None] = asyncio.get_running_loop().create_future()
        self._frames: deque[Step] = deque()
        self._kv_events = 0
        self._max_frames = max_frames
        self._ready = asyncio.Event()

    def send(self, step: Step) -> None:
        """Queues a frame; never blocks."""
        if self.ended.done():
            return
        self._kv_events += len(step.kv_events)
        if self._frames and _folds(self._frames[-1]):
            step = _fold(self._frames.pop(), step)
        self._frames.append(step)
        if len(self._frames) > self._max_frames or self._kv_events > MAX_KV_EVENTS:
            behind = f"{len(self._frames)} frames and {self._kv_events} KV events"
            self.end(Overloaded("the gateway does not read its stream", where=f"{self.gateway_id}, behind by {behind}"))
        self._ready.set()

    async def next(self, seconds: float) -> WorkerFrame | None:
        """The next frame to write; None if there is none within ``seconds``."""
        if not self._frames:
            self._ready.clear()
            try:
                await asyncio.wait_for(self._ready.wait(), seconds)
            except TimeoutError:
                return None
        step = self._frames.popleft()
        self._kv_events -= len(step.kv_events)
        return WorkerFrame(step=step)

    def end(self, error: SegueError | None) -> None:
        """Ends the session, with an error or because the gateway is done. The first reason given stays."""
        if not self.ended.done():
            self.ended.set_result(error)


def _folds(step: Step) -> bool:
    return not (step.outputs or step.rejected)


def _fold(earlier: Step, later: Step) -> Step:
    """``later`` with what ``earlier`` would have reported in front of it."""
    merged = Step(kv_events=earlier.kv_events)
    merged.MergeFrom(later)
    before, now = earlier.transfers, merged.transfers
    if before.count or before.failed:
        now.count += before.count
        now.bytes += before.bytes
        now.seconds += before.seconds
        now.failed += before.failed
    return merged
