"""A gateway process that can't come up says why, in the words of what went wrong."""

from __future__ import annotations

import socket

import pytest

from orchestrator.core.errors import SegueError
from orchestrator.core.spec import Endpoint, GatewaySpec, Role
from orchestrator.core.types import GatewayAssignment, WorkerState
from orchestrator.gateway import served
from orchestrator.gateway.process import GatewayProcess
from tests.gateway.support import FREE, FakeController, cluster, model
from tests.workers.support import mock_worker


async def start(spec: object) -> tuple[GatewayProcess, str]:
    async with FakeController(spec) as controller:  # type: ignore[arg-type]
        process = GatewayProcess(GatewayAssignment("test", "gw-0", 1, controller.address))
        with pytest.raises(SegueError) as failed:
            await process.start()
        await process.stop()
        return process, str(failed.value)


async def test_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        spec = cluster(model("m", "tiny:llama", Role.SERVE))
        ports = GatewaySpec(http=Endpoint("127.0.0.1", taken.getsockname()[1]), grpc=FREE)
        process, said = await start(type(spec)("test", spec.models, gateway=ports))
    assert "Address already in use (see who has it with `ss -tanp`" in said
    assert (await process.snapshot()).state is WorkerState.FAILED


async def test_model_that_is_not_there() -> None:
    _, said = await start(cluster(model("m", "/no/such/folder", Role.SERVE)))
    assert "/no/such/folder" in said


async def test_front_end_that_can_not_be_built_ends_the_gateway_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served, "FRONT_SECONDS", 0.05)
    spec = cluster(model("m", "tiny:llama", Role.SERVE, chat_template="/no/such/template.jinja"))
    async with mock_worker(Role.SERVE, "m", worker_id="m-serve-0") as worker, FakeController(spec) as controller:
        controller.add("m", Role.SERVE, "m-serve-0", worker.address)
        process = GatewayProcess(GatewayAssignment("test", "gw-0", 1, controller.address))
        await process.start()
        await process.wait_closed()  # the controller starts another, after its backoff
        snapshot = await process.snapshot()
    assert snapshot.state is WorkerState.FAILED
    assert "template" in snapshot.detail
