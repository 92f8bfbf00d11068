"""A client that doesn't read what it asked for costs the cluster a bounded time, and nobody else anything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from orchestrator.gateway import rpc_errors, rpc_write
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2_grpc
from orchestrator.proto import inference_pb2 as pb
from tests.rpc.client import error_info
from tests.rpc.fake import Edge, Freeze, step

pytestmark = pytest.mark.asyncio(loop_scope="session")

FLOOD = [*(step("x" * 1000, [7]) for _ in range(2000)), step("end", [8], "stop")]  # far beyond any window


def handlers() -> int:
    return sum(task.get_coro().__qualname__ == "_handle_exceptions" for task in asyncio.all_tasks())


@pytest_asyncio.fixture(loop_scope="session")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    """A client whose windows stay as small as they begin."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(edge.address, options=options) as channel:
        yield channel


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_write, "UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(rpc_errors, "STATUS_SECONDS", 0.2)


async def test_an_answer_that_nobody_reads_is_given_up_and_a_client_that_reads_on_is_told(
    edge: Edge, channel: grpc.aio.Channel, impatient: None
) -> None:
    inference = inference_pb2_grpc.InferenceStub(channel)
    edge.llm.script = FLOOD
    before = handlers()
    call = inference.Generate(pb.GenerateRequest(model="m", text="a"))
    await edge.llm.arrived.wait()
    await asyncio.wait_for(edge.llm.calls[0].ended.wait(), 10)
    assert not edge.llm.calls[0].completed
    async with asyncio.timeout(10):
        while handlers() > before:  # noqa: ASYNC110 - grpc's own tasks tell nobody
            await asyncio.sleep(0.01)
    edge.llm.script = [step("hi", [7], "stop")]
    beside = [m async for m in inference.Generate(pb.GenerateRequest(model="m", text="b"))]
    assert beside[0].sequences[0].text == "hi"  # over the same connection
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in call:
            pass
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error_info(raised.value).reason == "unread"


async def test_so_is_one_whose_first_message_nobody_reads(
    edge: Edge, channel: grpc.aio.Channel, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(rpc_write, "LEAST_PACE", 1 << 30)
    edge.llm.script = [step("x" * 3_000_000, [7]), step("end", [8], "stop")]
    before = handlers()
    call = inference_pb2_grpc.InferenceStub(channel).Generate(pb.GenerateRequest(model="m", text="a"))
    await edge.llm.arrived.wait()
    await asyncio.wait_for(edge.llm.calls[0].ended.wait(), 10)
    async with asyncio.timeout(10):
        while handlers() > before:  # noqa: ASYNC110 - grpc's own tasks tell nobody
            await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in call:
                pass
    assert error_info(raised.value).reason == "unread"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_an_engine_that_says_nothing_for_long_is_no_client_that_does_not_read(
    edge: Edge, impatient: None
) -> None:
    pause = Freeze()
    edge.llm.script = [step("a", [7]), pause, step("b", [8], "stop")]
    call = edge.inference.Generate(pb.GenerateRequest(model="m", text="a"))
    asyncio.get_running_loop().call_later(0.8, pause.thaw.set)
    assert "".join([s.text async for m in call for s in m.sequences]) == "ab"


async def test_a_watch_that_nobody_reads_is_given_up(edge: Edge, channel: grpc.aio.Channel, impatient: None) -> None:
    edge.gateway.current.name = "n" * 200_000
    before = handlers()
    watch = cluster_pb2_grpc.ClusterStub(channel).Watch(cluster_pb2.WatchRequest(min_interval_ms=20))
    seen = aiter(watch)
    await anext(seen)
    async with asyncio.timeout(10):
        while handlers() > before:
            edge.gateway.change(name="n" * 200_000 + str(edge.gateway.looks))
            await asyncio.sleep(0.02)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in seen:
            pass
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
