"""The fleet as the controller tells it. The controller may go away: the last news stands until it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio

from orchestrator.proto import fleet_pb2, fleet_pb2_grpc
from orchestrator.telemetry import logs

RETRY_SECONDS = 1.0
_KEEPALIVE = (("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000))

log = logs.events("gateway.watch")


async def watch_fleet(controller: str, watcher_id: str, take: Callable[[fleet_pb2.FleetSnapshot], None]) -> None:
    """Calls ``take`` with each snapshot, for ever.

    Args:
        controller: host:port of the fleet watch.
        watcher_id: who watches, for the controller's log.
    """
    lost = False
    async with grpc.aio.insecure_channel(controller, options=_KEEPALIVE) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        while True:
            try:
                async for snapshot in stub.Watch(fleet_pb2.FleetWatchRequest(watcher_id=watcher_id)):
                    if lost:
                        log.info("controller back")
                        lost = False
                    take(snapshot)
            except grpc.aio.AioRpcError as error:
                if not lost:
                    log.warning("controller away: serving the fleet last known", code=error.code().name)
                lost = True
            await asyncio.sleep(RETRY_SECONDS)
