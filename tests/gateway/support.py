"""A whole gateway in this process, in front of mock workers, told of them by a controller that only publishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import httpx

from orchestrator.config import dumps
from orchestrator.controller import fleet
from orchestrator.controller.guests import Guests
from orchestrator.core.spec import (
    Backend,
    ClusterSpec,
    Endpoint,
    GatewaySpec,
    ModelSpec,
    PoolSpec,
    PrefillPlace,
    Role,
    RoutingSpec,
)
from orchestrator.core.types import GatewayAssignment, Load
from orchestrator.gateway.gateway import Gateway
from orchestrator.gateway.serving import Serving
from orchestrator.proto import cluster_pb2, fleet_pb2, fleet_pb2_grpc
from tests.workers.support import MockWorker, mock_worker

FREE = Endpoint("127.0.0.1", 0)


def model(name: str, source: str, *roles: Role, **frontend: Any) -> ModelSpec:
    """A model of mock workers, one a pool; with a prefill pool, short prompts go there too."""
    engine = {"max_model_len": 512, "block_size": 16}
    pools = {role: PoolSpec(role, backend=Backend.MOCK, engine=engine) for role in roles}
    return ModelSpec(name, source, pools, frontend=frontend, routing=RoutingSpec(prefill=PrefillPlace.APART))


def cluster(*models: ModelSpec, **gateway: Any) -> ClusterSpec:
    return ClusterSpec("test", models, gateway=GatewaySpec(http=FREE, grpc=FREE, **gateway))


class FakeController(fleet_pb2_grpc.FleetServicer):
    """Publishes a fleet; ``away`` stands for a controller that died."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._workers: dict[tuple[str, Role], list[cluster_pb2.WorkerStatus]] = {}
        self._news = asyncio.Event()
        self.guests = Guests()
        self._server = grpc.aio.server(options=fleet.OPTIONS)
        fleet_pb2_grpc.add_FleetServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> FakeController:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.away()

    async def away(self) -> None:
        await self._server.stop(None)

    def add(
        self, model_name: str, role: Role, worker_id: str, address: str, state: str = "ready", epoch: int = 1
    ) -> None:
        status = cluster_pb2.WorkerStatus(id=worker_id, state=state, address=address, epoch=epoch)
        self._workers.setdefault((model_name, role), []).append(status)
        self.publish()

    def remove(self, worker_id: str) -> None:
        for workers in self._workers.values():
            workers[:] = [worker for worker in workers if worker.id != worker_id]
        self.publish()

    def publish(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def snapshot(self) -> fleet_pb2.FleetSnapshot:
        status = cluster_pb2.ClusterStatus(ready=True, name=self._spec.name)
        for spec in self._spec.models:
            entry = status.models.add(name=spec.name, source=spec.source)
            for role in spec.pools:
                workers = self._workers.get((spec.name, role), [])
                entry.pools.add(role=role.value, replicas=1, workers=workers)
        status.gateways.extend(self.guests.there(time.monotonic()))
        return fleet_pb2.FleetSnapshot(status=status, spec_json=dumps(self._spec))

    async def Attend(self, request: Any, context: Any) -> fleet_pb2.AttendReply:  # noqa: N802
        self.guests.heard(request.gateway, "", time.monotonic())
        self.publish()
        return fleet_pb2.AttendReply()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[fleet_pb2.FleetSnapshot]:  # noqa: N802
        while True:
            news = self._news
            yield self.snapshot()
            await news.wait()


@dataclass
class Stack:
    """A running gateway and what stands around it."""

    gateway: Gateway
    controller: FakeController
    http: httpx.AsyncClient
    url: str
    grpc_address: str
    workers: dict[str, MockWorker] = field(default_factory=dict)

    async def ready(self, seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while self.gateway.not_ready():
                await self.gateway.status_changed(0.1)

    async def quiet(self, seconds: float = 10.0) -> None:
        """The checker after each test: no request without an outcome, no block in use, books that balance."""
        assert await self.gateway.driver.idle(seconds), "requests without an outcome"
        until = asyncio.get_running_loop().time() + seconds
        while busy := {each: load for each in self.workers if (load := self._busy(each))}:
            assert asyncio.get_running_loop().time() < until, f"left after {seconds:g} s: {busy}"
            await self.gateway.status_changed(0.2)
        self.gateway.driver._brain.check()
        assert not self.gateway.driver._flights
        for front in self.gateway.fronts():
            processor = front.llm.output_processor
            assert not processor.request_states, "requests that vLLM's front end never let go"
            assert not processor.parent_requests
            assert not processor.external_req_ids

    def _busy(self, worker_id: str) -> Load | None:
        """What a worker says that it has, if it has anything."""
        load = self.gateway.driver.load(worker_id)
        return load if load is not None and (load.running or load.waiting or load.kv_blocks_used) else None


@asynccontextmanager
async def running(spec: ClusterSpec, *, record: str = "", **engines: Any) -> AsyncIterator[Stack]:
    """A gateway over one mock worker for each pool of ``spec``; ``engines`` are settings for all of them."""
    async with AsyncExitStack() as stack:
        controller = await stack.enter_async_context(FakeController(spec))
        workers: dict[str, MockWorker] = {}
        for entry in spec.models:
            for role in entry.pools:
                worker_id = f"{entry.name}-{role}-0"
                context = mock_worker(role, entry.name, worker_id=worker_id, **{**entry.pools[role].engine, **engines})
                workers[worker_id] = await stack.enter_async_context(context)
                controller.add(entry.name, role, worker_id, workers[worker_id].address)
        serving = Serving(GatewayAssignment(spec.name, "gw-0", 1, controller.address, record=record), spec)
        task = asyncio.create_task(serving.gateway.run(controller.address))
        for entry in spec.models:
            await serving.gateway.build_front(entry)
        http, rpc = serving.bind()
        await serving.listen()
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{http}", timeout=30))
        running_stack = Stack(serving.gateway, controller, client, f"http://{http}", rpc, workers)
        try:
            await running_stack.ready()
            yield running_stack
        finally:
            await asyncio.wait_for(serving.close(), 30)
            await serving.refuse(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def names(cards: Sequence[dict[str, Any]]) -> set[str]:
    return {card["id"] for card in cards}
