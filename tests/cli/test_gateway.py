"""``segue gateway``: a process of its own, told by a controller, that serves and leaves without breaking anything."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from orchestrator.cli.exits import of_error
from orchestrator.core.errors import ClusterUnreachable
from orchestrator.core.spec import ClusterSpec, Role
from orchestrator.core.types import GatewayAssignment
from orchestrator.gateway.process import GatewayProcess, Outside
from tests.cli.test_end_to_end import free_ports
from tests.gateway.support import FakeController, cluster, model
from tests.workers.support import mock_worker

SECONDS = 60.0
ENGINE = {"block_size": 16, "max_model_len": 512, "step_seconds": 0.02}


class Gateway:
    """One that runs; ``url`` is where it listens."""

    def __init__(self, process: Process, url: str) -> None:
        self.process = process
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, timeout=SECONDS)

    async def until(self, status: int, path: str = "/ready") -> None:
        async with asyncio.timeout(SECONDS):
            while (await self.http.get(path)).status_code != status:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)

    async def ask(self, tokens: int) -> httpx.Response:
        body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True}
        return await self.http.post("/v1/completions", json=body)

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
        port = free_ports(1)[0]
        process = await program(controller.address, "--http", f"127.0.0.1:{port}", "--linger", linger)
        gateway = Gateway(process, f"http://127.0.0.1:{port}")
        try:
            await gateway.line("listens")
            await gateway.until(200)
            yield gateway
        finally:
            await gateway.http.aclose()
            if process.returncode is None:
                process.kill()
            await process.wait()


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
        await asyncio.gather(long, return_exceptions=True)


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
