"""What any worker does, whatever its engine: the same tests for the mock and for vLLM."""

from __future__ import annotations

import asyncio
import itertools
import json
import random

import grpc
import pytest
from vllm.pooling_params import PoolingParams

from orchestrator.core.types import SENT_TOKENS
from orchestrator.gateway.hashing import prompt_blocks, root_of
from orchestrator.proto.worker_pb2 import Abort, GatewayFrame, Hello, Rejected, Submit
from orchestrator.proto.worker_pb2_grpc import WorkerStub
from tests.workers.support import Gateway, Pair, gateway, make_request, mock_worker, tokens
from workers import wire

# NIXL's; a gateway sends them on unchanged, and so may rely on no others.
TRANSFER_KEYS = {
    *("do_remote_prefill", "do_remote_decode", "remote_block_ids", "remote_engine_id", "remote_request_id"),
    *("remote_host", "remote_port", "tp_size", "dcp_size", "pp_size", "remote_num_tokens", "transfer_mode"),
    *("remote_blocks_expiry_time", "remote_prefill_cached_tokens"),
}
MODEL = "test"  # what the workers of both kinds serve
_numbers = itertools.count()


def fresh_prompt(length: int) -> list[int]:
    """A prompt that no test used before, so that no prefix cache knows it."""
    start = next(_numbers)
    return [1000 + (start * 7919 + k * 31 + k * k) % 30000 for k in range(length)]


def fresh_id(name: str) -> str:
    return f"{name}-{next(_numbers)}"


def idle(peer: Gateway) -> bool:
    if not peer.steps:
        return False
    load = peer.load
    return not (load.running or load.waiting or load.kv_blocks_used)


async def test_a_release_may_be_the_first_thing_a_decode_worker_does(pair: Pair) -> None:
    # First in this file on purpose: the two engines have not met, and no other request makes the decode engine step.
    async with gateway(pair.prefill) as prefill, gateway(pair.decode) as decode:
        transfer = await prefill.prefill(fresh_id("p"), fresh_prompt(100))
        await prefill.until(lambda g: g.load.kv_blocks_used == 4)
        await decode.release(fresh_id("release"), json.dumps(transfer).encode())
        await prefill.until(idle, 10)


async def test_welcome_says_what_the_engine_is(pair: Pair) -> None:
    async with gateway(pair.prefill) as peer:
        facts = peer.welcome.facts
        assert peer.welcome.worker_id
        assert peer.welcome.epoch == 1
        assert (facts.block_size, facts.max_model_len, facts.max_num_seqs) == (32, 512, 8)
        assert facts.kv_blocks_total == 511
        assert facts.kv_block_bytes > 0
        assert "generate" in facts.tasks


async def test_the_two_halves_say_that_they_can_hand_kv_over(pair: Pair) -> None:
    async with gateway(pair.prefill) as first, gateway(pair.decode) as second:
        assert first.welcome.facts.kv_format == second.welcome.facts.kv_format != ""


async def test_greedy_tokens_are_the_same_on_every_worker(pair: Pair) -> None:
    prompt = fresh_prompt(70)
    async with gateway(pair.prefill) as first, gateway(pair.decode) as second:
        here = await first.generate(fresh_id("a"), prompt, max_tokens=12)
        again = await first.generate(fresh_id("b"), prompt, max_tokens=12)
        there = await second.generate(fresh_id("c"), prompt, max_tokens=12)
    assert len(here) == 12
    assert here == again == there


async def test_a_sequence_goes_on_where_another_worker_left_it(pair: Pair) -> None:
    prompt = fresh_prompt(40)
    async with gateway(pair.prefill) as first, gateway(pair.decode) as second:
        whole = await first.generate(fresh_id("whole"), prompt, max_tokens=12)
        rest = await second.generate(fresh_id("rest"), [*prompt, *whole[:5]], max_tokens=7)
    assert whole[5:] == rest


