"""How many calls are being answered, for whoever may end only once none is."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Underway:
    """Entered by each call for as long as it lasts."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def over(self, seconds: float) -> bool:
        """Waits until there are none; False if some are left after ``seconds``."""
        return await happens(self._none, seconds)


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it does within ``seconds``."""
    if event.is_set():
        return True
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
