"""The mock's timings are honest, its tokens depend on nothing but the sequence, and a full pool pushes back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import pytest

from orchestrator.core.errors import WorkerStartFailed
from orchestrator.core.types import SENT_TOKENS, Load
from orchestrator.proto.worker_pb2 import GatewayFrame, Hello, Submit
from tests.workers.clock import StepClock
from tests.workers.support import gateway, make_request, mock_worker, tokens
from workers import wire
from workers.mock import MockEngine
from workers.mock_settings import MockSettings
from workers.ports import EngineStep


async def run(engine: MockEngine, clock: StepClock, outputs: int) -> list[float]:
    """The clock at each of the next outputs."""
    times: list[float] = []

    async def collect() -> None:
        async for step in engine.steps():
            times.extend(clock.monotonic() for _ in step.outputs)
            if len(times) >= outputs:
                return

    collecting = asyncio.create_task(collect())
    while not collecting.done():
        await clock.advance(horizon=10)
    await collecting
    return times


@asynccontextmanager
async def running(clock: StepClock, **settings: Any) -> AsyncIterator[MockEngine]:
    engine = MockEngine(settings, clock)
    await engine.start(lambda stage: None)
    try:
        yield engine
    finally:
        await engine.shutdown()


async def test_a_step_takes_its_time_and_a_prompt_its_own() -> None:
    clock = StepClock()
    async with running(clock, step_seconds=0.5, prefill_tokens_per_second=100.0) as engine:
        await engine.submit(make_request("a", list(range(1, 102)), max_tokens=3))
        # 100 of the 101 prompt tokens are prefill; the last one is a decode step's.
        assert await run(engine, clock, 3) == pytest.approx([1.5, 2.0, 2.5])


async def test_moved_blocks_take_the_time_of_their_bytes() -> None:
    clock = StepClock()
    settings = {"block_size": 10, "kv_block_bytes": 1000, "transfer_bytes_per_second": 1000.0, "step_seconds": 0.5}
    async with running(clock, **settings) as prefill, running(clock, **settings) as decode:
        await prefill.submit(make_request("p", list(range(20)), transfer={"do_remote_decode": True}, max_tokens=1))
        waiting = asyncio.create_task(anext(aiter(prefill.steps())))
        while not waiting.done():
            await clock.advance(horizon=10)
        transfer = (await waiting).outputs[0].kv_transfer_params
        assert transfer is not None
        assert prefill.load.kv_blocks_used == 2
        began = clock.monotonic()
        await decode.submit(make_request("d", list(range(20)), transfer=transfer, max_tokens=1))
        # Two blocks of 1000 bytes at 1000 bytes a second, then one step.
        assert (await run(decode, clock, 1))[0] - began == pytest.approx(2.5, abs=0.01)
        assert prefill.load.kv_blocks_used == 0


async def test_an_uncollected_prefill_is_freed_when_its_lease_ends() -> None:
    clock = StepClock()
    async with running(clock, lease_seconds=30.0, step_seconds=1.0) as engine:
        await engine.submit(make_request("p", list(range(20)), transfer={"do_remote_decode": True}, max_tokens=1))
        await run(engine, clock, 1)
        assert engine.load.kv_blocks_used == 2
        while engine.load.kv_blocks_used:
            await clock.advance()
        assert clock.monotonic() == pytest.approx(31.0, abs=0.1)


async def test_a_full_pool_pushes_the_newest_back_and_loses_nothing() -> None:
    prompts = [[50 + each] * 15 for each in range(4)]
    async with mock_worker(block_size=4, kv_blocks=400) as roomy, gateway(roomy.address) as peer:
        wanted = [await peer.generate(f"r{each}", prompt, max_tokens=40) for each, prompt in enumerate(prompts)]
    async with mock_worker(block_size=4, kv_blocks=20) as tight, gateway(tight.address) as peer:
        got = await asyncio.gather(
            *(peer.generate(f"t{each}", prompt, max_tokens=40) for each, prompt in enumerate(prompts))
        )
        await peer.until(lambda g: g.load.kv_blocks_used == 0)
        assert max(step.load.waiting for step in peer.steps) > 0
    assert got == wanted


async def test_tokens_are_ordinary_unless_an_end_is_asked_for() -> None:
    async with mock_worker(first_token=2000, vocabulary=50) as worker, gateway(worker.address) as peer:
        made = await peer.generate("a", [1, 2, 3], max_tokens=200)
        assert set(made) <= set(range(2000, 2050))
        assert len(set(made)) > 20
    async with mock_worker(eos_one_in=5) as worker, gateway(worker.address) as peer:
        request = make_request("b", [1, 2, 3], max_tokens=200, ignore_eos=False)
        assert request.sampling_params is not None
        request.sampling_params.update_from_generation_config({}, eos_token_id=7)
        await peer.send(submit={"wire_id": "b", "request": wire.encode_request(request)})
        last = (await peer.finished("b"))[-1]
        assert (last.new_token_ids, last.finish_reason) == ([7], wire.Finish.STOP)


async def test_an_engine_that_dies_ends_every_session() -> None:
    async with (
        mock_worker(step_seconds=0.01) as worker,
        gateway(worker.address, "one") as one,
        gateway(worker.address, "two") as two,
    ):
        await one.submit("a", [1, 2, 3], max_tokens=1000)
        await one.until(lambda g: g.outputs.get("a"))
        worker.engine.fail()
        assert await one.ended() is grpc.StatusCode.UNAVAILABLE
        assert await two.ended() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("whose", ["prompt", "transfer"])
async def test_a_request_goes_on_where_more_than_its_prompt_is_cached(whose: str) -> None:
    """As where a sibling of it ran, or it ran itself before; with and without a prefill to collect."""
    prompt = list(range(1, 40))
    async with (
        mock_worker("prefill", restores=True) as apart,
        mock_worker("decode", restores=True) as worker,
        gateway(apart.address) as other,
        gateway(worker.address) as peer,
    ):
        whole = await peer.generate("a", prompt, max_tokens=64)
        transfer = await other.prefill("p", prompt) if whose == "transfer" else {}
        extra = {SENT_TOKENS: whole[:40]} | ({"kv_transfer_params": transfer} if transfer else {})
        await peer.submit("b", prompt, max_tokens=64, extra_args=extra)
        outputs = await peer.finished("b")
        assert tokens(outputs) == whole[40:]
        assert outputs[0].prefill_stats is not None
        assert outputs[0].prefill_stats.num_local_cached_tokens > len(prompt)
        assert outputs[0].prefill_stats.num_external_cached_tokens == 0
        assert await peer.generate("c", prompt, max_tokens=64) == whole


class _Broken(StepClock):
    """Time ends at the first step."""

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            raise ArithmeticError("a clock that broke")


async def test_a_part_of_an_engine_that_breaks_ends_every_session_and_leaves_nobody_waiting() -> None:
    async with mock_worker(clock=_Broken()) as worker, gateway(worker.address) as peer:
        await peer.submit("a", [1, 2, 3])
        assert await peer.ended() is grpc.StatusCode.UNAVAILABLE
        assert peer.failure is not None
        assert "ArithmeticError" in (peer.failure.details() or "")


async def test_a_step_that_can_not_be_handed_on_ends_every_session_and_leaves_nobody_waiting() -> None:
    async with mock_worker(step_seconds=0.01) as worker, gateway(worker.address) as peer:
        await peer.submit("a", [1, 2, 3], max_tokens=1000)
        await peer.until(lambda g: g.outputs.get("a"))
        worker.engine._steps.put_nowait(EngineStep(Load(), [cast(wire.Output, "no output")]))
        assert await peer.ended() is grpc.StatusCode.UNAVAILABLE
        assert peer.failure is not None
        assert "AttributeError" in (peer.failure.details() or "")


async def test_a_gateway_that_stops_reading_is_cut_off_and_the_others_go_on() -> None:
    async with mock_worker(step_seconds=0.0, max_num_seqs=300) as worker, gateway(worker.address) as good:
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(worker.address, options=options) as channel:
            stuck = channel.stream_stream("/segue.internal.v1.Worker/Session")()
            for number, frame in enumerate(_flood()):
                await stuck.write(frame)
                if number == 0:
                    await stuck.read()
            await good.until(lambda g: g.load.running >= 200, 20)
            await good.until(lambda g: g.load.running == 0, 60)
            assert len(await good.generate("after", [1, 2, 3])) == 8


def _flood() -> itertools.chain[bytes]:
    hello = GatewayFrame(hello=Hello(gateway_id="stuck", protocol_version=1))
    submits = (
        GatewayFrame(submit=Submit(wire_id=name, request=wire.encode_request(request)))
        for name in (f"s{number}" for number in range(250))
        for request in [make_request(name, [1, 2, 3], max_tokens=8000)]
    )
    return itertools.chain([hello.SerializeToString()], (frame.SerializeToString() for frame in submits))


@pytest.mark.parametrize(("key", "value"), [("kv_blocks", "many"), ("step_seconds", "1"), ("max_num_seqs", 1.5)])
def test_a_setting_of_the_wrong_type_is_named(key: str, value: object) -> None:
    with pytest.raises(WorkerStartFailed, match=key):
        MockSettings.of({key: value})


def test_vllms_own_arguments_mean_nothing_to_a_mock() -> None:
    assert MockSettings.of({"dtype": "float32", "enforce_eager": True, "kv_blocks": 7}).kv_blocks == 7
