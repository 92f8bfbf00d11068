"""What an operator sees while a cluster becomes another one, on a fake cluster: drains, refusals, the way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.config import digest, dumps, loads
from orchestrator.controller.course import aim, resumed
from orchestrator.core.course import Course
from orchestrator.core.errors import ConfigError, NotKept, WorkerStartFailed
from orchestrator.core.spec import ClusterSpec, ModelSpec, PoolSpec, Role, RolloutSpec
from orchestrator.core.types import WorkerState
from tests.controller.conftest import DECODE, GATEWAY, PREFILL, Bench, spec_of
from tests.controller.fake_cluster import FakeCluster, slot_of

Start = Callable[..., Bench]
GATE = 10.0


def changed(spec: ClusterSpec, *roles: Role, **engine: Any) -> ClusterSpec:
    """With other engine arguments in these pools, or in all."""
    model = spec.models[0]
    pools = {
        role: replace(pool, engine=engine) if role in (roles or model.pools) else pool
        for role, pool in model.pools.items()
    }
    return replace(spec, models=(replace(model, pools=pools),))


def sized(spec: ClusterSpec, **replicas: int) -> ClusterSpec:
    model = spec.models[0]
    pools = {
        role: replace(pool, replicas=replicas.get(role.value, pool.replicas)) for role, pool in model.pools.items()
    }
    return replace(spec, models=(replace(model, pools=pools),))


def orders(bench: Bench, *steps: str) -> list[str]:
    return [f"{step} {slot_of(name)}" for step, name in bench.cluster.journal if step in (steps or ("create", "drain"))]


async def at_rest(bench: Bench) -> None:
    """All is ready, and has been for long."""
    await bench.ready()
    bench.now += 10 * GATE


async def through(bench: Bench, state: str = "done") -> None:
    """Lets time pass until the upgrade has come to this end."""
    for _ in range(200):
        await bench.settle()
        if bench.status.rollout.state == state:
            return
        bench.later(GATE / 4)
    raise AssertionError(bench.status)


async def test_a_changed_pool_is_replaced_behind_a_spare_and_the_other_is_left_alone(start: Start) -> None:
    bench = start()
    await at_rest(bench)
    bench.cluster.journal.clear()
    bench.controller.upgrade(changed(bench.spec, Role.DECODE, max_num_seqs=7))
    await bench.settle()
    assert bench.status.rollout.state == "rolling"
    await through(bench)
    assert orders(bench) == [
        "create m-decode-spare-0",
        "drain m-decode-0",
        "create m-decode-0",
        "drain m-decode-spare-0",
    ]
    assert bench.cluster.actor(DECODE).order.engine == {"max_num_seqs": 7}  # type: ignore[union-attr]
    assert bench.worker(PREFILL).epoch == 1
    assert (bench.status.rollout.done, bench.status.rollout.total, bench.status.ready) == (2, 2, True)
    assert {slot_of(name) for name in bench.cluster.actors} == {PREFILL, DECODE, GATEWAY}


async def test_nothing_goes_while_a_spare_comes_up_or_has_not_proven_itself(start: Start) -> None:
    cluster = FakeCluster()
    gate = cluster.freeze("start", "m-prefill-spare-0")
    bench = start(cluster=cluster)
    await at_rest(bench)
    bench.controller.upgrade(changed(bench.spec, max_num_seqs=7))
    await gate.reached.wait()
    bench.later(5 * GATE)
    await bench.settle()
    assert bench.worker("m-prefill-spare-0").state == "starting"
    gate.open()
    await bench.until(lambda: bench.worker("m-prefill-spare-0").state == "ready")
    bench.later(GATE - 1)
    await bench.settle()
    assert orders(bench, "drain") == []
    bench.later(1)
    await bench.until(lambda: orders(bench, "drain"))
    assert orders(bench, "drain") == ["drain m-prefill-0"]
    await through(bench)


async def test_one_that_drains_is_told_until_it_is_gone_so_that_gateways_keep_its_sessions(start: Start) -> None:
    bench = start(spec_of(replicas=2))
    await at_rest(bench)
    gate = bench.cluster.freeze("drain", "m-decode-1")
    bench.controller.upgrade(sized(bench.spec, decode=1))
    await gate.reached.wait()
    await bench.settle()
    assert bench.worker("m-decode-1").state == "draining"
    assert bench.worker("m-decode-1").address
    assert bench.cluster.actor("m-decode-1").drained_for == bench.spec.controller.drain_timeout
    gate.open()
    await through(bench)
    with pytest.raises(ValueError, match="not enough values"):
        bench.worker("m-decode-1")


async def test_more_replicas_and_models_come_and_others_go(start: Start) -> None:
    bench = start(sized(spec_of(), decode=2))
    await at_rest(bench)
    more = sized(bench.spec, prefill=3, decode=1)
    other = ModelSpec("n", "none", {Role.SERVE: PoolSpec(Role.SERVE)})
    gate = bench.cluster.freeze("start", "n-serve-0")
    bench.controller.upgrade(replace(more, models=(*more.models, other)))
    await gate.reached.wait()
    await bench.settle()
    assert bench.status.ready  # what is served is served as before
    gate.open()
    await through(bench)
    there = {slot_of(name) for name in bench.cluster.actors}
    assert there == {"m-prefill-0", "m-prefill-1", "m-prefill-2", DECODE, "n-serve-0", GATEWAY}
    bench.controller.upgrade(replace(more, models=(other,)))
    await through(bench)
    assert {slot_of(name) for name in bench.cluster.actors} == {"n-serve-0", GATEWAY}
    assert [model.name for model in bench.status.models] == ["n"]


async def test_a_new_replica_that_fails_twice_has_the_old_ones_back_with_the_reason(start: Start) -> None:
    bench = start(spec_of(replicas=2))
    await at_rest(bench)
    bench.cluster.start_errors["m-prefill-spare-0"] = WorkerStartFailed("no such argument")
    turns: list[str] = []
    bench.controller._turned = lambda: turns.append(dumps(bench.controller.spec))
    bad = changed(bench.spec, max_num_seqs=-1)
    bench.controller.upgrade(bad)
    await through(bench, "rolled back")
    assert "m-prefill-spare-0 failed 2 times: no such argument" in bench.status.rollout.detail
    assert orders(bench, "drain") == []
    assert bench.controller.spec == bench.spec
    assert turns == [dumps(bad), dumps(bench.spec), dumps(bench.spec)]


async def test_one_that_dies_before_it_has_proven_itself_turns_all_back_also_what_was_replaced(start: Start) -> None:
    bench = start(spec_of(replicas=2))
    await at_rest(bench)
    bench.controller.upgrade(changed(bench.spec, Role.DECODE, max_num_seqs=7))
    for _ in range(100):
        await bench.settle()
        bench.later(GATE / 4)
        if orders(bench).count("create m-decode-0") == 2 and bench.state("m-decode-0") is WorkerState.READY:
            break
    bench.cluster.actor("m-decode-0").die()
    await through(bench, "rolled back")
    assert "m-decode-0 was lost within 10 s" in bench.status.rollout.detail
    workers = [actor.order for name, actor in bench.cluster.actors.items() if "decode" in name]
    assert [order.engine for order in workers] == [{}, {}]  # type: ignore[union-attr]
    assert bench.status.ready


async def test_where_no_spare_finds_room_a_replica_is_missing_and_of_one_nothing_is_done(start: Start) -> None:
    bench = start(spec_of(replicas=2), FakeCluster(capacity=4))
    await at_rest(bench)
    bench.controller.upgrade(changed(bench.spec, Role.DECODE, max_num_seqs=7))
    await through(bench)
    assert "no room for a spare of m decode: a replica is missing instead" in bench.status.rollout.detail

    lone = start(spec_of(), FakeCluster(capacity=2))
    await at_rest(lone)
    lone.controller.upgrade(changed(lone.spec, Role.DECODE, max_num_seqs=7))
    await through(lone, "rolled back")
    assert "there is no room for m-decode-spare-0, and its pool has one replica" in lone.status.rollout.detail
    assert orders(lone, "drain") == []
    lone.controller.upgrade(changed(lone.spec, Role.DECODE, max_num_seqs=7), makes_room=True)
    await through(lone)
    assert orders(lone, "drain") == ["drain m-decode-0"]


async def test_a_controller_that_comes_later_goes_on_with_what_it_finds(start: Start) -> None:
    """The course follows from what there is: one that starts with a previous specification can still go back to it."""
    bench = start()
    await at_rest(bench)
    assigner = bench.controller._assigner
    new = replace(assigner, spec=changed(bench.spec, Role.DECODE, max_num_seqs=7))
    course = Course(aim(new), aim(assigner))
    step = course.step(bench.controller.observed.actors, bench.now)
    assert [slot.slot_id for slot in step.slots][-1] == "m-decode-spare-0"
    assert course.progress.phase == "rolling"


async def test_it_is_answered_and_acted_on_only_once_the_next_controller_would_go_on_with_it(start: Start) -> None:
    bench = start()
    await at_rest(bench)
    before = bench.cluster.freeze("remember", "controller")
    bench.cluster.actor(DECODE).die()  # so that another plan is to be remembered when the upgrade comes
    await before.reached.wait()
    new = changed(bench.spec, max_num_seqs=7)
    bench.controller.upgrade(new)
    answered = asyncio.create_task(bench.controller.remembered())
    after = bench.cluster.freeze("remember", "controller")
    before.open()
    await after.reached.wait()
    assert not answered.done()
    assert not [name for name in await bench.cluster.names() if "spare" in name]
    after.open()
    await answered
    memory = await bench.cluster.recall()
    assert memory is not None
    assert (memory.spec_json, memory.previous_json) == (dumps(new), dumps(bench.spec))
    await through(bench)


async def test_whoever_asks_while_rays_store_is_away_hears_so_in_time_and_it_goes_on_by_itself(start: Start) -> None:
    bench = start()
    await at_rest(bench)
    store = bench.cluster.freeze("remember", "controller")
    bench.controller.upgrade(changed(bench.spec, max_num_seqs=7))
    await store.reached.wait()
    with pytest.raises(NotKept, match=r"cluster test: Ray's store has not taken it .*\(it begins by itself then"):
        await bench.controller.remembered(within=0.01)
    assert orders(bench, "drain") == []
    store.open()
    await bench.controller.remembered()
    await through(bench)


async def test_the_next_controller_goes_on_with_the_way_back_and_with_what_was_allowed(start: Start) -> None:
    first = start(spec_of(replicas=2))
    await at_rest(first)
    gateway = first.cluster.actor(GATEWAY)
    gateway.word = replace(gateway.word, serves="another")  # which is behind, so that nothing is at its end
    first.cluster.start_errors["m-prefill-spare-0"] = WorkerStartFailed("no such argument")
    first.controller.upgrade(changed(first.spec, max_num_seqs=-1), makes_room=True)
    for state in ("rolling", "rolling back"):
        await through(first, state)
        await first.controller.remembered()
        memory = await first.cluster.recall()
        assert memory is not None
        course = resumed(replace(first.controller._assigner, spec=loads(memory.spec_json)), memory)
        assert (course.progress.phase, course.aim.goal.makes_room) == (state, True)
    await first.crash()
    then = start(first.spec, first.cluster.another(), memory=memory)
    await then.until(lambda: then.statuses)
    assert then.status.rollout.state == "rolling back"
    assert "no such argument" in then.status.rollout.detail
    gateway.word = replace(gateway.word, serves="")
    await through(then, "rolled back")


async def test_a_gateway_that_cant_take_the_specification_turns_it_back(start: Start) -> None:
    bench = start()
    await at_rest(bench)
    new = changed(bench.spec, Role.DECODE, max_num_seqs=7)
    gateway = bench.cluster.actor(GATEWAY)
    gateway.word = replace(gateway.word, refuses=digest(new), detail="no such chat template")
    bench.controller.upgrade(new)
    await bench.until(lambda: bench.status.rollout.state == "rolling back")
    assert bench.status.rollout.detail == "gateway-0: no such chat template"
    gateway.word = replace(gateway.word, serves="another", refuses="")
    bench.later(10 * GATE)
    await bench.settle()
    assert bench.status.rollout.state == "rolling back"
    gateway.word = replace(gateway.word, serves=digest(bench.spec))
    await through(bench, "rolled back")


async def test_two_upgrades_at_once_are_one_too_many_but_for_the_way_back(start: Start) -> None:
    bench = start()
    await at_rest(bench)
    bench.controller.upgrade(changed(bench.spec, max_num_seqs=7))
    with pytest.raises(ConfigError, match="an upgrade is rolling"):
        bench.controller.upgrade(changed(bench.spec, max_num_seqs=8))
    await bench.until(lambda: "m-prefill-spare-0" in {slot_of(name) for name in bench.cluster.actors})
    bench.controller.upgrade(bench.spec)
    await through(bench, "rolled back")
    assert bench.status.rollout.detail == "that was asked for"
    assert set(orders(bench, "drain")) <= {"drain m-prefill-spare-0"}
    assert {slot_of(name) for name in bench.cluster.actors} == {PREFILL, DECODE, GATEWAY}


async def test_a_way_back_that_cant_end_is_no_dead_end(start: Start) -> None:
    bench = start()
    await at_rest(bench)
    bench.cluster.start_errors = {slot_id: WorkerStartFailed("no") for slot_id in ("m-decode-spare-0", DECODE)}
    bench.cluster.actor(DECODE).die()
    bench.controller.upgrade(changed(bench.spec, Role.DECODE, max_num_seqs=7))
    await through(bench, "rolling back")
    bench.later(100 * GATE)
    await bench.settle()
    assert bench.status.rollout.state == "rolling back"
    bench.cluster.start_errors.clear()
    bench.controller.upgrade(changed(bench.spec, Role.DECODE, max_num_seqs=8))
    await through(bench)
    assert bench.cluster.actor(DECODE).order.engine == {"max_num_seqs": 8}  # type: ignore[union-attr]
    assert bench.worker(PREFILL).epoch == 1


async def test_models_whose_replicas_would_change_names_with_each_other_are_refused(start: Start) -> None:
    pools = {Role.SERVE: PoolSpec(Role.SERVE)}
    first, second = ModelSpec("a/b", "none", pools), ModelSpec("a-b", "other", pools)
    bench = start(replace(spec_of(), models=(first, second)))
    await at_rest(bench)
    for models in ((second, first), (second,)):
        with pytest.raises(ConfigError, match="a-b-serve-0 is a replica of a/b, and would be one of a-b"):
            bench.controller.upgrade(replace(bench.spec, models=models))
    bench.controller.upgrade(replace(bench.spec, models=(first,)))
    await through(bench)


@pytest.mark.parametrize(
    ("section", "change", "key"),
    [
        ("gateway", {"processes": 2}, "gateway.processes"),
        ("gateway", {"max_body_bytes": 7}, "gateway.max_body_bytes"),
        ("telemetry", {"log_level": "debug"}, "telemetry.log_level"),
        ("controller", {"listen": replace(spec_of().controller.listen, port=1)}, "controller.listen"),
    ],
)
async def test_what_only_a_start_can_change_is_refused_by_its_key(
    start: Start, section: str, change: dict[str, Any], key: str
) -> None:
    bench = start()
    await at_rest(bench)
    other = replace(bench.spec, **{section: replace(getattr(bench.spec, section), **change)})
    with pytest.raises(ConfigError, match="can't be changed while the cluster runs") as raised:
        bench.controller.upgrade(other)
    assert raised.value.where == key
    source = replace(bench.spec, models=(replace(bench.spec.models[0], source="other"),))
    with pytest.raises(ConfigError, match="can't become another model"):
        bench.controller.upgrade(source)
    assert bench.status.rollout.state == ""


async def test_the_controllers_own_patience_is_changed_at_once(start: Start) -> None:
    bench = start()
    await at_rest(bench)
    control = replace(bench.spec.controller, drain_timeout=3.0, rollout=RolloutSpec(0, 1, 0.0))
    bench.controller.upgrade(replace(sized(bench.spec, decode=2), controller=control))
    await through(bench)
    bench.controller.upgrade(replace(bench.spec, controller=control))
    gone = bench.cluster.actor("m-decode-1")
    await through(bench)
    assert gone.drained_for == 3.0
