"""One gateway's stream: what waits to be written to it, and which requests came over it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from orchestrator.core.errors import Overloaded, SegueError
from orchestrator.proto.worker_pb2 import CacheChange, Step, WorkerFrame

MAX_FRAMES = 4096
MAX_CACHE_HASHES = 262_144


class Link:
    """A bounded queue of step frames.

    Frames that carry nothing of this gateway's own requests are folded into one while they wait, so a slow gateway
    costs a frame for each step that it takes part in, and no more. Where changes of the prefix cache pile up, they are
    left out, and with the last frame that waits goes all that is in the cache by then (``snapshot``). A gateway that
    stays behind further than ``max_frames`` is cut off: ``ended`` gets an Overloaded.
    """

    def __init__(
        self,
        gateway_id: str,
        snapshot: Callable[[], CacheChange] = lambda: CacheChange(cleared=True),
        max_frames: int = MAX_FRAMES,
    ) -> None:
        self.gateway_id = gateway_id
        self.wire_ids: set[str] = set()
        self.ended: asyncio.Future[SegueError | None] = asyncio.get_running_loop().create_future()
        self._snapshot = snapshot
        self._frames: deque[Step] = deque()
        self._hashes = 0
        self._left_out = False
        self._max_frames = max_frames
        self._ready = asyncio.Event()

    def send(self, step: Step) -> None:
        """Queues a frame; never blocks."""
        if self.ended.done():
            return
        if self._left_out:
            step.ClearField("cache")
        if self._frames and _folds(self._frames[-1]):
            earlier = self._frames.pop()
            self._hashes -= _hashes(earlier)
            step = _fold(earlier, step)
        self._frames.append(step)
        self._hashes += _hashes(step)
        if self._hashes > MAX_CACHE_HASHES and len(self._frames) > 1:
            self._leave_out()
        if len(self._frames) > self._max_frames:
            behind = f"{self.gateway_id}, behind by {len(self._frames)} frames"
            self.end(Overloaded("the gateway does not read its stream", where=behind))
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
        self._hashes -= _hashes(step)
        if self._left_out and not self._frames:
            self._left_out = False
            step.cache.CopyFrom(self._snapshot())
        return WorkerFrame(step=step)

    def end(self, error: SegueError | None) -> None:
        """Ends the session, with an error or because the gateway is done. The first reason given stays."""
        if not self.ended.done():
            self.ended.set_result(error)

    def _leave_out(self) -> None:
        self._left_out, self._hashes = True, 0
        for frame in self._frames:
            frame.ClearField("cache")


def _folds(step: Step) -> bool:
    return not (step.outputs or step.rejected)


def _hashes(step: Step) -> int:
    return len(step.cache.stored) + len(step.cache.removed)


def _fold(earlier: Step, later: Step) -> Step:
    """``later`` with what ``earlier`` would have reported in front of it."""
    merged = Step()
    merged.MergeFrom(later)
    if earlier.HasField("cache"):
        merged.cache.CopyFrom(_both(earlier.cache, later.cache))
    before, now = earlier.transfers, merged.transfers
    if before.count or before.failed:
        now.count += before.count
        now.bytes += before.bytes
        now.seconds += before.seconds
        now.failed += before.failed
    return merged


def _both(earlier: CacheChange, later: CacheChange) -> CacheChange:
    """One change that does what the two do, one after the other."""
    if later.cleared:
        return later
    gone = set(later.removed)
    return CacheChange(
        cleared=earlier.cleared,
        removed=[*earlier.removed, *later.removed],
        stored=[*(each for each in earlier.stored if each not in gone), *later.stored],
    )
