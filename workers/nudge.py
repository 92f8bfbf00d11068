"""Keeps an engine looking, for a moment, after something that its KV connector finishes in the background.

An engine that has no request does not step, and NIXL without its progress thread (``transfer``) only moves when it
does. After a release or an abort there may be no request, but a handshake and a message to the prefill side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

# Seconds between looks: a known peer answers within a few milliseconds, a first handshake takes up to a second or so.
PAUSES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class Nudger:
    """``look`` makes the engine step once. Asking again while it is at it starts the pauses anew."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._left: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Has the engine step a few times in the seconds to come."""
        self._left = list(PAUSES)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._nudge(), name="nudge")

    async def stop(self) -> None:
        """No more looks."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _nudge(self) -> None:
        while self._left:
            await asyncio.sleep(self._left.pop(0))
            await self._look()
