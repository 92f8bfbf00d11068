"""A controller goes, at any point of what it does, and another takes its cluster over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import StaleEpoch, WorkerStartFailed
from orchestrator.core.types import WorkerState
from tests.controller.conftest import BEGAN_MS, DECODE, GATEWAY, PREFILL, QUICK, WAIT, Bench, spec_of
from tests.controller.fake_cluster import FakeActor, FakeCluster

Start = Callable[..., Bench]
CONTROLLER = "controller"
STEPS = ("reserve", "create", "created", "start", "snapshot")
EDGES = [("remember", CONTROLLER), *((step, DECODE) for step in STEPS), ("create", GATEWAY), ("start", GATEWAY)]


async def frozen(gate: object) -> None:
    async with asyncio.timeout(WAIT):
        await gate.reached.wait()  # type: ignore[attr-defined]


def fillings(cluster: FakeCluster) -> dict[str, int]:
    return {slot_id: cluster.steps("up", slot_id) for slot_id in (PREFILL, DECODE, GATEWAY)}


@pytest.mark.parametrize(("step", "slot_id"), EDGES)
async def test_at_each_edge_of_a_start_the_next_one_brings_it_to_its_end_once(
    start: Start, step: str, slot_id: str
) -> None:
    cluster = FakeCluster()
    gate = cluster.freeze(step, slot_id)
    first = start(cluster=cluster)
    await frozen(gate)
    await first.crash()
    gate.open()
    then = start(cluster=cluster.another())
    await then.ready()
    assert fillings(cluster) == {PREFILL: 1, DECODE: 1, GATEWAY: 1}
    assert (cluster.ended, cluster.doubles) == ([], [])


async def test_all_that_is_ready_is_ready_in_the_first_word_of_the_next_one_and_stays_as_it_is(start: Start) -> None:
    cluster = FakeCluster()
    first = start(cluster=cluster)
    await first.ready()
    before = first.status
    await first.crash()
    actors, taken = dict(cluster.actors), len(cluster.journal)
    then = start(cluster=cluster.another())
    await then.until(lambda: then.statuses)
    told = then.statuses[0]
    assert told.ready
    assert (told.models, told.gateways) == (before.models, before.gateways)
    await then.settle()
    assert cluster.actors == actors
    assert {step for step, _ in cluster.journal[taken:]} == {"snapshot"}
    assert then.controller.observed.epoch >= first.controller.observed.epoch


async def test_what_a_slot_is_filled_with_after_a_takeover_has_a_number_never_used_before(start: Start) -> None:
    cluster = FakeCluster()
    first = start(cluster=cluster)
    await first.ready()
    cluster.actor(DECODE).die()
    await first.until(lambda: first.state(DECODE) is WorkerState.DEAD and not first.worker(DECODE).epoch)
    used = first.controller.observed.epoch
    await first.crash()
    then = start(cluster=cluster.another())
    await then.ready()
    assert then.worker(DECODE).epoch > used
    assert then.worker(PREFILL).epoch == first.worker(PREFILL).epoch


async def test_when_the_cluster_began_is_left_to_the_next_one_by_an_upgrade_too(start: Start) -> None:
    """Gateways outside tell a cluster's controllers from those of the next of its name by that."""
    cluster = FakeCluster()
    first = start(cluster=cluster)
    await first.ready()
    first.controller.upgrade(spec_of(replicas=2))
    await first.until(lambda: first.state("m-decode-1") is WorkerState.READY)
    await first.crash()
    left = await cluster.recall()
    assert left is not None
    assert left.began_ms == BEGAN_MS
    then = start(spec_of(replicas=2), cluster.another())
    await then.ready()


async def test_one_that_is_lost_after_a_takeover_is_replaced_and_counted(start: Start) -> None:
    cluster = FakeCluster()
    first = start(cluster=cluster)
    await first.ready()
    await first.crash()
    then = start(cluster=cluster.another())
    await then.ready()
    cluster.actor(DECODE).die()
    await then.until(lambda: then.state(DECODE) is WorkerState.DEAD)
    then.later(2)
    await then.ready()
    assert (then.worker(DECODE).restarts, then.worker(PREFILL).restarts) == (1, 0)


async def test_a_drain_under_way_is_brought_to_its_end(start: Start) -> None:
    cluster = FakeCluster()
    gate = cluster.freeze("drain", "m-decode-1")
    first = start(spec_of(replicas=2), cluster)
    await first.ready()
    await first.until(lambda: first.state("m-decode-1") is WorkerState.READY)
    first.controller.upgrade(spec_of(replicas=1))
    await passing(first, gate.reached.is_set)
    await first.crash()
    gate.open()
    then = start(spec_of(replicas=1), cluster.another())
    await passing(then, lambda: not any("-1@" in name for name in cluster.actors))
    assert then.status.ready
    assert cluster.steps("create", DECODE) == cluster.steps("create", PREFILL) == 1
    assert not any(f"{DECODE}@" in name or GATEWAY in name for name in cluster.ended)


async def test_one_that_drains_though_its_slot_is_wanted_goes_and_is_replaced(start: Start) -> None:
    cluster = FakeCluster()
    first = start(cluster=cluster)
    await first.ready()
    await first.crash()
    await cluster.actor(DECODE).drain(5)  # as its last order was
    then = start(cluster=cluster.another())
    await then.ready()
    assert fillings(cluster) == {PREFILL: 1, DECODE: 2, GATEWAY: 1}
    assert cluster.doubles == []


