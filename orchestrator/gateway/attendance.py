"""How a gateway that the controller did not start says that it is there, so that the cluster's status has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio

from orchestrator.gateway.watch import OPTIONS
from orchestrator.proto import cluster_pb2, fleet_pb2, fleet_pb2_grpc
from orchestrator.telemetry import logs

ATTEND_SECONDS = 2.0  # of the 10 for which the controller remembers it

log = logs.events("gateway.attendance")


async def attend(controller: str, word: Callable[[], cluster_pb2.GatewayStatus]) -> None:
    """Says it for ever, or until a controller says that it knows of no such thing. One that is away is the fleet
    watch's to tell of."""
    told: grpc.StatusCode | None = None
    async with grpc.aio.insecure_channel(controller, options=OPTIONS) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        while True:
            try:
                await stub.Attend(fleet_pb2.AttendRequest(gateway=word()), timeout=ATTEND_SECONDS)
                told = None
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    log.info("not_listed", reason="the controller is older")
                    return
                if error.code() is not told and error.code() is not grpc.StatusCode.UNAVAILABLE:
                    log.warning("not_listed", code=error.code().name)
                told = error.code()
            await asyncio.sleep(ATTEND_SECONDS)
