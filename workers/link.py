"""One gateway's stream: what waits to be written to it, and which requests came over it."""

from __future__ import annotations

import asyncio
from collections import deque

from orchestrator.core.errors import Overloaded, SegueError
from orchestrator.core.mirror import Backlog
from orchestrator.proto.worker_pb2 import Step
from workers.messages import cache_message

MAX_FRAMES = 4096
CACHE_CHUNK = 16_384  # hashes of stored blocks in a frame: 128 KiB, and milliseconds of a gateway's time


class Link:
    """A bounded queue of step frames.

    Frames that carry nothing of this gateway's own requests are folded into one while they wait, so a slow gateway
    costs a frame for each step that it takes part in, and no more. One that stays behind further than ``max_frames`` is
    cut off: ``ended`` gets an Overloaded. What is new in the prefix cache waits beside the frames, in ``backlog``, and
    goes with whichever is written next.
    """

    def __init__(self, gateway_id: str, backlog: Backlog, max_frames: int = MAX_FRAMES) -> None:
        self.gateway_id = gateway_id
        self.wire_ids: set[str] = set()
        self.backlog = backlog
        self.ended: asyncio.Future[SegueError | None] = asyncio.get_running_loop().create_future()
        self._frames: deque[Step] = deque()
        self._max_frames = max_frames
        self._ready = asyncio.Event()

    def send(self, step: Step) -> None:
        """Queues a frame; never blocks."""
        if self.ended.done():
            return
        if self._frames and _folds(self._frames[-1]):
            step = _fold(self._frames.pop(), step)
        self._frames.append(step)
        if len(self._frames) > self._max_frames:
            behind = f"{self.gateway_id}, behind by {len(self._frames)} frames"
            self.end(Overloaded("the gateway does not read its stream", where=behind))
        self._ready.set()

    async def next(self, seconds: float) -> Step | None:
        """The next frame to write; None if there is none within ``seconds``, or only a backlog."""
        if not self._frames and not self.backlog:
            self._ready.clear()
            try:
                await asyncio.wait_for(self._ready.wait(), seconds)
            except TimeoutError:
                return None
        return self._frames.popleft() if self._frames else None

    def enclose_news(self, step: Step) -> None:
        """Puts a part of the backlog into a frame that is about to be written."""
        if self.backlog:
            step.cache.CopyFrom(cache_message(self.backlog.take(CACHE_CHUNK)))

    def end(self, error: SegueError | None) -> None:
        """Ends the session, with an error or because the gateway is done. The first reason given stays."""
        if not self.ended.done():
            self.ended.set_result(error)


def _folds(step: Step) -> bool:
    return not (step.outputs or step.rejected)


def _fold(earlier: Step, later: Step) -> Step:
    """``later`` with what ``earlier`` would have reported in front of it."""
    before, now = earlier.transfers, later.transfers
    if before.count or before.failed:
        now.count += before.count
        now.bytes += before.bytes
        now.seconds += before.seconds
        now.failed += before.failed
    return later
