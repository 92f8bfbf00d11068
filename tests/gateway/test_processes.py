"""Two gateways over the same workers, each with its own view, as with ``gateway.processes: 2``."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import httpx

from orchestrator.core.spec import ModelSpec, PoolSpec, PrefillPlace, Role, RoutingSpec
from orchestrator.core.types import GatewayAssignment, RequestReport
from orchestrator.gateway.hashing import prompt_blocks, root_of
from orchestrator.gateway.serving import Serving
from tests.gateway.support import Stack, cluster, model, running
from tests.workers.support import mock_worker

ENGINE: dict[str, Any] = {"block_size": 16, "max_model_len": 512, "step_seconds": 0.004, "max_num_seqs": 4}


@asynccontextmanager
async def two_gateways() -> AsyncIterator[tuple[Stack, Stack]]:
    """Over two prefill and two decode workers."""
    spec = model("m", "tiny:llama", Role.PREFILL, Role.DECODE)
    pools = {role: PoolSpec(role, 2, backend=pool.backend, engine=ENGINE) for role, pool in spec.pools.items()}
    routing = RoutingSpec(prefill=PrefillPlace.AUTO)
    whole = cluster(ModelSpec("m", spec.source, pools, routing=routing))
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(whole))
        for role in pools:
            worker_id = f"m-{role}-1"
            added = await stack.enter_async_context(mock_worker(role, "m", worker_id=worker_id, **ENGINE))
            first.workers[worker_id] = added
            first.controller.add("m", role, worker_id, added.address)
        serving = Serving(GatewayAssignment(whole.name, "gw-1", 1, first.controller.address), whole)
        task = asyncio.create_task(serving.gateway.run(first.controller.address))
        await serving.gateway.build_front(whole.models[0])
        http, rpc = serving.bind()
        await serving.listen()
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{http}", timeout=30))
        second = Stack(serving.gateway, first.controller, client, f"http://{http}", rpc, first.workers)
        try:
            for each in (first, second):
                await each.ready()
                async with asyncio.timeout(10):
                    while len(each.gateway.driver.workers) < 4:
                        await each.gateway.status_changed(0.1)
            yield first, second
        finally:
            await serving.close()
            await serving.refuse(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def ask(stack: Stack, prompt: list[int], request_id: str = "", **over: Any) -> httpx.Response:
    body = {"model": "m", "prompt": prompt, "max_tokens": 12, "ignore_eos": True, **over}
    return await stack.http.post("/v1/completions", json=body, headers={"x-request-id": request_id or "same"})


def listen(stack: Stack, reports: list[RequestReport]) -> None:
    metrics = stack.gateway.driver._metrics
    finished = metrics.request_finished

    def noted(report: RequestReport) -> None:
        reports.append(report)
        finished(report)

    metrics.request_finished = noted


def known(stack: Stack, prompt: list[int]) -> dict[str, int]:
    """How many leading blocks of a prompt each worker holds, as this gateway was told."""
    fleet = stack.gateway.driver._brain.fleet
    found = fleet.index("m").match(prompt_blocks(prompt, ENGINE["block_size"], root_of("m")))
    return {view.info.worker_id: found.blocks(view.slot) for view in fleet}


async def test_each_is_right_and_nothing_is_left_though_ids_are_the_same() -> None:
    """More than the workers have room for, with clients that leave, and one name for all requests."""
    rng = Random(4)
    reports: list[RequestReport] = []
    foreign: Counter[str] = Counter()
    async with two_gateways() as gateways:
        for gateway in gateways:
            listen(gateway, reports)

        async def one(number: int) -> int:
            gateway = gateways[number % 2]
            prompt = [number % 7, *range(50, 50 + rng.randrange(16, 120))]
            await asyncio.sleep(rng.random() * 0.5)
            call = asyncio.create_task(ask(gateway, prompt))
            if number % 5 == 4:
                await asyncio.sleep(rng.random() * 0.2)
                call.cancel()
            try:
                status = (await call).status_code
            except asyncio.CancelledError:
                return 0
            for each in gateways:
                for view in each.gateway.driver._brain.fleet:
                    foreign[each.gateway._id] = max(foreign[each.gateway._id], view.foreign)
            return status

        statuses = Counter(await asyncio.gather(*(one(number) for number in range(120))))
        assert set(statuses) <= {0, 200}, statuses
        assert statuses[200] >= 96
        for gateway in gateways:
            await gateway.quiet()
            async with asyncio.timeout(5):  # until the last word of all workers is there
                while any(view.foreign for view in gateway.gateway.driver._brain.fleet):
                    await gateway.gateway.status_changed(0.1)
        assert not any(worker.session.live_requests for worker in gateways[0].workers.values())
    assert min(foreign.values()) > 0, "neither saw the other's requests"
    assert len({report.request_id for report in reports}) == len(reports) <= 120, "two outcomes of one request"
    assert sum(report.outcome == "finished" for report in reports) >= statuses[200]
    shares = Counter(report.decode_worker for report in reports if report.outcome == "finished")
    assert min(shares["m-decode-0"], shares["m-decode-1"]) >= 25, shares


async def test_each_knows_what_came_by_way_of_the_other_also_after_its_session_broke() -> None:
    async with two_gateways() as (first, second):
        prompts = [[start, *range(50, 149)] for start in range(8)]
        for prompt in prompts:
            assert (await ask(first, prompt)).status_code == 200
        for stack in (first, second):
            await stack.quiet()
        for link in second.gateway._links.values():
            link._task.cancel()
            await asyncio.gather(link._task, return_exceptions=True)
        second.gateway._links.clear()
        assert not second.gateway.driver.workers
        second.controller.publish()
        await second.ready()
        async with asyncio.timeout(10):
            while any(known(second, prompt) != known(first, prompt) for prompt in prompts):
                await second.gateway.status_changed(0.1)
        reports: list[RequestReport] = []
        listen(second, reports)
        for prompt in prompts:
            assert (await ask(second, prompt)).status_code == 200
        for stack in (first, second):
            await stack.quiet()
    assert [report.predicted_cached_tokens for report in reports] == [96] * 8
    assert [report.cached_tokens for report in reports] == [96] * 8
