"""An engine's prefix-cache events, taken from vLLM's publisher over a Unix socket that nobody else can reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import zmq
import zmq.asyncio

from orchestrator.core.errors import WorkerStartFailed
from orchestrator.core.mirror import CacheEvent, Cleared
from orchestrator.telemetry.logs import events
from workers import wire

TOPIC = "kv"
_HANDSHAKE_SECONDS = 10.0

_log = events("worker.kv_events")


def endpoint(run_folder: Path) -> str:
    """Where the engine publishes; vLLM binds an ipc endpoint itself."""
    return f"ipc://{run_folder}/kv-events"


class KvEventFeed:
    """Hands every batch to ``sink``. A gap in the numbering is reported as ``cleared``: what was missed is unknown."""

    def __init__(self, source: str, sink: Callable[[list[CacheEvent]], None]) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.subscribe(TOPIC)
        self._socket.connect(source)
        self._sink = sink
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Waits until the engine's publisher answered, so that no event is missed. Raises WorkerStartFailed."""
        try:
            await asyncio.wait_for(self._monitor.recv_multipart(), _HANDSHAKE_SECONDS)
        except TimeoutError:
            raise WorkerStartFailed("the engine does not publish its KV events", where="kv_events") from None
        finally:
            self._socket.disable_monitor()
        self._task = asyncio.create_task(self._pump())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _pump(self) -> None:
        expected = 0
        reader = wire.CacheEvents()
        while True:
            _, number, payload = await self._socket.recv_multipart()
            sequence = int.from_bytes(number, "big")
            batch = reader.read(payload)
            if sequence != expected:
                _log.warning("kv_events_missed", count=sequence - expected)
                batch.insert(0, Cleared())
            expected = sequence + 1
            self._sink(batch)
