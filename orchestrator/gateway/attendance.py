"""How a gateway that the controller did not start says that it is there, so that the cluster's status has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio

from orchestrator.gateway.watch import OPTIONS
from orchestrator.proto import cluster_pb2, fleet_pb2, fleet_pb2_grpc
from orchestrator.telemetry import logs
from orchestrator.telemetry.redact import Words

ATTEND_SECONDS = 2.0  # of the 10 for which the controller remembers it

log = logs.events("gateway.attendance")


async def attend(controller: str, word: Callable[[], cluster_pb2.GatewayStatus]) -> None:
    """Says it for ever, whatever comes of it. That a controller is away is the fleet watch's to tell."""
    told = ""
    async with grpc.aio.insecure_channel(controller, options=OPTIONS) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        while True:
            try:
                await stub.Attend(fleet_pb2.AttendRequest(gateway=word()), timeout=ATTEND_SECONDS)
                why = ""
            except grpc.aio.AioRpcError as error:
                why = "" if error.code() is grpc.StatusCode.UNAVAILABLE else f"{error.code().name}: {error.details()}"
            except ValueError as error:  # some words have no UTF-8
                why = str(error)
            if why and why != told:
                log.warning("not_listed", reason=Words(why))
            told = why
            await asyncio.sleep(ATTEND_SECONDS)