async def test_one_that_failed_while_nobody_looked_says_why_and_is_tried_again(start: Start) -> None:
    cluster = FakeCluster()
    gate = cluster.freeze("start", DECODE)
    first = start(cluster=cluster)
    await frozen(gate)
    await first.crash()
    cluster.start_errors[DECODE] = WorkerStartFailed("no weights there")
    gate.open()
    await asyncio.sleep(0)
    then = start(cluster=cluster.another())
    await then.until(lambda: then.worker(DECODE).state == "failed")
    assert "no weights there" in then.worker(DECODE).detail
    del cluster.start_errors[DECODE]
    then.later(2)
    await then.ready()


async def test_one_that_answers_late_is_taken_over_late_and_one_that_never_does_is_replaced(start: Start) -> None:
    cluster = FakeCluster()
    first = start(cluster=cluster)
    await first.ready()
    await first.crash()
    late, never = cluster.freeze("snapshot", DECODE), cluster.freeze("snapshot", PREFILL)
    then = start(cluster=cluster.another())
    await then.until(lambda: then.worker(DECODE).stage == "has not answered this controller yet")
    late.open()
    await then.until(lambda: then.state(DECODE) is WorkerState.READY)
    await then.until(lambda: then.state(PREFILL) is WorkerState.FAILED)
    assert "its first word to this controller" in then.worker(PREFILL).detail
    never.open()
    then.later(2)
    await then.ready()
    assert fillings(cluster) == {PREFILL: 2, DECODE: 1, GATEWAY: 1}


async def test_one_that_was_replaced_ends_by_itself_and_has_ended_and_started_nothing(start: Start) -> None:
    cluster = FakeCluster()
    old = start(cluster=cluster, bounds=replace(QUICK, ask_ready=1000))
    await old.ready()
    new = start(cluster=cluster.another())
    await new.ready()
    assert not old.running.done()
    old.later(1000)  # to it all have been silent for long, as to one that was stopped (SIGSTOP) and goes on
    async with asyncio.timeout(WAIT):
        with pytest.raises(StaleEpoch):
            await old.running
    old.crashed = True
    await new.settle()
    assert new.status.ready
    assert fillings(cluster) == {PREFILL: 1, DECODE: 1, GATEWAY: 1}
    assert (cluster.ended, cluster.doubles) == ([], [])


async def test_what_came_to_be_after_the_takeover_is_found_and_seen_off(start: Start) -> None:
    cluster = FakeCluster()
    first = start(cluster=cluster)
    await first.ready()
    order = cluster.actor(DECODE).order
    await first.crash()
    then = start(cluster=cluster.another())
    await then.ready()
    late = cluster.actors[f"test/{DECODE}@0"] = FakeActor(cluster, replace(order, epoch=0))
    await then.settle()
    assert late.alive
    await passing(then, lambda: not late.alive)
    await then.settle()
    assert then.status.ready
    assert not [name for name in cluster.ended if not name.endswith("@0")]


async def test_one_that_was_replaced_while_it_reserved_makes_no_actor(start: Start) -> None:
    cluster = FakeCluster()
    gate = cluster.freeze("reserve", DECODE)
    old = start(cluster=cluster)
    await frozen(gate)
    new = start(cluster=cluster.another())
    await new.until(lambda: new.statuses)
    gate.open()
    async with asyncio.timeout(WAIT):
        with pytest.raises(StaleEpoch):
            await old.running
    old.crashed = True
    await new.ready()
    assert fillings(cluster) == {PREFILL: 1, DECODE: 1, GATEWAY: 1}
    assert (cluster.ended, cluster.doubles) == ([], [])


rounds = st.lists(
    st.tuples(
        st.sampled_from([*EDGES, ("stop", DECODE), ("remove", DECODE)]),
        st.booleans(),
        st.sampled_from([None, None, PREFILL, DECODE, GATEWAY]),
    ),
    min_size=1,
    max_size=4,
)


@given(rounds)
@settings(deadline=None, max_examples=40)
def test_however_controllers_come_and_go_no_slot_is_filled_twice_and_nothing_that_serves_is_ended(
    rounds: list[tuple[tuple[str, str], bool, str | None]],
) -> None:
    """Each round a controller comes up to a freeze point at most; an actor dies; the next begins after or beside it."""

    async def play() -> None:
        cluster = FakeCluster()
        benches: list[Bench] = []
        for (step, slot_id), beside, dies in rounds:
            gate = cluster.freeze(step, slot_id)
            bench = Bench(spec_of(), cluster.another())
            benches.append(bench)
            await either(bench, gate.reached)
            if dies:
                cluster.kill(dies)
                bench.later(2)
                await either(bench, gate.reached)
            if not beside:
                await bench.crash()
            gate.open()
        last = Bench(spec_of(), cluster.another())
        await passing(last, lambda: last.status.ready)
        assert (cluster.ended, cluster.doubles) == ([], [])
        for bench in benches:
            if not bench.crashed:
                async with asyncio.timeout(WAIT):
                    with pytest.raises(StaleEpoch):
                        await bench.running
        await last.settle()
        assert last.status.ready
        assert (cluster.ended, cluster.doubles) == ([], [])
        async with asyncio.timeout(WAIT):
            await last.controller.shutdown(0.1)
            await last.running
        assert await cluster.names() == frozenset()

    asyncio.run(play())


async def either(bench: Bench, reached: asyncio.Event) -> None:
    """Until it stands before the gate, or has nothing to do there and is ready, or was replaced."""
    waits = [asyncio.create_task(reached.wait()), asyncio.create_task(bench.ready()), bench.running]
    async with asyncio.timeout(WAIT):
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in waits[:2]:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*waits[:2])


async def passing(bench: Bench, seen: Callable[[], object]) -> None:
    """Until it is so, with as much of the planner's time as that takes."""
    async with asyncio.timeout(WAIT):
        await bench.until(lambda: bench.statuses)
        while not seen():
            bench.later(1)
            await bench.settle()
            await asyncio.sleep(0.02)  # in which all are heard again
