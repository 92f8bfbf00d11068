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
    """Each connection reaches the next of these: each snapshot's beginning of the cluster and term; then it ends."""

    def __init__(self, *spoken: list[tuple[int, int]]) -> None:
        self.left = list(spoken)

    async def Watch(  # noqa: N802
        self, request: fleet_pb2.FleetWatchRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.FleetSnapshot]:
        for began_ms, term in self.left.pop(0) if self.left else []:
            control = cluster_pb2.ControllerStatus(began_ms=began_ms, term=term)
            yield fleet_pb2.FleetSnapshot(status=cluster_pb2.ClusterStatus(controller=control))


async def heard(monkeypatch: pytest.MonkeyPatch, controllers: Controllers, last: tuple[int, int]) -> list[object]:
    """What a gateway takes in, up to that."""
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.01)
    server = grpc.aio.server()
    fleet_pb2_grpc.add_FleetServicer_to_server(controllers, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    taken: list[object] = []

    def take(seen: fleet_pb2.FleetSnapshot) -> None:
        taken.append((seen.status.controller.began_ms, seen.status.controller.term))

    watching = asyncio.create_task(watch.watch_fleet(f"127.0.0.1:{port}", "test", take))
    try:
        async with asyncio.timeout(WAIT):
            while last not in taken:  # noqa: ASYNC110 - it comes by a plain call
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.wait({watching})
        await server.stop(None)
    return taken


async def test_a_controller_that_was_replaced_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = [1, 1], [2], [1, 1, 1], [1], [2, 3]
    controllers = Controllers(*([(5, term) for term in terms] for terms in spoken))
    assert await heard(monkeypatch, controllers, (5, 3)) == [(5, 1), (5, 1), (5, 2), (5, 2), (5, 3)]


async def test_a_cluster_that_was_taken_down_and_begun_anew_is_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway outside of Ray outlives it; the terms of the next one begin at 1, whatever they had come to."""
    controllers = Controllers([(5, 1)], [(5, 2)], [(9, 1)], [(5, 2), (5, 3)], [(9, 2)])
    assert await heard(monkeypatch, controllers, (9, 2)) == [(5, 1), (5, 2), (9, 1), (9, 2)]


async def test_a_cluster_that_begins_earlier_by_the_clock_is_listened_to_once_the_other_is_long_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock was set back in between; a controller of the former term is none the better for that."""
    monkeypatch.setattr(watch, "GONE_SECONDS", 0.3)
    controllers = Controllers(
        [(9, 2)], [(5, 1)], *([(9, 1)] for _ in range(100)), *([(5, 1)] for _ in range(3)), [(5, 2)]
    )
    assert await heard(monkeypatch, controllers, (5, 2)) == [(9, 2), (5, 1), (5, 1), (5, 1), (5, 2)]
