"""Actors that keep the five promises of a worker or gateway and do nothing else, for tests of the control plane alone.

A file ``<log_dir>/<id>.fail`` makes their start fail with the file's text; ``<id>.hold`` makes it wait till it is gone.
``<id>.started`` has a line for each time that one came up.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from orchestrator.core.errors import WorkerStartFailed
from orchestrator.core.terms import Terms
from orchestrator.core.types import ActorSnapshot, GatewayAssignment, Load, WorkerAssignment, WorkerState


class _StandIn:
    def __init__(self, name: str, log_dir: str, version: str) -> None:
        self._version = version
        self._name = name
        self._terms = Terms(name)
        self._coming_up: asyncio.Task[None] | None = None
        self._switch = Path(log_dir) / name
        self._state = WorkerState.STARTING
        self._closed = asyncio.Event()

    async def start(self, term: int | None = None) -> None:
        self._terms.heed(term)
        if self._coming_up is None:
            self._coming_up = asyncio.create_task(self._come_up())
        await asyncio.shield(self._coming_up)

    async def _come_up(self) -> None:
        fail, hold = self._switch.with_suffix(".fail"), self._switch.with_suffix(".hold")
        while hold.exists():  # noqa: ASYNC110 - the test that removes it is another process
            await asyncio.sleep(0.02)
        if fail.exists():
            self._state = WorkerState.FAILED
            raise WorkerStartFailed(fail.read_text(), where=self._name)
        self._state = WorkerState.READY
        with self._switch.with_suffix(".started").open("a") as record:
            record.write(f"{os.getpid()}\n")

    async def snapshot(self, term: int | None = None) -> ActorSnapshot:
        self._terms.heed(term)
        return ActorSnapshot(
            self._state,
            stage="loading weights" if self._state is WorkerState.STARTING else "",
            node="here",
            address="127.0.0.1:1",
            grpc_address="127.0.0.1:2",
            actor_pid=os.getpid(),
            load=Load(running=3),
            version=self._version,
        )

    async def drain(self, seconds: float, term: int | None = None) -> None:
        self._terms.heed(term)
        self._state = WorkerState.DRAINING
        with self._switch.with_suffix(".drained").open("a") as record:
            record.write(f"{seconds:g}\n")

    async def stop(self, term: int | None = None) -> None:
        self._terms.heed(term)
        self._closed.set()

    async def wait_closed(self) -> None:
        await self._closed.wait()


class StandInWorker(_StandIn):
    def __init__(self, order: WorkerAssignment) -> None:
        super().__init__(order.worker_id, order.log_dir, order.version)


class StandInGateway(_StandIn):
    def __init__(self, order: GatewayAssignment) -> None:
        super().__init__(order.gateway_id, order.log_dir, order.version)


def standin_worker() -> type:
    return StandInWorker


def standin_gateway() -> type:
    return StandInGateway
