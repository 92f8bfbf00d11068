"""A clock for mock engines that stands still until a test moves it on."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class StepClock:
    """``advance`` lets everything ready run, then jumps to the next sleeper's time."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if seconds <= 0:
            future.set_result(None)
        else:
            heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    async def advance(self, horizon: float = float("inf")) -> None:
        """Jumps no further than ``horizon`` seconds: what sleeps longer than that is not waited for."""
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.sleep(0.002)  # for real sockets to be heard
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        if self._sleepers and self._sleepers[0][0] <= self._now + horizon:
            at, _, future = heapq.heappop(self._sleepers)
            self._now = at
            future.set_result(None)
