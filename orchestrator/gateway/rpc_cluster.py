"""segue.v1.Cluster and grpc.health.v1.Health: what a gateway knows of the cluster, asked for or watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.gateway.ports import GatewayView
from orchestrator.gateway.rpc_errors import Context, end
from orchestrator.gateway.rpc_write import Unread, write
from orchestrator.proto import cluster_pb2 as pb
from orchestrator.proto import cluster_pb2_grpc
from orchestrator.record.codec import encode
from orchestrator.record.story import RequestStory

_DEFAULT_INTERVAL_MS = 500
_MIN_INTERVAL_SECONDS = 0.02
_QUIET_SECONDS = 1.0  # how long a change that nobody announced (a drain) may go unseen
_HEALTH_INTERVAL_SECONDS = 0.1

M = TypeVar("M", bound=Message)


async def changes(gateway: GatewayView, look: Callable[[], M], interval_seconds: float) -> AsyncIterator[M]:
    """What ``look`` sees now, and again whenever that differs, at most once in ``interval_seconds``. Never ends."""
    seen: bytes | None = None
    woken = False
    while True:
        message = look()
        encoded = message.SerializeToString(deterministic=True)
        if encoded == seen and not woken:
            # Nothing was awaited between the look and this wait, so no change in between goes unseen.
            woken = await gateway.status_changed(_QUIET_SECONDS)
            continue
        if encoded != seen:
            seen = encoded
            yield message
        woken = False
        await asyncio.sleep(interval_seconds)


async def _tell(context: Context, messages: AsyncIterator[Message]) -> None:
    first = True
    try:
        async for message in messages:
            await write(context, message, first)
            first = False
    except Unread as error:
        await end(context, error)


class ClusterService(cluster_pb2_grpc.ClusterServicer):
    """The fleet, to operators and tools."""

    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.ClusterStatus:  # noqa: N802
        """The cluster as it is now."""
        return self._gateway.status()

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:  # noqa: N802
        """The cluster now and after every change, until the client leaves."""
        interval = max((request.min_interval_ms or _DEFAULT_INTERVAL_MS) / 1000, _MIN_INTERVAL_SECONDS)
        await _tell(context, changes(self._gateway, self._gateway.status, interval))

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:  # noqa: N802
        """What happened to a request, as far as this process knows it."""
        found = self._gateway.explain(request.request_id)
        # The messages have the names of the nouns, field by field.
        stories = [
            json_format.ParseDict(encode(RequestStory, story, whole=True), pb.RequestStory()) for story in found.stories
        ]
        return pb.ExplainResponse(gateway=found.gateway, stories=stories, ambiguous=found.ambiguous)


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Health of the whole gateway (""), segue.v1.Inference and segue.v1.Cluster; none serves while it drains."""

    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway
        self._services: dict[str, Callable[[], bool]] = {
            "": self._whole,
            "segue.v1.Inference": lambda: any(front.ready() for front in gateway.fronts()),
            "segue.v1.Cluster": lambda: True,
        }

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """SERVING or NOT_SERVING; NOT_FOUND for a service that is not here."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return self._health(request.service)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:  # noqa: N802
        """The health of a service now and after every change, until the client leaves."""
        await _tell(context, changes(self._gateway, lambda: self._health(request.service), _HEALTH_INTERVAL_SECONDS))

    def _health(self, service: str) -> health_pb2.HealthCheckResponse:
        check = self._services.get(service)
        if check is None:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        healthy = not self._gateway.draining and check()
        status = health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)

    def _whole(self) -> bool:
        return self._gateway.status().ready
