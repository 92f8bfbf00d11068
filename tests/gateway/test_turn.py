"""Gateway processes that share their ports: no client reaches one that can't serve while another can."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import httpx
import pytest

from orchestrator.core.errors import SegueError
from orchestrator.core.spec import ClusterSpec, Endpoint, GatewaySpec, Role
from orchestrator.core.types import GatewayAssignment
from orchestrator.gateway.frontend import Front
from orchestrator.gateway.gateway import Gateway
from orchestrator.gateway.serving import Serving
from orchestrator.gateway.turn import PATIENCE_SECONDS, Turn
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc
from tests.gateway.support import FakeController, cluster, model
from tests.ports import free_ports
from tests.workers.support import mock_worker

CONNECTIONS = 24  # one of two listeners is missed by all of them once in sixteen million times
SECONDS = 10.0


class Scene:
    """One pair of ports, a controller and the processes in between."""

    def __init__(self, spec: ClusterSpec, controller: FakeController, log_dir: Path, http: httpx.AsyncClient) -> None:
        self.spec = spec
        self.http = http
        self._controller = controller
        self._log_dir = log_dir

    @asynccontextmanager
    async def process(self, gateway_id: str) -> AsyncIterator[Gateway]:
        """A gateway process from the moment when it has its ports."""
        order = GatewayAssignment("test", gateway_id, 1, self._controller.address, str(self._log_dir))
        serving = Serving(order, self.spec)
        tasks = [asyncio.create_task(serving.gateway.run(self._controller.address))]
        try:
            await serving.gateway.build_front(self.spec.models[0])
            serving.bind()
            tasks.append(asyncio.create_task(self._open(serving)))
            yield serving.gateway
        finally:
            await serving.close()
            await serving.refuse(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _open(serving: Serving) -> None:
        await serving.turn.comes()
        await serving.listen()
        await serving.turn.passes()

    @asynccontextmanager
    async def workers(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for role in self.spec.models[0].pools:
                worker = await stack.enter_async_context(
                    mock_worker(role, "m", worker_id=f"m-{role}-0", max_model_len=512, block_size=16)
                )
                self._controller.add("m", role, f"m-{role}-0", worker.address)
            yield

    def lose(self, role: Role) -> None:
        self._controller.remove(f"m-{role}-0")

    async def completion(self) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"model": "m", "prompt": [1, 2, 3], "max_tokens": 2})

    async def who(self) -> set[str]:
        """All that take connections, by either protocol."""
        answers = await asyncio.gather(*(self.http.get("/metrics") for _ in range(CONNECTIONS)))
        by_http = {re.search(r'gateway="([^"]+)"', answer.text)[1] for answer in answers}  # type: ignore[index]
        by_grpc = set(await asyncio.gather(*(self._explain() for _ in range(CONNECTIONS))))
        return by_http | by_grpc

    async def _explain(self) -> str:
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(str(self.spec.gateway.grpc), options=own) as channel:
            call = cluster_pb2_grpc.ClusterStub(channel).Explain(cluster_pb2.ExplainRequest(request_id="none"))
            return str((await call).gateway)

    async def until(self, whole: set[str]) -> None:
        async with asyncio.timeout(SECONDS):
            while await self.who() != whole:
                pass

    async def listens(self) -> None:
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    await self.who()
                    return
                except (httpx.ConnectError, grpc.aio.AioRpcError):
                    await asyncio.sleep(0.01)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    http, rpc = (Endpoint("127.0.0.1", port) for port in free_ports(2))
    spec = replace(
        cluster(model("m", "tiny:llama", Role.PREFILL, Role.DECODE)),
        gateway=GatewaySpec(http=http, grpc=rpc, processes=2),
    )
    each_request_its_connection = httpx.Limits(max_keepalive_connections=0)
    async with (
        FakeController(spec) as controller,
        httpx.AsyncClient(base_url=f"http://{http}", timeout=30, limits=each_request_its_connection) as client,
    ):
        yield Scene(spec, controller, tmp_path, client)


class Gates:
    """Hold up what a gateway still does once it knows a worker: building its API."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._closed: dict[int, asyncio.Event] = {}
        really = Front.open

        async def held(front: Front, tasks: tuple[str, ...], max_model_len: int) -> None:
            if gate := self._closed.get(id(front.core._sink)):
                await gate.wait()
            await really(front, tasks, max_model_len)

        monkeypatch.setattr(Front, "open", held)

    def close(self, gateway: Gateway) -> asyncio.Event:
        return self._closed.setdefault(id(gateway.driver), asyncio.Event())


