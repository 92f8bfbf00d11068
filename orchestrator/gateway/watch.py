"""The fleet as the controller tells it. The controller may go away: the last news stands until it is back.

What a controller says that was replaced (``ControllerStatus.term``) is out of date, and stands for nothing. A gateway
outside of Ray may outlive its cluster: terms are those of one that began at one time (``began_ms``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio

from orchestrator.config import loads
from orchestrator.core.errors import ClusterUnreachable, SegueError
from orchestrator.core.spec import ClusterSpec
from orchestrator.proto import fleet_pb2, fleet_pb2_grpc
from orchestrator.telemetry import logs

RETRY_SECONDS = 1.0
_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # gRPC's own is two minutes
)

log = logs.events("gateway.watch")


async def watch_fleet(controller: str, watcher_id: str, take: Callable[[fleet_pb2.FleetSnapshot], None]) -> None:
    """Calls ``take`` with each snapshot, for ever.

    Args:
        controller: host:port of the fleet watch.
        watcher_id: who watches, for the controller's log.
    """
    lost, newest = False, (0, 0)
    async with grpc.aio.insecure_channel(controller, options=_OPTIONS) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        while True:
            try:
                async for snapshot in stub.Watch(fleet_pb2.FleetWatchRequest(watcher_id=watcher_id)):
                    control = snapshot.status.controller
                    spoken = control.began_ms, control.term
                    if spoken < newest:
                        log.warning("controller outdated: not listened to", term=control.term, newest=newest[1])
                        break
                    newest = spoken
                    if lost:
                        log.info("controller back", term=control.term)
                        lost = False
                    take(snapshot)
            except grpc.aio.AioRpcError as error:
                if not lost:
                    log.warning("controller away: serving the fleet last known", code=error.code().name)
                lost = True
            await asyncio.sleep(RETRY_SECONDS)


async def first_spec(controller: str, watcher_id: str, patience: float) -> ClusterSpec:
    """The configuration, from a controller that may still be starting. Raises ClusterUnreachable after that many
    seconds."""
    try:
        return await asyncio.wait_for(_told(controller, watcher_id), patience)
    except TimeoutError:
        raise ClusterUnreachable(f"no controller answers, for {patience:g} s", where=controller) from None


async def _told(controller: str, watcher_id: str) -> ClusterSpec:
    async with grpc.aio.insecure_channel(controller) as channel:
        call = fleet_pb2_grpc.FleetStub(channel).Watch(
            fleet_pb2.FleetWatchRequest(watcher_id=watcher_id), wait_for_ready=True
        )
        async for snapshot in call:
            if snapshot.spec_json:
                return loads(snapshot.spec_json)
    raise SegueError("the controller sent no configuration", where=controller)
