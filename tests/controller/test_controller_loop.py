"""The controller's loop on a fake cluster: what an operator sees of starts, losses, waits and the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from orchestrator.core.errors import ConfigError, ModelSourceError, WorkerStartFailed
from orchestrator.core.spec import AUTO
from orchestrator.core.types import WorkerState
from tests.controller.conftest import DECODE, GATEWAY, PREFILL, WAIT, Bench, spec_of
from tests.controller.fake_cluster import FakeCluster, slot_of

Start = Callable[..., Bench]


async def test_everything_is_started_and_the_cluster_becomes_ready(start: Start) -> None:
    bench = start()
    await bench.ready()
    assert [bench.worker(slot).state for slot in (PREFILL, DECODE)] == ["ready", "ready"]
    assert bench.status.gateways[0].state == "ready"
    assert bench.status.controller.epoch == 1
    assert bench.worker(DECODE).epoch == 1
    assert bench.worker(DECODE).restarts == 0


async def test_what_is_left_open_is_refused_rather_than_taken_for_nothing_to_start(start: Start) -> None:
    with pytest.raises(
        ConfigError, match=r"pools\.prefill\.replicas, models\[0\]\.pools\.decode\.replicas are still auto"
    ):
        start(spec_of(replicas=AUTO))


async def test_a_ready_worker_is_seen_while_another_still_starts_with_its_stage(start: Start) -> None:
    cluster = FakeCluster()
    gate = cluster.freeze("start", DECODE)
    bench = start(cluster=cluster)
    await bench.until(lambda: bench.worker(PREFILL).state == "ready" and bench.worker(DECODE).stage)
    assert (bench.worker(DECODE).state, bench.worker(DECODE).stage) == ("starting", "loading weights")
    assert not bench.status.ready
    gate.open()
    await bench.ready()


async def test_a_dead_worker_is_replaced_after_its_backoff_under_a_new_epoch(start: Start) -> None:
    bench = start()
    await bench.ready()
    bench.cluster.actor(DECODE).die()
    await bench.until(lambda: bench.state(DECODE) is WorkerState.DEAD and not bench.worker(DECODE).epoch)
    assert "its process is gone" in bench.worker(DECODE).detail
    assert not bench.status.ready
    bench.later(0.9)
    await bench.settle()
    assert bench.cluster.steps("create", DECODE) == 1
    bench.later(0.2)
    await bench.ready()
    assert bench.cluster.steps("create", DECODE) == 2
    assert bench.worker(DECODE).restarts == 1
    assert bench.worker(DECODE).epoch > 1
    assert bench.worker(PREFILL).epoch == 1
    assert bench.worker(PREFILL).restarts == 0


async def test_a_start_that_keeps_failing_is_tried_ever_more_rarely_and_says_why(start: Start) -> None:
    cluster = FakeCluster()
    cluster.start_errors[DECODE] = ModelSourceError("no such folder", where="/models/m", hint="check the path")
    bench = start(cluster=cluster)
    for tries, backoff in enumerate((1, 2, 4, 8), start=1):
        waits = f"waits {backoff} s before the next try (failure {tries} in a row)"
        await bench.until(lambda waits=waits: bench.worker(DECODE).stage == waits)  # type: ignore[misc]
        assert bench.state(DECODE) is WorkerState.FAILED
        assert bench.worker(DECODE).detail == "/models/m: no such folder (check the path)"
        bench.later(backoff * 0.9)
        await bench.settle()
        assert cluster.steps("create", DECODE) == tries
        bench.later(backoff * 0.2)
    del cluster.start_errors[DECODE]
    await bench.until(lambda: bench.worker(DECODE).epoch)
    assert bench.state(PREFILL) is WorkerState.READY


async def test_orders_that_can_not_be_written_are_a_failed_start(start: Start) -> None:
    bench = start()
    bench.controller._assigner = None  # type: ignore[assignment]
    await bench.until(lambda: bench.state(DECODE) is WorkerState.FAILED)
    assert "AttributeError" in bench.worker(DECODE).detail
    bench.controller._assigner = object()  # type: ignore[assignment]


async def test_a_pool_that_finds_no_room_is_pending_and_says_why_while_the_rest_serves(start: Start) -> None:
    bench = start(spec_of(replicas=2), FakeCluster(capacity=3))
    await bench.until(lambda: bench.status.ready and bench.worker("m-decode-1").stage)
    assert bench.state("m-decode-1") is WorkerState.PENDING
    assert bench.worker("m-decode-1").stage == "waits for CPU: 3 of 3 in use"
    bench.later(1e6)
    await bench.settle()
    assert bench.state("m-decode-1") is WorkerState.PENDING
    bench.cluster.capacity = 4
    bench.cluster.actor("m-decode-0").die()
    await bench.until(lambda: bench.state("m-decode-1") is WorkerState.READY)


async def test_a_start_that_hangs_is_given_up_after_the_timeout(start: Start) -> None:
    cluster = FakeCluster()
    gate = cluster.freeze("start", DECODE)
    bench = start(spec_of(start_timeout=30), cluster)
    await bench.until(lambda: bench.worker(DECODE).stage == "loading weights")
    bench.later(29)
    await bench.settle()
    assert bench.state(DECODE) is WorkerState.STARTING
    bench.later(1)
    await bench.until(lambda: bench.state(DECODE) is WorkerState.FAILED and not bench.worker(DECODE).epoch)
    assert bench.worker(DECODE).detail == "not ready after 30 s; it was busy with: loading weights"
    gate.open()
    bench.later(2)
    await bench.ready()


async def test_a_worker_that_falls_silent_is_replaced(start: Start) -> None:
    bench = start()
    await bench.ready()
    gate = bench.cluster.freeze("snapshot", DECODE)
    await gate.reached.wait()
    bench.later(31)
    await bench.until(lambda: bench.state(DECODE) is WorkerState.DEAD)
    assert bench.worker(DECODE).detail == "no answer for 30 s"
    assert bench.state(PREFILL) is WorkerState.READY
    gate.open()


async def test_a_gateway_that_dies_is_replaced_too(start: Start) -> None:
    bench = start()
    await bench.ready()
    bench.cluster.actor(GATEWAY).die()
    await bench.until(lambda: bench.status.gateways[0].state == "dead")
    await bench.until(lambda: not bench.cluster.actors.keys() & {"test/gateway-0@1"})
    bench.later(2)
    await bench.ready()
    assert bench.status.gateways[0].state == "ready"


async def test_an_actor_that_can_not_be_removed_at_once_is_tried_again_and_not_doubled(start: Start) -> None:
    bench = start()
    await bench.ready()
    bench.cluster.remove_errors[DECODE] = WorkerStartFailed("still there")
    bench.cluster.actor(DECODE).die()
    await bench.until(lambda: not bench.worker(DECODE).epoch)
    assert bench.cluster.steps("remove", DECODE) == 2
    bench.later(2)
    await bench.ready()
    assert len(bench.cluster.actors) == 3


async def test_the_epoch_stands_still_while_nothing_changes(start: Start) -> None:
    bench = start()
    await bench.ready()
    for _ in range(3):
        bench.later(100)
        await bench.settle()
    assert bench.status.controller.epoch == 1


async def test_shutdown_drains_gateways_then_workers_then_gives_everything_back(start: Start) -> None:
    bench = start()
    await bench.ready()
    gate = bench.cluster.freeze("drain", GATEWAY)
    ending = asyncio.create_task(bench.controller.shutdown(20))
    async with asyncio.timeout(WAIT):
        await gate.reached.wait()
    await bench.settle()
    assert bench.status.gateways[0].state == "draining"
    assert bench.state(DECODE) is WorkerState.READY
    assert bench.cluster.steps("drain", DECODE) == 0
    bench.now += 5
    decode = bench.cluster.actor(DECODE)
    gate.open()
    async with asyncio.timeout(WAIT):
        await ending
    assert decode.drained_for == pytest.approx(15)
    assert await bench.cluster.names() == frozenset()
    order = [(step, name) for step, name in bench.cluster.journal if step in ("drain", "stop", "remove")]
    assert order[:3] == [(step, "test/gateway-0@1") for step in ("drain", "stop", "remove")]
    assert not bench.status.ready


async def test_shutdown_waits_no_longer_than_the_drain_for_a_stuck_gateway(start: Start) -> None:
    bench = start()
    await bench.ready()
    for step in ("drain", "stop"):
        bench.cluster.freeze(step, GATEWAY)
    async with asyncio.timeout(WAIT):
        await bench.controller.shutdown(0.1)
    assert await bench.cluster.names() == frozenset()


async def test_a_second_shutdown_hurries_the_first(start: Start) -> None:
    bench = start()
    await bench.ready()
    gate = bench.cluster.freeze("drain", GATEWAY)
    patient = asyncio.create_task(bench.controller.shutdown(1000))
    async with asyncio.timeout(WAIT):
        await gate.reached.wait()
        await bench.controller.shutdown(0)
        await patient
    assert await bench.cluster.names() == frozenset()


@pytest.mark.parametrize("seed", range(5))
async def test_it_comes_to_rest_whole_after_any_storm_of_faults(start: Start, seed: int) -> None:
    chance = random.Random(seed)
    slots = [f"m-{role}-{index}" for role in ("prefill", "decode") for index in range(3)] + [GATEWAY]
    cluster = FakeCluster()
    bench = start(spec_of(replicas=3, restart_backoff_max=4.0), cluster)
    for _ in range(60):
        slot_id = chance.choice(slots)
        match chance.randrange(6):
            case 0:
                cluster.kill(slot_id)
            case 1:
                cluster.start_errors[slot_id] = WorkerStartFailed("no luck")
            case 2:
                cluster.remove_errors[slot_id] = WorkerStartFailed("still there")
            case 3:
                cluster.freeze(chance.choice(["reserve", "create", "start", "snapshot", "stop", "remove"]), slot_id)
            case 4:
                cluster.open_all()
                cluster.start_errors.clear()
            case 5:
                bench.later(chance.choice([0.5, 5, 50]))
        await asyncio.sleep(chance.choice([0, 0.005, 0.02]))
        assert all(count == 1 for count in Counter(slot_of(name) for name in cluster.actors).values())
    cluster.open_all()
    cluster.start_errors.clear()
    async with asyncio.timeout(WAIT):
        while len(cluster.actors) < len(slots) or not all(actor.serves for actor in cluster.actors.values()):
            bench.later(5)
            await asyncio.sleep(0.01)
    await bench.ready()
    assert await cluster.names() == frozenset(cluster.actors)


@pytest.mark.parametrize("step", ["reserve", "create", "start", "remove"])
async def test_shutdown_in_the_middle_of_any_step_leaves_nothing(start: Start, step: str) -> None:
    cluster = FakeCluster()
    gate = cluster.freeze(step, DECODE)
    bench = start(cluster=cluster)
    if step == "remove":
        await bench.ready()
        cluster.actor(DECODE).die()
    async with asyncio.timeout(WAIT):
        await gate.reached.wait()
        ending = asyncio.create_task(bench.controller.shutdown(1))
        await bench.settle()
        gate.open()
        await ending
    assert await cluster.names() == frozenset()


async def test_closing_the_controller_without_a_shutdown_leaves_the_actors_serving(start: Start) -> None:
    bench = start()
    await bench.ready()
    bench.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bench.running
    assert len(bench.cluster.actors) == 3
    assert not [name for step, name in bench.cluster.journal if step in ("stop", "drain", "remove")]
    bench.running = asyncio.create_task(bench.controller.run())
