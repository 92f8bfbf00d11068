"""What a worker's session needs of an engine, real or not: the seam between the two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.core.mirror import CacheEvent
from orchestrator.core.types import EngineFacts, Load

if TYPE_CHECKING:
    from workers.wire import Output, Request

Progress = Callable[[str], None]
"""Told, in a few words for people, what a long start is busy with."""


@dataclass(frozen=True, slots=True)
class Transfers:
    """KV transfers that this engine pulled and that ended since the last report. ``seconds`` is summed over them."""

    count: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failed: int = 0

    def __add__(self, other: Transfers) -> Transfers:
        return Transfers(
            self.count + other.count,
            self.bytes + other.bytes,
            self.seconds + other.seconds,
            self.failed + other.failed,
        )

    def __bool__(self) -> bool:
        return bool(self.count or self.failed)


@dataclass(frozen=True, slots=True)
class EngineStep:
    """What an engine has to say after a step. ``timestamp`` is the engine's monotonic clock, in seconds."""

    load: Load
    outputs: Sequence[Output] = ()
    timestamp: float = 0.0
    transfers: Transfers = field(default_factory=Transfers)
    kv_events: Sequence[CacheEvent] = ()

    @property
    def load_only(self) -> bool:
        """Whether a later step says all that this one does."""
        return not (self.outputs or self.transfers or self.kv_events)


class Engine(Protocol):
    """An engine as the session sees it. All methods belong to the event loop that called ``start``."""

    @property
    def facts(self) -> EngineFacts:
        """What the engine turned out to be; only after ``start``."""
        ...

    @property
    def vocabulary(self) -> int:
        """Token ids are below this; only after ``start``."""
        ...

    @property
    def pid(self) -> int:
        """The process that computes."""
        ...

    async def start(self, progress: Progress) -> None:
        """Comes up without blocking the event loop. Raises WorkerStartFailed."""
        ...

    async def submit(self, request: Request) -> None:
        """Queues a request. Raises WorkerLost."""
        ...

    async def abort(self, wire_ids: Sequence[str]) -> None:
        """Ends requests without a further output; ids that are not there are no error. Raises WorkerLost."""
        ...

    async def release(self, wire_id: str, transfer: Mapping[str, Any]) -> None:
        """Has the prefill side that ``transfer`` names free the blocks which nobody will collect. Raises WorkerLost."""
        ...

    def steps(self) -> AsyncIterator[EngineStep]:
        """Steps as they end; for one reader. Raises WorkerLost when the engine dies, ends after ``shutdown``."""
        ...

    async def shutdown(self) -> None:
        """Ends the engine and all its processes; safe to call twice, and before ``start`` came back."""
        ...


class Clock(Protocol):
    """Where a mock engine's time comes from; tests put one with freeze points here."""

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own time."""

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
