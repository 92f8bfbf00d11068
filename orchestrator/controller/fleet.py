"""The controller's gRPC server: the fleet for gateways, the cluster's status for people, health for probes.

Watchers get the newest view, not every view: one that reads slowly skips what it missed and holds nobody up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from orchestrator.config import checked, loads
from orchestrator.controller.guests import LEASE_SECONDS, Guests
from orchestrator.core.errors import ConfigError, InvalidRequest, NameTaken, NotKept, Overloaded, SegueError
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.rollout import PoolKey
from orchestrator.core.spec import ClusterSpec, Endpoint, Role
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from orchestrator.proto.reading import ReadsRequests

_FLEET_INTERVAL = 0.02  # seconds; a burst of changes becomes one snapshot
_STATUS_INTERVAL_MS = 500
OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second controller on the same port must fail, not share
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
)

Context = grpc.aio.ServicerContext[Any, Any]
Look = Callable[[], Awaitable[Topology]]
Upgrade = Callable[[ClusterSpec, bool, Sequence[PoolKey]], Awaitable[None]]


class Bulletin:
    """The newest status, with the gateways that others started, and a way to wait for a newer one."""

    def __init__(
        self,
        first: cluster_pb2.ClusterStatus,
        guests: Guests | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = self._status = first
        self._guests = guests or Guests()
        self._clock = clock
        self._look: asyncio.TimerHandle | None = None  # for those whose leases end
        self._changed = asyncio.Event()

    @property
    def status(self) -> cluster_pb2.ClusterStatus:
        return self._status

    def publish(self, status: cluster_pb2.ClusterStatus) -> None:
        """Replaces the status and wakes all watchers, unless nothing changed."""
        self._own = status
        self._tell()

    def attend(self, word: cluster_pb2.GatewayStatus, host: str) -> None:
        """A gateway that others started is there. Raises as ``Guests.heard`` does, also where one of the cluster's own
        has its name."""
        if any(one.id == word.id for one in self._own.gateways):
            raise NameTaken(f"the cluster has a gateway {word.id} of its own", hint="give it another name: --name")
        self._guests.heard(word, host, self._clock())
        self._tell()

    def _tell(self) -> None:
        there = self._guests.there(self._clock())
        if there and self._look is None:
            self._look = asyncio.get_running_loop().call_later(LEASE_SECONDS / 2, self._look_again)
        status = self._own
        if there:
            status = cluster_pb2.ClusterStatus()
            status.CopyFrom(self._own)
            status.gateways.extend(there)
        if status == self._status:
            return
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()

    def _look_again(self) -> None:
        self._look = None
        self._tell()

    async def follow(self, interval: float) -> AsyncIterator[cluster_pb2.ClusterStatus]:
        """The status now, and again after each change, at most once an interval (seconds)."""
        while True:
            sent, changed = self._status, self._changed
            yield sent
            await asyncio.sleep(interval)
            if self._status is sent:
                await changed.wait()


class _Fleet(fleet_pb2_grpc.FleetServicer):
    def __init__(self, bulletin: Bulletin, spec_json: str, look: Look, upgrade: Upgrade) -> None:
        self._bulletin = bulletin
        self.spec_json = spec_json
        self._look = look
        self._upgrade = upgrade

    async def Watch(  # noqa: N802
        self, request: fleet_pb2.FleetWatchRequest, context: Context
    ) -> AsyncIterator[fleet_pb2.FleetSnapshot]:
        known = ""
        async for status in self._bulletin.follow(_FLEET_INTERVAL):
            now = self.spec_json
            yield fleet_pb2.FleetSnapshot(status=status, spec_json=now if now != known else "")
            known = now

    async def Topology(  # noqa: N802
        self, request: fleet_pb2.TopologyRequest, context: Context
    ) -> fleet_pb2.TopologyReply:
        try:
            found = await self._look()
        except SegueError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return fleet_pb2.TopologyReply(
            hosts=[fleet_pb2.Host(**asdict(host)) for host in found.hosts],
            reserved={slot: fleet_pb2.Reservation(host_ids=ids) for slot, ids in found.reserved.items()},
            spec_json=self.spec_json,
        )

    async def Upgrade(  # noqa: N802
        self, request: fleet_pb2.UpgradeRequest, context: Context
    ) -> fleet_pb2.UpgradeReply:
        try:
            full = [(pool.model, Role(pool.role)) for pool in request.full]
            spec = checked(loads(request.spec_json), "spec_json")
        except (ValueError, TypeError, KeyError, ConfigError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a configuration: {error}")
        try:
            await self._upgrade(spec, request.makes_room, full)
        except NotKept as error:
            await context.abort(grpc.StatusCode.ABORTED, str(error))
        except SegueError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return fleet_pb2.UpgradeReply()

    async def Attend(  # noqa: N802
        self, request: fleet_pb2.AttendRequest, context: Context
    ) -> fleet_pb2.AttendReply:
        try:
            self._bulletin.attend(request.gateway, _host(context.peer()))
        except NameTaken as error:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        except InvalidRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Overloaded as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        return fleet_pb2.AttendReply()


def _host(peer: str) -> str:
    """Of gRPC's word for who calls, ``ipv4:10.0.0.7:5000``; empty where it is none with a host."""
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""


class _Cluster(cluster_pb2_grpc.ClusterServicer):
    def __init__(self, bulletin: Bulletin) -> None:
        self._bulletin = bulletin

    async def Status(  # noqa: N802
        self, request: cluster_pb2.StatusRequest, context: Context
    ) -> cluster_pb2.ClusterStatus:
        return self._bulletin.status

    async def Watch(  # noqa: N802
        self, request: cluster_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[cluster_pb2.ClusterStatus]:
        interval = (request.min_interval_ms or _STATUS_INTERVAL_MS) / 1000
        async for status in self._bulletin.follow(interval):
            yield status

    async def Explain(  # noqa: N802
        self, request: cluster_pb2.ExplainRequest, context: Context
    ) -> cluster_pb2.ExplainResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "requests go by gateways: ask one of them")
        raise AssertionError("abort returned")  # for the type checker


class FleetServer:
    """Serves a bulletin and what ``look`` sees, and hands on what is to be upgraded to.

    ``listen`` may have port 0; ``bind`` returns what it became.
    """

    def __init__(self, listen: Endpoint, bulletin: Bulletin, spec_json: str, look: Look, upgrade: Upgrade) -> None:
        self._listen = listen
        self._server = grpc.aio.server(options=OPTIONS, interceptors=[ReadsRequests()])
        self._fleet = _Fleet(bulletin, spec_json, look, upgrade)
        fleet_pb2_grpc.add_FleetServicer_to_server(self._fleet, self._server)
        cluster_pb2_grpc.add_ClusterServicer_to_server(_Cluster(bulletin), self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def bind(self) -> int:
        """Takes the address, but answers nothing yet. Raises ConfigError if it can't be had."""
        try:
            return self._server.add_insecure_port(str(self._listen))
        except RuntimeError as error:
            raise ConfigError(
                f"can't listen on {self._listen}",
                where="controller.listen",
                hint="another cluster may be running there: stop it, or choose another port",
            ) from error

    async def start(self) -> None:
        """Answers; what is asked before is answered then."""
        await self._server.start()
        for service in ("", "segue.v1.Cluster", "segue.internal.v1.Fleet"):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def respecify(self, spec_json: str) -> None:
        """Has watchers hear of another specification, with the next bulletin that is published."""
        self._fleet.spec_json = spec_json

    async def stop(self) -> None:
        """Ends all watches."""
        await self._server.stop(grace=0.5)
