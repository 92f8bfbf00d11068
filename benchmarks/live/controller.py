"""What a gateway needs of a controller: the configuration and where the workers are, told once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from orchestrator.config import dumps
from orchestrator.core.spec import ClusterSpec
from orchestrator.core.types import WorkerState
from orchestrator.proto import cluster_pb2, fleet_pb2, fleet_pb2_grpc


class StillFleet(fleet_pb2_grpc.FleetServicer):
    """Publishes a fleet that never changes. ``addresses``: by the ids that ``worker_ids`` gives."""

    def __init__(self, spec: ClusterSpec, addresses: Mapping[str, str]) -> None:
        status = cluster_pb2.ClusterStatus(ready=True, name=spec.name)
        for model in spec.models:
            entry = status.models.add(name=model.name, source=model.source)
            for role, pool in model.pools.items():
                workers = [
                    cluster_pb2.WorkerStatus(id=each, state=WorkerState.READY, address=addresses[each], epoch=1)
                    for each in worker_ids(model.name, role, pool.replicas)
                ]
                entry.pools.add(role=role, replicas=pool.replicas, workers=workers)
        self._snapshot = fleet_pb2.FleetSnapshot(status=status, spec_json=dumps(spec))

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[fleet_pb2.FleetSnapshot]:  # noqa: N802
        yield self._snapshot
        await asyncio.Event().wait()


def worker_ids(model: str, role: str, replicas: int) -> list[str]:
    """As the controller names its slots."""
    return [f"{model}/{role}/{number}" for number in range(replicas)]


@asynccontextmanager
async def publishing(spec: ClusterSpec, addresses: Mapping[str, str]) -> AsyncIterator[str]:
    """A running controller's address."""
    server = grpc.aio.server()
    fleet_pb2_grpc.add_FleetServicer_to_server(StillFleet(spec, addresses), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