async def lacks(gateway: Gateway, *missing: str) -> None:
    """Until that, and no more, is missing."""
    async with asyncio.timeout(SECONDS):
        while gateway.not_ready() != list(missing):
            await gateway.status_changed(0.1)


async def test_while_none_can_serve_one_says_so_and_others_join_once_all_can(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates(monkeypatch)
    async with scene.process("gw-0") as first:
        gate = gates.close(first)
        await scene.listens()
        async with scene.process("gw-1") as second:
            ready, answer = await scene.http.get("/ready"), await scene.completion()
            assert (ready.status_code, len(ready.json()["missing"])) == (503, 2)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert int(answer.headers["retry-after"]) > 0
            async with scene.workers():
                await lacks(second)
                await lacks(first, "m's API is being built")
                assert await scene.who() == {"gw-0"}  # or some clients would be served and some not
                gate.set()
                await scene.until({"gw-0", "gw-1"})
                answers = await asyncio.gather(*(scene.completion() for _ in range(CONNECTIONS)))
                assert {one.status_code for one in answers} == {200}


async def test_a_process_that_takes_anothers_place_takes_no_connections_before_it_can_serve(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates(monkeypatch)
    async with scene.workers(), scene.process("gw-1"):
        async with scene.process("gw-0"):
            await scene.until({"gw-0", "gw-1"})
        scene.lose(Role.PREFILL)  # for what the whole fleet lacks nobody waits
        async with scene.process("gw-0") as replacement:
            gate = gates.close(replacement)
            await lacks(replacement, "m/prefill has no ready worker")
            for _ in range(3):
                assert await scene.who() == {"gw-1"}
                assert (await scene.completion()).status_code == 200
            gate.set()
            await scene.until({"gw-0", "gw-1"})
            assert replacement.not_ready() == ["m/prefill has no ready worker"]


async def test_who_waits_takes_the_place_of_one_that_died_while_none_could_serve(scene: Scene) -> None:
    async with AsyncExitStack() as later, AsyncExitStack() as sooner:
        await sooner.enter_async_context(scene.process("gw-0"))
        await scene.listens()
        await later.enter_async_context(scene.process("gw-1"))
        assert await scene.who() == {"gw-0"}
        await sooner.aclose()
        await scene.listens()
        assert (await scene.http.get("/ready")).status_code == 503
        assert await scene.who() == {"gw-1"}


@dataclass
class FakeGateway:
    missing: tuple[str, ...] = ()
    draining: bool = False
    lacks: bool = False

    def not_ready(self) -> list[str]:
        return list(self.missing)

    def behind(self) -> bool:
        return self.lacks

    async def status_changed(self, timeout_seconds: float) -> bool:
        raise AssertionError("a take waits for nothing")


def test_one_that_never_gets_ready_does_not_keep_others_from_serving(tmp_path: Path) -> None:
    now = 0.0
    stuck = Turn(FakeGateway(missing=("its way to a worker",)), tmp_path / "turn")
    sound = Turn(FakeGateway(), tmp_path / "turn", clock=lambda: now)
    assert stuck.take()
    assert not sound.take()
    now = PATIENCE_SECONDS - 1
    assert not sound.take()
    now = PATIENCE_SECONDS
    assert sound.take()
    for turn in (stuck, sound):
        turn.close()


def test_a_gateway_that_drains_takes_no_turn(tmp_path: Path) -> None:
    gone = Turn(FakeGateway(missing=("this gateway is draining",), draining=True), tmp_path / "turn")
    assert not gone.take()
    gone.close()


def test_a_file_system_without_such_locks_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    turn = Turn(FakeGateway(), tmp_path / "turn")
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(SegueError, match=rf"{tmp_path}/turn: .*No locks available.*gateway\.processes: 1"):
        turn.take()
    turn.close()
