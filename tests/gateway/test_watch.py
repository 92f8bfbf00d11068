"""What a gateway makes of the controllers that it hears, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from orchestrator.gateway import watch
from orchestrator.proto import cluster_pb2, fleet_pb2, fleet_pb2_grpc

WAIT = 20.0  # seconds


class Controllers(fleet_pb2_grpc.FleetServicer):
    """Each connection reaches the next of these: the terms that its snapshots have; then it ends."""

    def __init__(self, *spoken: list[int]) -> None:
        self.left = list(spoken)

    async def Watch(  # noqa: N802
        self, request: fleet_pb2.FleetWatchRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.FleetSnapshot]:
        for term in self.left.pop(0) if self.left else []:
            control = cluster_pb2.ControllerStatus(term=term)
            yield fleet_pb2.FleetSnapshot(status=cluster_pb2.ClusterStatus(controller=control))


async def test_a_controller_that_was_replaced_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.01)
    server = grpc.aio.server()
    controllers = Controllers([1, 1], [2], [1, 1, 1], [1], [2, 3])
    fleet_pb2_grpc.add_FleetServicer_to_server(controllers, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    taken: list[int] = []
    watching = asyncio.create_task(
        watch.watch_fleet(f"127.0.0.1:{port}", "test", lambda seen: taken.append(seen.status.controller.term))
    )
    try:
        async with asyncio.timeout(WAIT):
            while 3 not in taken:  # noqa: ASYNC110 - it comes by a plain call
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.wait({watching})
        await server.stop(None)
    assert taken == [1, 1, 2, 2, 3]
