"""``segue gateway``: a process of its own, told by a controller, that serves and leaves without breaking anything."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import grpc.aio
import httpx
import pytest

from orchestrator.cli.exits import of_error
from orchestrator.core.errors import ClusterUnreachable
from orchestrator.core.spec import ClusterSpec, Role
from orchestrator.core.types import GatewayAssignment
from orchestrator.gateway.process import GatewayProcess, Outside
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2_grpc
from orchestrator.proto import inference_pb2 as pb
from tests.gateway.support import FakeController, cluster, model
from tests.ports import free_ports
from tests.workers.support import mock_worker

SECONDS = 60.0
ENGINE = {"block_size": 16, "max_model_len": 512, "step_seconds": 0.02}


class Gateway:
    """One that runs; ``url`` and ``rpc`` are where it listens."""

    def __init__(self, process: Process, url: str, rpc: str = "") -> None:
        self.process = process
        self.rpc = rpc
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, timeout=SECONDS)

    async def until(self, status: int, path: str = "/ready") -> None:
        async with asyncio.timeout(SECONDS):
            while (await self.http.get(path)).status_code != status:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)

    async def ask(self, tokens: int) -> httpx.Response:
        body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True}
        return await self.http.post("/v1/completions", json=body)

    async def listed(self, state: str) -> cluster_pb2.GatewayStatus:
        """As any gateway tells of it, once its state is that."""
        async with asyncio.timeout(SECONDS), grpc.aio.insecure_channel(self.rpc) as channel:
            stub = cluster_pb2_grpc.ClusterStub(channel)
            while True:
                told = (await stub.Status(cluster_pb2.StatusRequest())).gateways
                if [one.state for one in told] == [state]:
                    return told[0]
                await asyncio.sleep(0.05)

    async def line(self, part: str) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(SECONDS):
            async for line in self.process.stdout:
                if part in line.decode():
                    return line.decode()
        raise AssertionError(f"it never said: {part}")


def without_gateways() -> ClusterSpec:
    spec = cluster(model("m", "tiny:llama", Role.SERVE))
    return replace(spec, gateway=replace(spec.gateway, processes=0))


async def program(controller: str, *words: str) -> Process:
    command = [sys.executable, "-m", "orchestrator.cli.main", "gateway", "--controller", controller, *words]
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)


@asynccontextmanager
async def serving(linger: str) -> AsyncIterator[Gateway]:
    engine = mock_worker(Role.SERVE, "m", worker_id="m-serve-0", **ENGINE)
    async with engine as worker, FakeController(without_gateways()) as controller:
        controller.add("m", Role.SERVE, "m-serve-0", worker.address)
        http, rpc = (f"127.0.0.1:{port}" for port in free_ports(2))
        process = await program(controller.address, "--http", http, "--grpc", rpc, "--linger", linger)
        gateway = Gateway(process, f"http://{http}", rpc)
        try:
            await gateway.line("listens")
            await gateway.until(200)
            yield gateway
        finally:
            await gateway.http.aclose()
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_it_waits_for_a_controller_for_as_long_as_it_is_told_to() -> None:
    process = await program(f"127.0.0.1:{free_ports(1)[0]}", "--wait", "0.5")
    async with asyncio.timeout(SECONDS):
        said, _ = await process.communicate()
    assert process.returncode == of_error(ClusterUnreachable(""))
    assert "no controller answers, for 0.5 s" in said.decode()


async def test_the_status_of_the_cluster_has_it() -> None:
    async with serving(linger="60") as gateway:
        listed = await gateway.listed("ready")
        assert (f"http://{listed.http}", listed.grpc, listed.pid) == (gateway.url, gateway.rpc, gateway.process.pid)
        assert listed.outside
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.listed("draining")


async def test_it_serves_and_leaves_in_order() -> None:
    async with serving(linger="2") as gateway:
        assert (await gateway.http.get("/health")).status_code == 200
        long = asyncio.create_task(gateway.ask(300))
        assert (await gateway.ask(3)).status_code == 200
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.until(503)
        assert (await gateway.ask(3)).status_code == 200  # who has not noticed yet is served
        await gateway.line("draining")
        late = await gateway.ask(3)
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        answer = await long
        assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 300)
        assert await gateway.process.wait() == 0


async def test_a_second_signal_cuts_off_what_runs_and_says_so() -> None:
    async with serving(linger="600") as gateway:
        long = asyncio.create_task(gateway.ask(500))
        assert (await gateway.ask(3)).status_code == 200
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.until(503)
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.line("cut off")
        assert await gateway.process.wait() == 1
        answer = await long
        assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (
            503,
            "not_ready",
            "1",
        )


async def test_whoever_calls_as_it_ends_is_told_to_come_again() -> None:
    """By gRPC, whose own way to stop a server answers calls that come at that moment with CANCELLED."""
    told: Counter[tuple[grpc.StatusCode, str]] = Counter()
    async with serving(linger="0.1") as gateway:
        lanes = [asyncio.create_task(_calls_until_gone(gateway, told)) for _ in range(8)]
        async with asyncio.timeout(SECONDS):
            while told[grpc.StatusCode.OK, ""] < 20:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.01)
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.process.wait() == 0
        await asyncio.gather(*lanes)
    assert {code for code, _ in told} == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, told
    assert any("draining" in words for _, words in told), told


async def _calls_until_gone(gateway: Gateway, told: Counter[tuple[grpc.StatusCode, str]]) -> None:
    sampling = pb.SamplingParams(max_tokens=1, ignore_eos=True)
    request = pb.GenerateRequest(model="m", token_ids=pb.TokenIds(ids=[1, 2, 3]), sampling=sampling)
    while gateway.process.returncode is None:
        async with grpc.aio.insecure_channel(gateway.rpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                async for _ in inference_pb2_grpc.InferenceStub(channel).Generate(request):
                    pass
                told[grpc.StatusCode.OK, ""] += 1
            except grpc.aio.AioRpcError as error:
                told[error.code(), error.details() or ""] += 1


async def test_stopped_while_it_waits_for_a_controller() -> None:
    process = await program(f"127.0.0.1:{free_ports(1)[0]}")
    gateway = Gateway(process, "http://127.0.0.1:1")
    await gateway.line("starting")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(SECONDS):
        assert await process.wait() == 0
    await gateway.http.aclose()


async def test_no_controller_is_an_error_of_its_own() -> None:
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    process = GatewayProcess(GatewayAssignment("", "gw", 0, nowhere), Outside(patience=0.2))
    with pytest.raises(ClusterUnreachable, match="no controller answers") as failed:
        await process.start()
    assert of_error(failed.value) == 3


async def test_wrong_addresses_are_told_by_their_option() -> None:
    process = await program("127.0.0.1:9100", "--http", "8000")
    told, _ = await process.communicate()
    assert (process.returncode, told.decode().startswith("segue: --http: ")) == (2, True), told
