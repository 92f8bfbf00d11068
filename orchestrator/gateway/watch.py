"""The fleet as the controller tells it. The controller may go away: the last news stands until it is back.

What a controller says that was replaced (``ControllerStatus.term``) is out of date, and stands for nothing. A gateway
outside of Ray may outlive its cluster: terms are those of one that began at one time (``began_ms``). That is a wall
clock's, which may have been set back in between: a cluster that says that it began earlier is listened to once the
other was not heard for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio

from orchestrator.config import loads
from orchestrator.core.errors import ClusterUnreachable, SegueError
from orchestrator.core.spec import ClusterSpec
from orchestrator.proto import cluster_pb2, fleet_pb2, fleet_pb2_grpc
from orchestrator.telemetry import logs

RETRY_SECONDS = 1.0
GONE_SECONDS = 30.0  # without a word, after which another cluster is its successor, whatever the clocks said
OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # gRPC's own is two minutes
)

log = logs.events("gateway.watch")


class _Newest:
    """The newest controller that was heard, and when last."""

    def __init__(self) -> None:
        self.term = 0
        self._began_ms = 0
        self._at = 0.0
        self._listening = False

    def takes(self, control: cluster_pb2.ControllerStatus, now: float) -> bool:
        """Whether to listen to this one; from then on it is the newest."""
        spoken, newest = (control.began_ms, control.term), (self._began_ms, self.term)
        gone = control.began_ms != self._began_ms and now - self._at > GONE_SECONDS
        self._listening = spoken >= newest or (gone and not self._listening)
        if self._listening:
            self._began_ms, self.term = spoken
        return self._listening

    def ended(self, now: float) -> None:
        """Its stream did; until then it was there, also where it had nothing to say."""
        if self._listening:
            self._at, self._listening = now, False


async def watch_fleet(controller: str, watcher_id: str, take: Callable[[fleet_pb2.FleetSnapshot], None]) -> None:
    """Calls ``take`` with each snapshot, for ever.

    Args:
        controller: host:port of the fleet watch.
        watcher_id: who watches, for the controller's log.
    """
    lost, newest, clock = False, _Newest(), asyncio.get_running_loop().time
    async with grpc.aio.insecure_channel(controller, options=OPTIONS) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        while True:
            try:
                async for snapshot in stub.Watch(fleet_pb2.FleetWatchRequest(watcher_id=watcher_id)):
                    control = snapshot.status.controller
                    if not newest.takes(control, clock()):
                        log.warning("controller outdated: not listened to", term=control.term, newest=newest.term)
                        break
                    if lost:
                        log.info("controller back", term=control.term)
                        lost = False
                    take(snapshot)
            except grpc.aio.AioRpcError as error:
                if not lost:
                    log.warning("controller away: serving the fleet last known", code=error.code().name)
                lost = True
            newest.ended(clock())
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
