"""A gateway's end: what it was asked is answered or refused in words, wherever in the gateway it is by then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from orchestrator.core.errors import SegueError
from orchestrator.core.spec import ModelSpec, Role
from orchestrator.core.types import GatewayAssignment
from orchestrator.gateway.cluster_core import ClusterCore
from orchestrator.gateway.gateway import Gateway
from orchestrator.gateway.process import GatewayProcess
from orchestrator.proto import inference_pb2 as pb
from orchestrator.proto import inference_pb2_grpc
from tests.gateway.support import FakeController, Stack, cluster, model, running

PROMPT = {"model": "m", "prompt": [1, 2, 3], "ignore_eos": True}


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[Stack]:
    """A gateway of its own for each test, whose worker runs two requests at a time."""
    spec = cluster(model("m", "tiny:llama", Role.SERVE), queue_seconds=30.0)
    async with running(spec, step_seconds=0.01, max_num_seqs=2) as own:
        yield own


class Threshold:
    """Holds requests that are read and not yet in the gateway's books."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        onwards = ClusterCore.add_request_async

        async def held(core: ClusterCore, request: Any) -> None:
            self.reached.set()
            await self.opened.wait()
            await onwards(core, request)

        monkeypatch.setattr(ClusterCore, "add_request_async", held)


async def told(stack: Stack, how: str, tokens: int) -> str:
    """The code with which a request ends, or "" where it is answered."""
    if how == "gRPC":
        asked = pb.GenerateRequest(
            model="m",
            token_ids=pb.TokenIds(ids=[1, 2, 3]),
            sampling=pb.SamplingParams(max_tokens=tokens, ignore_eos=True),
        )
        async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
            try:
                async for _ in inference_pb2_grpc.InferenceStub(channel).Generate(asked):
                    pass
            except grpc.aio.AioRpcError as error:
                return error.code().name
        return ""
    body = {**PROMPT, "max_tokens": tokens, "stream": how == "stream"}
    answer = await stack.http.post("/v1/completions", json=body)
    return "" if answer.status_code == 200 else str(answer.json()["error"]["code"])


WAYS = {"HTTP": "not_ready", "stream": "not_ready", "gRPC": "UNAVAILABLE"}


@pytest.mark.parametrize("how", WAYS)
async def test_a_drain_waits_for_a_request_that_is_still_being_read(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    threshold = Threshold(monkeypatch)
    asking = asyncio.create_task(told(stack, how, 4))
    await threshold.reached.wait()
    draining = asyncio.create_task(stack.gateway.drain(20))
    threshold.opened.set()
    assert await asking == ""
    assert await draining


@pytest.mark.parametrize("how", WAYS)
async def test_a_request_that_comes_through_after_the_end_is_refused(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    threshold = Threshold(monkeypatch)
    asking = asyncio.create_task(told(stack, how, 400))
    await threshold.reached.wait()
    assert not await stack.gateway.drain(0.05)
    stack.gateway.cut_off()
    threshold.opened.set()
    assert await asyncio.wait_for(asking, 5) == WAYS[how]
    assert await stack.gateway.drain(5)


async def test_whoever_waits_is_not_sent_to_a_worker_on_the_way_out(stack: Stack) -> None:
    driver = stack.gateway.driver
    asking = [asyncio.create_task(told(stack, "HTTP", 300)) for _ in range(12)]
    async with asyncio.timeout(20):
        while len(driver._flights.everything()) < 12 or not driver._brain.admission.waiting("m"):
            await stack.gateway.status_changed(0.05)
    waiting = [each for each in driver._flights.everything() if not each.wires]
    assert waiting
    stack.gateway.cut_off()
    assert set(await asyncio.wait_for(asyncio.gather(*asking), 10)) == {"not_ready"}
    assert not [each for each in waiting if each.wires]


async def test_one_that_can_not_be_cut_off_costs_the_others_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = [asyncio.create_task(told(stack, "HTTP", 300)) for _ in range(2)]
    driver = stack.gateway.driver
    async with asyncio.timeout(20):
        while len(driver._flights.everything()) < 2:
            await stack.gateway.status_changed(0.05)
    *_, last = driver._flights.everything()
    monkeypatch.setattr(last.core, "fail", _fails_once(last.core.fail))
    stack.gateway.cut_off()
    done, left = await asyncio.wait(asking, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert [each.result() for each in done] == ["not_ready"]
    for each in left:
        each.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _fails_once(fail: Any) -> Any:
    calls = iter((True,))

    def failing(*args: Any) -> None:
        if next(calls, False):
            raise RuntimeError("a defect")
        fail(*args)

    return failing


async def test_a_start_that_a_stop_overtakes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cluster(model("m", "tiny:llama", Role.SERVE))
    reached, opened = threading.Event(), threading.Event()
    build = Gateway.build_front

    async def held(gateway: Gateway, entry: ModelSpec) -> None:
        reached.set()
        await asyncio.to_thread(opened.wait, 60)
        await build(gateway, entry)

    monkeypatch.setattr(Gateway, "build_front", held)
    async with FakeController(spec) as controller:
        process = GatewayProcess(GatewayAssignment("test", "gw-0", 1, controller.address))
        starting = asyncio.create_task(process.start())
        assert await asyncio.to_thread(reached.wait, 60)
        stopping = asyncio.create_task(process.stop())
        while not (process._stopping and process._stopping.is_set()):  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.01)
        opened.set()
        await stopping
        with pytest.raises(SegueError, match="stopped before it served"):
            await asyncio.wait_for(starting, 10)