@pytest.mark.parametrize("length", [5, 32, 33, 300])
async def test_hand_over_moves_the_blocks_and_says_so(pair: Pair, length: int) -> None:
    prompt = fresh_prompt(length)
    async with gateway(pair.prefill) as prefill, gateway(pair.decode) as decode:
        transfer = await prefill.prefill(fresh_id("p"), prompt)
        assert set(transfer) == TRANSFER_KEYS
        assert transfer["do_remote_prefill"]
        blocks = -(-length // 32)
        await prefill.until(lambda g: g.load.kv_blocks_used == blocks)
        wire_id = fresh_id("d")
        made = await decode.generate(wire_id, prompt, transfer=transfer, max_tokens=10)
        stats = decode.outputs[wire_id][0].prefill_stats
        assert stats is not None
        assert (stats.num_prompt_tokens, stats.num_external_cached_tokens) == (length, length)
        await decode.until(lambda g: g.transferred_bytes)
        assert decode.transferred_bytes == blocks * decode.welcome.facts.kv_block_bytes
        assert sum(step.transfers.count for step in decode.steps) == 1
        assert sum(step.transfers.failed for step in decode.steps) == 0
        await prefill.until(idle)
        await decode.until(idle)
        assert made == await prefill.generate(fresh_id("check"), prompt, max_tokens=10)


async def test_first_output_tells_when_it_was_queued_and_scheduled(pair: Pair) -> None:
    async with gateway(pair.decode) as peer:
        wire_id = fresh_id("events")
        await peer.generate(wire_id, fresh_prompt(8))
        events = peer.outputs[wire_id][0].events
        assert events is not None
        assert [int(event.type) for event in events] == [1, 2]
        assert events[0].timestamp <= events[1].timestamp


async def test_a_second_prompt_finds_the_first_ones_blocks(pair: Pair) -> None:
    prompt = fresh_prompt(100)
    async with gateway(pair.prefill) as peer:
        await peer.generate(fresh_id("cold"), prompt)
        wire_id = fresh_id("warm")
        await peer.generate(wire_id, prompt)
        stats = peer.outputs[wire_id][0].prefill_stats
        assert stats is not None
        assert stats.num_local_cached_tokens == 96


@pytest.mark.parametrize("salt", [None, "tenant one"])
async def test_what_the_prefix_cache_holds_is_told_in_hashes_that_a_gateway_makes(pair: Pair, salt: str | None) -> None:
    prompt = fresh_prompt(70)
    async with gateway(pair.prefill) as peer:
        size = peer.welcome.facts.block_size
        mine = list(prompt_blocks(prompt, size, root_of(MODEL, None, salt)))
        await peer.until(lambda g: g.steps)
        assert not set(mine) & set(peer.held)
        await peer.generate(fresh_id("p"), prompt, max_tokens=1, salt=salt)
        await peer.until(lambda g: mine[-1] in g.held)
        assert [block for block in peer.held if block in mine] == mine  # each after the one before it
        assert not set(prompt_blocks(prompt, size, root_of(MODEL, None, "another"))) & set(peer.held)


async def test_a_gateway_knows_what_an_engine_will_find_in_its_cache(pair: Pair) -> None:
    """Prompts that share heads, more of them than the cache has room for: it evicts and stores again all the time."""
    dice = random.Random(3)
    first = [fresh_prompt(480) for _ in range(20)]
    prompts = first + [[*dice.choice(first)[: dice.randrange(480)], *fresh_prompt(480)][:480] for _ in range(40)]
    found = []
    async with gateway(pair.prefill) as peer:
        size = peer.welcome.facts.block_size
        await peer.until(lambda g: g.steps)
        for prompt in [*prompts, *dice.sample(prompts, 30)]:
            mine = list(prompt_blocks(prompt, size, root_of(MODEL)))
            held = [block in peer.held for block in mine]
            wire_id = fresh_id("p")
            await peer.generate(wire_id, prompt, max_tokens=1)
            stats = peer.outputs[wire_id][0].prefill_stats
            assert stats is not None
            # An engine always computes the last token.
            assert stats.num_local_cached_tokens == min(held.count(True), (len(prompt) - 1) // size) * size
            found.append(stats.num_local_cached_tokens)
            # An engine's news comes in order: with a new block's, all of before has come, evictions too.
            marker = fresh_prompt(size)
            await peer.generate(fresh_id("marker"), marker, max_tokens=1)
            (known,) = prompt_blocks(marker, size, root_of(MODEL))
            await peer.until(lambda g, known=known: known in g.held)
        assert len(peer.held) <= peer.welcome.facts.kv_blocks_total
    assert 0 in found[60:], "the cache never overflowed"
    assert any(found[60:])


async def test_a_gateway_that_comes_late_is_told_all_that_is_there(pair: Pair) -> None:
    prompt = fresh_prompt(70)
    async with gateway(pair.prefill) as first:
        mine = list(prompt_blocks(prompt, first.welcome.facts.block_size, root_of(MODEL)))
        await first.generate(fresh_id("p"), prompt, max_tokens=1)
        await first.until(lambda g: mine[-1] in g.held)
        async with gateway(pair.prefill) as late:
            await late.until(lambda g: g.steps)
            assert set(mine) <= set(late.held) == set(first.held)


async def test_a_gateway_is_told_which_requests_are_its_own(pair: Pair) -> None:
    async with gateway(pair.decode) as mine, gateway(pair.decode) as other:
        wire_id = fresh_id("long")
        await mine.submit(wire_id, fresh_prompt(20), max_tokens=400)
        await mine.until(lambda g: g.outputs.get(wire_id))
        assert mine.steps[-1].own_requests == 1
        await other.until(lambda g: g.load.running)
        assert other.steps[-1].own_requests == 0
        await mine.abort(wire_id)


async def test_stop_tokens_and_limits_end_a_sequence(pair: Pair) -> None:
    prompt = fresh_prompt(20)
    async with gateway(pair.decode) as peer:
        free = await peer.generate(fresh_id("free"), prompt, max_tokens=8)
        stop = free[3]
        first = free.index(stop)
        wire_id = fresh_id("stopped")
        assert await peer.generate(wire_id, prompt, max_tokens=8, stop_token_ids=[stop]) == free[: first + 1]
        last = peer.outputs[wire_id][-1]
        assert (last.finish_reason, last.stop_reason) == (wire.Finish.STOP, stop)
        wire_id = fresh_id("long")
        made = await peer.generate(wire_id, fresh_prompt(505), max_tokens=100)
        assert len(made) == 7  # the context is full
        assert peer.outputs[wire_id][-1].finish_reason == wire.Finish.LENGTH


@pytest.mark.parametrize("after_outputs", [0, 1, 5])
async def test_abort_ends_a_request_and_frees_its_blocks(pair: Pair, after_outputs: int) -> None:
    async with gateway(pair.decode) as peer:
        wire_id = fresh_id("gone")
        await peer.submit(wire_id, fresh_prompt(100), max_tokens=400)
        await peer.until(lambda g: len(g.outputs.get(wire_id, ())) >= after_outputs)
        await peer.abort(wire_id)
        await peer.until(idle)
        seen = len(peer.outputs.get(wire_id, ()))
        await peer.generate(fresh_id("next"), fresh_prompt(10))
        assert len(peer.outputs.get(wire_id, ())) == seen < 400


async def test_abort_of_what_is_over_or_never_was_is_no_error(pair: Pair) -> None:
    async with gateway(pair.decode) as peer:
        wire_id = fresh_id("done")
        await peer.generate(wire_id, fresh_prompt(10))
        await peer.abort(wire_id, "never-was")
        assert len(await peer.generate(fresh_id("next"), fresh_prompt(10))) == 8


async def test_release_frees_a_prefill_that_nobody_collects(pair: Pair) -> None:
    async with gateway(pair.prefill) as prefill, gateway(pair.decode) as decode:
        transfer = await prefill.prefill(fresh_id("p"), fresh_prompt(100))
        await prefill.until(lambda g: g.load.kv_blocks_used == 4)
        await decode.release(fresh_id("release"), json.dumps(transfer).encode())
        await prefill.until(idle, 5)  # the lease would hold the blocks for 30 s
        assert not decode.outputs


async def test_abort_while_the_blocks_move_frees_both_sides(pair: Pair) -> None:
    async with gateway(pair.prefill) as prefill, gateway(pair.decode) as decode:
        for _ in range(5):
            prompt = fresh_prompt(400)
            transfer = await prefill.prefill(fresh_id("p"), prompt)
            wire_id = fresh_id("d")
            await decode.submit(wire_id, prompt, transfer=transfer)
            await decode.abort(wire_id)
        await decode.until(idle, 10)
        await prefill.until(idle, 10)


async def test_requests_aborted_at_random_moments_leave_nothing_behind(pair: Pair) -> None:
    dice = random.Random(7)
    async with gateway(pair.prefill) as prefill, gateway(pair.decode) as decode:

        async def one() -> None:
            prompt, first, second = fresh_prompt(dice.randrange(5, 200)), fresh_id("p"), fresh_id("d")
            patience = dice.random() * 0.15
            asked = {"do_remote_decode": True, "do_remote_prefill": False}
            await prefill.submit(first, prompt, transfer=asked, max_tokens=1)
            try:
                async with asyncio.timeout(patience):
                    transfer = (await prefill.finished(first))[-1].kv_transfer_params
                    await decode.submit(second, prompt, transfer=transfer, max_tokens=30)
                    await decode.finished(second)
            except TimeoutError:
                pass
            await prefill.abort(first, first)
            await decode.abort(second)

        await asyncio.gather(*(one() for _ in range(40)))
        # As a gateway does: whatever came to its end all the same, and was handed to nobody, is released.
        await asyncio.sleep(0.3)
        for outputs in prefill.outputs.values():
            if outputs[-1].kv_transfer_params:
                await decode.release(fresh_id("release"), json.dumps(outputs[-1].kv_transfer_params).encode())
        await prefill.until(idle, 10)
        await decode.until(idle, 10)


async def test_more_requests_than_the_batch_holds_wait(pair: Pair) -> None:
    async with gateway(pair.decode) as peer:
        wire_ids = [fresh_id("many") for _ in range(20)]
        for wire_id in wire_ids:
            await peer.submit(wire_id, fresh_prompt(10), max_tokens=16)
        for wire_id in wire_ids:
            assert len(tokens(await peer.finished(wire_id))) == 16
        assert max(step.load.running for step in peer.steps) <= 8
        assert max(step.load.waiting for step in peer.steps) > 0
        await peer.until(idle)


async def test_gateways_see_only_their_own_outputs(pair: Pair) -> None:
    async with gateway(pair.decode, "one") as one, gateway(pair.decode, "two") as two:
        mine, theirs = fresh_id("mine"), fresh_id("theirs")
        await asyncio.gather(
            one.generate(mine, fresh_prompt(10), max_tokens=20), two.generate(theirs, fresh_prompt(10), max_tokens=20)
        )
        assert set(one.outputs) == {mine}
        assert set(two.outputs) == {theirs}
        held = fresh_id("held")
        await one.submit(held, fresh_prompt(10), max_tokens=60)
        await two.abort(held)  # not its own: nothing happens
        assert len(tokens(await one.finished(held))) == 60


async def test_a_stream_that_ends_takes_its_requests_along(pair: Pair) -> None:
    async with gateway(pair.decode, "stays") as stays:
        async with gateway(pair.decode, "leaves") as leaves:
            wire_id = fresh_id("left")
            await leaves.submit(wire_id, fresh_prompt(100), max_tokens=400)
            await leaves.until(lambda g: g.outputs.get(wire_id))
            await stays.until(lambda g: g.load.running == 1)
        await stays.until(idle, 5)


async def test_an_idle_stream_still_shows_signs_of_life(pair: Pair) -> None:
    async with gateway(pair.decode) as peer:
        await peer.until(lambda g: g.steps)
        before = len(peer.steps)
        await peer.until(lambda g: len(g.steps) > before + 1, 5)


async def test_what_the_engine_must_not_get_is_refused(pair: Pair) -> None:
    good, prompt = wire.encode_request(make_request("other", [1, 2, 3])), fresh_prompt(10)
    async with gateway(pair.decode) as peer:
        await peer.send(submit=Submit(wire_id="no-request"))
        await peer.send(submit=Submit(wire_id="noise", request=[b"\x93\x01"]))
        await peer.send(submit=Submit(wire_id="renamed", request=good))
        await peer.send(submit=Submit(wire_id="", request=good))
        await peer.submit("too-long", [5] * 512)
        await peer.submit("no-prompt", [])
        await peer.submit("no-such-token", [5, 1 << 40])
        await peer.submit("negative", [-5])
        await peer.submit("half-transfer", prompt, transfer={"do_remote_prefill": True, "remote_host": "127.0.0.1"})
        await peer.send(submit=Submit(wire_id="pooling", request=wire.encode_request(pooling_request("pooling"))))
        await peer.release("no-json", b"{")
        await peer.release("no-transfer", b"{}")
        await peer.release("too-deep", b"[" * 100_000)
        twice = fresh_id("twice")
        await peer.submit(twice, prompt, max_tokens=100)
        await peer.submit(twice, prompt, max_tokens=100)
        names = {"no-request", "noise", "renamed", "", "too-long", "no-prompt", "no-such-token", "negative", twice}
        names |= {"half-transfer", "pooling", "no-json", "no-transfer", "too-deep"}
        await peer.until(lambda g: set(g.rejected) == names)
        assert {each.reason for each in peer.rejected.values()} == {Rejected.INVALID}
        assert all(each.detail for each in peer.rejected.values())
        assert len(tokens(await peer.finished(twice))) == 100  # the first of the two goes on
        assert set(peer.outputs) == {twice}


def pooling_request(wire_id: str) -> wire.Request:
    request = make_request(wire_id, [1, 2, 3])
    request.sampling_params, request.pooling_params = None, PoolingParams(task="embed")
    return request


async def test_another_protocol_version_is_refused(pair: Pair) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        async with gateway(pair.decode, version=99):
            pass
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "99" in (refusal.value.details() or "")


@pytest.mark.parametrize("frames", [[GatewayFrame(abort=Abort())], [GatewayFrame()]], ids=["no hello", "empty"])
async def test_a_stream_has_to_begin_with_hello(pair: Pair, frames: list[GatewayFrame]) -> None:
    async with grpc.aio.insecure_channel(pair.decode) as channel:
        call = WorkerStub(channel).Session()
        for frame in frames:
            await call.write(frame)
        with pytest.raises(grpc.aio.AioRpcError) as end:
            await call.read()
        assert end.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("noise", [b"\xff\xff\xff", GatewayFrame(hello=Hello()).SerializeToString(), b""])
async def test_a_gateway_that_errs_ends_only_its_own_session(pair: Pair, noise: bytes) -> None:
    async with gateway(pair.decode, "good") as good, grpc.aio.insecure_channel(pair.decode) as channel:
        wire_id = fresh_id("unharmed")
        await good.submit(wire_id, fresh_prompt(10), max_tokens=100)
        raw = channel.stream_stream("/segue.internal.v1.Worker/Session")()
        await raw.write(GatewayFrame(hello=Hello(gateway_id="bad", protocol_version=1)).SerializeToString())
        await raw.read()
        await raw.write(noise)

        async def drain() -> None:
            while await raw.read() is not grpc.aio.EOF:
                pass

        with pytest.raises(grpc.aio.AioRpcError) as end:
            await asyncio.wait_for(drain(), 5)
        assert end.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(tokens(await good.finished(wire_id))) == 100


async def test_a_prefill_worker_that_is_gone_costs_a_second_prefill(pair: Pair) -> None:
    prompt = fresh_prompt(50)
    async with gateway(pair.decode) as peer:
        transfer = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [[1, 2]],
            "remote_engine_id": "gone",
            "remote_request_id": "gone",
            "remote_host": "127.0.0.1",
            "remote_port": 9,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": 50,
            "transfer_mode": "pull",
        }
        wire_id = fresh_id("orphan")
        made = await peer.generate(wire_id, prompt, transfer=transfer, max_tokens=8)
        assert made == await peer.generate(fresh_id("check"), prompt, max_tokens=8)
        await peer.until(lambda g: any(step.transfers.failed for step in g.steps))
        await peer.until(idle)


async def test_an_engine_that_restores_nothing_refuses_to_go_on() -> None:
    """It would begin anew, and the client would have all of it twice."""
    async with mock_worker() as worker, gateway(worker.address) as peer:
        await peer.submit("again", [1, 2, 3], extra_args={SENT_TOKENS: [5, 6]})
        await peer.until(lambda g: "again" in g.rejected)
