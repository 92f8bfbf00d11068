"""What a client notices when parts of the cluster go away: as little as can be, and never a hang."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import httpx
import pytest
import pytest_asyncio

from orchestrator.core import messages as m
from orchestrator.core.spec import Role
from orchestrator.proto import worker_pb2, worker_pb2_grpc
from tests.gateway.support import Stack, cluster, model, running
from tests.workers.support import mock_worker

PROMPT = {"model": "m", "prompt": "once upon a time there was a river", "ignore_eos": True}


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[Stack]:
    """A gateway of its own for each test: prefill and decode apart, slow enough to be caught in the act."""
    spec = cluster(model("m", "tiny:llama", Role.PREFILL, Role.DECODE), queue_seconds=1.0)
    async with running(spec, step_seconds=0.02) as own:
        yield own


async def streaming(stack: Stack, seen: asyncio.Event, **over: Any) -> list[dict[str, Any]]:
    """All events of a streamed answer; ``seen`` is set at the first."""
    events = []
    async with stack.http.stream("POST", "/v1/completions", json={**PROMPT, "stream": True, **over}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line[6:]))
                seen.set()
    return events


async def test_lost_prefill_pool_costs_time_but_no_answer(stack: Stack) -> None:
    before = (await stack.http.post("/v1/completions", json={**PROMPT, "max_tokens": 4})).json()
    await stack.workers["m-prefill-0"].server.stop(None)
    response = await stack.http.post("/v1/completions", json={**PROMPT, "max_tokens": 4})
    assert response.json()["choices"][0]["text"] == before["choices"][0]["text"]
    assert "x-segue-prefill" not in response.headers  # computed in place, and said so
    assert (await stack.http.get("/ready")).json()["missing"] == ["m/prefill has no ready worker"]


async def test_decode_lost_in_mid_stream_is_a_typed_error_in_the_stream(stack: Stack) -> None:
    seen = asyncio.Event()
    task = asyncio.create_task(streaming(stack, seen, max_tokens=300))
    await asyncio.wait_for(seen.wait(), 10)
    await stack.workers["m-decode-0"].server.stop(None)
    events = await asyncio.wait_for(task, 10)
    assert events[-1]["error"]["code"] == "worker_lost"
    assert "m-decode-0" in events[-1]["error"]["message"]


async def test_decode_lost_in_mid_answer_is_503_with_retry_after(stack: Stack) -> None:
    task = asyncio.create_task(stack.http.post("/v1/completions", json={**PROMPT, "max_tokens": 300}))
    async with asyncio.timeout(10):
        while not stack._busy("m-decode-0"):
            await stack.gateway.status_changed(0.1)
    await stack.workers["m-decode-0"].server.stop(None)
    response = await asyncio.wait_for(task, 10)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1


async def test_second_worker_takes_over_without_a_word(stack: Stack) -> None:
    async with mock_worker(Role.DECODE, "m", worker_id="m-decode-1", block_size=16, max_model_len=512) as second:
        stack.controller.add("m", Role.DECODE, "m-decode-1", second.address)
        async with asyncio.timeout(10):
            while stack.gateway.driver.load("m-decode-1") is None:
                await stack.gateway.status_changed(0.1)
        stack.controller.remove("m-decode-0")
        response = await stack.http.post("/v1/completions", json={**PROMPT, "max_tokens": 4})
        assert response.headers["x-segue-decode"] == "m-decode-1"


async def test_no_worker_left_is_503_and_ready_says_which_pool(stack: Stack) -> None:
    stack.controller.remove("m-decode-0")
    async with asyncio.timeout(10):
        while (await stack.http.get("/ready")).status_code == 200:
            await stack.gateway.status_changed(0.1)
    assert (await stack.http.get("/ready")).json()["missing"] == ["m/decode has no ready worker"]
    response = await stack.http.post("/v1/completions", json=PROMPT)
    assert response.status_code == 503
    assert response.headers["retry-after"]


async def test_requests_flow_while_the_controller_is_away(stack: Stack) -> None:
    await stack.controller.away()
    response = await stack.http.post("/v1/completions", json={**PROMPT, "max_tokens": 4})
    assert response.status_code == 200
    assert (await stack.http.get("/ready")).status_code == 200


async def test_drain_refuses_the_new_and_finishes_the_old(stack: Stack) -> None:
    seen = asyncio.Event()
    task = asyncio.create_task(streaming(stack, seen, max_tokens=40))
    await asyncio.wait_for(seen.wait(), 10)
    draining = asyncio.create_task(stack.gateway.drain(10))
    await asyncio.sleep(0)
    assert (await stack.http.post("/v1/completions", json=PROMPT)).status_code == 503
    assert await draining
    events = await task
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    await stack.quiet()


async def test_dropped_connection_between_the_halves_leaves_no_pinned_block() -> None:
    """The hand-over is slow here, so that the client leaves while its KV is on the way."""
    spec = cluster(model("m", "tiny:llama", Role.PREFILL, Role.DECODE))
    async with running(spec, transfer_bytes_per_second=1e6) as stack:
        body = {**PROMPT, "prompt": "far " * 200, "max_tokens": 4}
        async with asyncio.timeout(20):
            for _ in range(3):
                task = asyncio.create_task(stack.http.post("/v1/completions", json=body))
                while not stack._busy("m-decode-0"):
                    await stack.gateway.status_changed(0.05)
                task.cancel()
                with pytest.raises((asyncio.CancelledError, httpx.HTTPError)):
                    await task
        await stack.quiet()


class Rubbish(worker_pb2_grpc.WorkerServicer):
    """A worker that opens its session properly and then sends what nobody can read."""

    def __init__(self) -> None:
        self.sessions = 0

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[worker_pb2.WorkerFrame]:  # noqa: N802
        self.sessions += 1
        yield worker_pb2.WorkerFrame(welcome=worker_pb2.Welcome(worker_id="m-decode-1", epoch=1))
        yield worker_pb2.WorkerFrame(step=worker_pb2.Step(outputs=[b"\xc1 not msgpack"]))
        await asyncio.sleep(30)


async def test_worker_that_sends_rubbish_loses_its_session_and_nothing_else(stack: Stack) -> None:
    server, rubbish = grpc.aio.server(), Rubbish()
    worker_pb2_grpc.add_WorkerServicer_to_server(rubbish, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.controller.add("m", Role.DECODE, "m-decode-1", f"127.0.0.1:{port}")
    async with asyncio.timeout(10):
        while rubbish.sessions < 2:  # it is tried again, as any lost session is
            await stack.gateway.status_changed(0.1)
    answers = await asyncio.gather(
        *(stack.http.post("/v1/completions", json={**PROMPT, "max_tokens": 4}) for _ in range(6))
    )
    assert [answer.status_code for answer in answers] == [200] * 6
    await server.stop(None)


async def test_sessions_that_worker_after_worker_ends_leave_nothing_behind(stack: Stack) -> None:
    def writing() -> int:
        """Streams that wait for what this process has to send."""
        return sum("_consume_request_iterator" in repr(task) for task in asyncio.all_tasks())

    before = writing()
    for number in range(3):
        async with mock_worker(Role.DECODE, "m", worker_id=f"passing-{number}") as worker:
            stack.controller.add("m", Role.DECODE, f"passing-{number}", worker.address)
            await until(stack, lambda number=number: f"passing-{number}" in stack.gateway.driver.workers)
            assert writing() == before + 1
        await until(stack, lambda number=number: f"passing-{number}" not in stack.gateway.driver.workers)
        stack.controller.remove(f"passing-{number}")
        await until(stack, lambda number=number: f"passing-{number}" not in stack.gateway._links)
    await until(stack, lambda: writing() == before)


async def test_a_failing_sibling_costs_no_other_request(stack: Stack) -> None:
    """Of two decode workers the one that dies has a sibling in mid-stream and another waiting; strangers wait, too."""
    one_at_a_time = {"block_size": 16, "max_model_len": 512, "step_seconds": 0.02, "max_num_seqs": 1}
    spec = cluster(model("m", "tiny:llama", Role.PREFILL, Role.DECODE), queue_seconds=20.0)
    async with (
        running(spec, step_seconds=0.02, max_num_seqs=1) as own,
        mock_worker(Role.DECODE, "m", worker_id="m-decode-1", **one_at_a_time) as second,
    ):
        own.controller.add("m", Role.DECODE, "m-decode-1", second.address)
        driver = own.gateway.driver
        await until(own, lambda: driver.load("m-decode-1") is not None)

        async def ask(**over: Any) -> httpx.Response:
            return await own.http.post("/v1/completions", json={**PROMPT, "max_tokens": 20, **over})

        # Words that may not follow depend on what was sent: these can't go on elsewhere.
        siblings = asyncio.create_task(ask(n=4, temperature=0.9, bad_words=["never"]))
        strangers = [asyncio.create_task(ask(prompt=f"stranger {index}")) for index in range(4)]
        sessions = driver._brain._sessions
        await until(own, lambda: sum(each.state in ("decoding", "streaming") for each in sessions.values()) == 4)
        await own.workers["m-decode-0"].server.stop(None)
        async with asyncio.timeout(20):
            assert (await siblings).status_code == 503
            answers = await asyncio.gather(*strangers)
        assert [answer.status_code for answer in answers] == [200] * 4
        del own.workers["m-decode-0"]
        await own.quiet()


async def test_siblings_of_one_that_fails_at_once_are_not_sent(stack: Stack) -> None:
    """They come one after the other; nobody would take what they bring, and nobody could cancel them."""
    feed = stack.gateway.driver._feed
    step, arrived = feed._step, []

    def first_fails(event: m.Event, now: float) -> list[m.Command]:
        if isinstance(event, m.Arrived):
            arrived.append(event.request_id)
            if len(arrived) == 1:
                raise RuntimeError("a defect")
        return step(event, now)

    feed._step = first_fails
    response = await stack.http.post("/v1/completions", json={**PROMPT, "n": 3, "max_tokens": 300})
    assert response.status_code == 500
    assert len(arrived) == 1
    assert await stack.gateway.driver.idle(1.0)
    assert (await stack.http.post("/v1/completions", json={**PROMPT, "n": 3, "max_tokens": 3})).status_code == 200
    await stack.quiet()


async def test_an_answer_from_another_worker_is_no_session(stack: Stack) -> None:
    """A port may be given out again: whoever answers has to be who the fleet says."""
    async with mock_worker(Role.DECODE, "other", worker_id="other-decode-0") as other:
        stack.controller.add("m", Role.DECODE, "m-decode-1", other.address)
        answers = await asyncio.gather(
            *(stack.http.post("/v1/completions", json={**PROMPT, "max_tokens": 4}) for _ in range(6))
        )
        assert {answer.headers["x-segue-decode"] for answer in answers} == {"m-decode-0"}
        assert "m-decode-1" not in stack.gateway.driver.workers


async def until(stack: Stack, true: Any, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await stack.gateway.status_changed(0.02)


async def test_a_gateway_that_cuts_off_says_so_in_each_stream_and_has_workers_stop(stack: Stack) -> None:
    seen = [asyncio.Event() for _ in range(2)]
    tasks = [
        asyncio.create_task(streaming(stack, each, max_tokens=400, n=n)) for each, n in zip(seen, (1, 3), strict=True)
    ]
    for each in seen:
        await asyncio.wait_for(each.wait(), 10)
    stack.gateway.cut_off()
    for events in await asyncio.wait_for(asyncio.gather(*tasks), 10):
        assert events[-1]["error"]["code"] == "not_ready"
        assert [event for event in events if "error" in event] == events[-1:]
    assert await stack.gateway.drain(5)
    await stack.quiet()
