"""A gateway outside of Ray says that it is there, to whichever controller there is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from orchestrator.gateway import attendance
from orchestrator.proto import fleet_pb2, fleet_pb2_grpc
from orchestrator.proto.cluster_pb2 import GatewayStatus

WAIT = 10.0


class Controller(fleet_pb2_grpc.FleetServicer):
    """Refuses the first calls with these codes."""

    def __init__(self, *refusals: grpc.StatusCode) -> None:
        self._refusals = list(refusals)
        self.listed = asyncio.Event()

    async def Attend(self, request: Any, context: Any) -> fleet_pb2.AttendReply:  # noqa: N802
        if self._refusals:
            await context.abort(self._refusals.pop(0), "no")
        self.listed.set()
        return fleet_pb2.AttendReply()


@asynccontextmanager
async def serving(controller: Controller, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    fleet_pb2_grpc.add_FleetServicer_to_server(controller, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def attending(address: str, *details: str) -> AsyncIterator[None]:
    """``details``: of its first words."""
    first = list(details)
    task = asyncio.create_task(
        attendance.attend(address, lambda: GatewayStatus(id="g", detail=first.pop(0) if first else ""))
    )
    try:
        yield
    finally:
        assert not task.done()
        task.cancel()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "ATTEND_SECONDS", 0.1)


async def test_one_that_was_refused_says_so_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    older = Controller(*[grpc.StatusCode.UNIMPLEMENTED] * 3)
    with caplog.at_level(logging.INFO):
        async with serving(older) as address, attending(address):
            await asyncio.wait_for(older.listed.wait(), WAIT)
    assert sum("not_listed" in record.getMessage() for record in caplog.records) == 1


async def test_a_word_that_can_not_be_sent_is_not_the_last() -> None:
    controller = Controller()
    async with serving(controller) as address, attending(address, "a path of no encoding: \udcff"):
        await asyncio.wait_for(controller.listed.wait(), WAIT)


async def test_it_is_listed_again_by_the_controller_that_comes_after() -> None:
    first, second = Controller(), Controller()
    async with AsyncExitStack() as stack:
        async with serving(first) as address:
            await stack.enter_async_context(attending(address))
            await asyncio.wait_for(first.listed.wait(), WAIT)
        async with serving(second, address):
            await asyncio.wait_for(second.listed.wait(), WAIT)
