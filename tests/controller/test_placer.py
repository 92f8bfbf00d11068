"""Where replicas are reserved: by the plan, and what happens where there is none, or it is wrong about what is free."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.controller.assignments import Assigner
from orchestrator.controller.placer import Patience, Placer, planned
from orchestrator.core.errors import SegueError
from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.slots import slots_of
from orchestrator.core.spec import Bind, ClusterSpec, Device, GatewaySpec, ModelSpec, PoolSpec, Role
from orchestrator.core.types import WorkerState
from tests.controller.conftest import WAIT, Bench, no_engine_args
from tests.controller.fake_cluster import FakeCluster, slot_of

Start = Callable[..., Bench]
SLOT = "m-serve-0"


def host(name: str, gpus: int = 4, gpu: str = "L4", **labels: str) -> Host:
    return Host(f"id-{name}", name, gpus, gpu, cpus=8, labels=labels)


def spec_of(replicas: int = 1, tp: int = 1, pp: int = 1, share: float = 1.0, *kinds: str) -> ClusterSpec:
    """One model m on GPUs, and one gateway."""
    pool = PoolSpec(Role.SERVE, replicas, Device.GPU, tp, pp, gpu=kinds, share=share)
    return ClusterSpec("test", (ModelSpec("m", "none", {Role.SERVE: pool}),), gateway=GatewaySpec(processes=1))


def where(cluster: FakeCluster) -> dict[str, tuple[str, ...]]:
    """By slot the host of each device."""
    return {slot_of(name): hosts for name, hosts in cluster.reserved.items()}


async def all_ready(bench: Bench) -> None:
    await bench.until(lambda: all(worker.state == "ready" for worker in bench.status.models[0].pools[0].workers))


async def until(seen: Callable[[], object]) -> None:
    """Until the cluster, which publishes nothing, is so."""
    async with asyncio.timeout(WAIT):
        while not seen():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_replicas_are_spread_over_hosts_each_stage_on_the_host_that_was_planned(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a"), host("b")])
    bench = start(spec_of(2, 2, 2), cluster)
    await all_ready(bench)
    assert sorted(where(cluster).values()) == [("id-a",) * 4, ("id-b",) * 4]
    assert {order.hosts for order in cluster.orders.values()} == {("id-a", "id-a"), ("id-b", "id-b")}


async def test_all_that_start_together_have_one_plan(start: Start) -> None:
    cluster = FakeCluster(hosts=[host(f"h{number}") for number in range(10)])
    cluster.topology_seconds = 0.3  # longer than a plan is good for
    patient = Placer(spec_of(40), cluster, Patience(plan_lasts=0.2))
    bench = start(spec_of(40), cluster)
    bench.controller._roster._reserve = patient.reserve
    await all_ready(bench)
    assert cluster.topologies == 1
    assert set(Counter(where(cluster).values()).values()) == {4}


async def test_a_replica_whose_host_dies_comes_up_on_another(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a"), host("b"), host("c")])
    bench = start(spec_of(2, 4), cluster)
    await all_ready(bench)
    lost, stays = where(cluster)["m-serve-0"][0], where(cluster)["m-serve-1"]
    [spare] = cluster.hosts.keys() - {lost, stays[0]}
    cluster.lose_host(lost)
    await bench.until(lambda: bench.state("m-serve-0") is WorkerState.DEAD)
    bench.later(2)
    await bench.until(lambda: bench.worker("m-serve-0").restarts)
    await all_ready(bench)
    assert where(cluster) == {"m-serve-0": (spare,) * 4, "m-serve-1": stays}


async def test_what_does_not_fit_says_why_and_comes_up_once_a_host_is_added(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a", 2), host("b", 2)])
    bench = start(spec_of(1, 4), cluster)
    words = "tensor_parallel 4 needs 4 L4 in one node, a, b have 2 at most"
    await bench.until(lambda: bench.worker(SLOT).stage == words)
    # Without hosts, as that is what an autoscaler goes by.
    await until(lambda: cluster.waiting)
    assert [order.hosts for order in cluster.orders.values()] == [()]
    await bench.settle()
    assert (bench.worker(SLOT).stage, bench.state(SLOT)) == (words, WorkerState.PENDING)
    cluster.add_host(host("c", 4))
    await bench.ready()
    assert where(cluster) == {SLOT: ("id-c",) * 4}
    assert bench.worker(SLOT).stage == ""


async def test_one_that_waited_for_room_anywhere_is_reserved_where_there_is_a_place_for_it(start: Start) -> None:
    cluster = FakeCluster(capacity=0, hosts=[host("a", 2)])
    bench = start(spec_of(1, 4), cluster)
    await bench.until(
        lambda: "have 2 at most" in bench.worker(SLOT).stage or "has 2 at most" in bench.worker(SLOT).stage
    )
    cluster.hosts["id-b"] = host("b")  # nobody that waits is told
    await until(lambda: [order.hosts for order in cluster.orders.values()] == [("id-b",)])
    cluster.capacity = 10
    cluster.changed()
    await bench.ready()


async def test_a_pool_that_names_kinds_is_nowhere_else(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a", 8, "L4"), host("b", 1, "H100-80GB")])
    bench = start(spec_of(1, 1, 1, 1.0, "H100"), cluster)
    await bench.ready()
    assert where(cluster) == {SLOT: ("id-b",)}
    [order] = cluster.orders.values()
    assert {"H100", "H100-80GB"} <= set(order.gpu)


async def test_a_place_that_is_taken_meanwhile_is_given_up_for_another(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a"), host("b")])
    cluster.others["id-a"] = cluster.unseen["id-a"] = 1
    bench = start(spec_of(1, 4), cluster)
    await bench.until(lambda: bench.worker(SLOT).stage == "waits for GPUs on a: in use")
    await bench.ready()
    assert where(cluster) == {SLOT: ("id-b",) * 4}
    assert cluster.steps("remove", SLOT) >= 1


async def test_a_place_that_ray_never_gives_is_not_asked_for_again(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a")])
    cluster.others["id-a"] = cluster.unseen["id-a"] = 1
    bench = start(spec_of(1, 4), cluster)
    await bench.until(lambda: bench.worker(SLOT).stage == "waits for GPUs on any host: in use")
    removed = cluster.steps("remove", SLOT)
    assert removed == 1
    for _ in range(20):
        await asyncio.sleep(0.01)  # longer than it takes to look again
    assert cluster.steps("remove", SLOT) == removed
    del cluster.others["id-a"]
    cluster.changed()
    await bench.ready()


async def test_no_stage_is_torn_over_hosts_where_ray_would_do_so(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a", 3), host("b", 1)])
    bench = start(spec_of(1, 2, 2), cluster)
    await until(lambda: cluster.steps("remove", SLOT) >= 2)  # met that way, and given back
    assert bench.state(SLOT) is WorkerState.PENDING
    assert "b has 1 at most" in bench.worker(SLOT).stage
    cluster.add_host(host("c", 2))
    await bench.ready()
    assert where(cluster)[SLOT] in [("id-a", "id-a", "id-c", "id-c"), ("id-c", "id-c", "id-a", "id-a")]


async def test_without_any_plan_replicas_come_up_all_the_same(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a")])
    cluster.topology_error = SegueError("Ray is busy")
    bench = start(spec_of(2, 2), cluster)
    await all_ready(bench)
    assert {order.hosts for order in cluster.orders.values()} == {()}


async def test_machines_that_contradict_themselves_keep_nothing_from_coming_up(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a"), replace(host("a"), host_id="id-2")])
    bench = start(spec_of(2, 2), cluster)
    await all_ready(bench)


async def test_what_one_was_promised_no_other_gets_in_a_later_plan() -> None:
    """A reservation that is under way is in no table yet."""
    cluster = FakeCluster(capacity=0, hosts=[host("a", 1)])
    spec = spec_of(2)
    placer = Placer(spec, cluster, Patience(plan_lasts=0, settle=0, pinned=WAIT))
    assigner = Assigner(spec, "/nowhere", no_engine_args)
    orders = [assigner.order(slot, 1) for slot in slots_of(spec)[:2]]
    lives = [asyncio.create_task(placer.reserve(orders[0], lambda _: None))]
    await until(lambda: cluster.waiting)
    cluster.add_host(host("A", 1))  # from nothing, the first replica would be there
    lives.append(asyncio.create_task(placer.reserve(orders[1], lambda _: None)))
    await until(lambda: len(cluster.waiting) == 2)
    cluster.capacity = 2
    cluster.changed()
    async with asyncio.timeout(WAIT):
        assert [order.hosts for order in await asyncio.gather(*lives)] == [("id-a",), ("id-A",)]  # type: ignore[union-attr]


async def test_a_waiting_reservation_ends_with_its_life(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a", 2)])
    bench = start(spec_of(3, 2), cluster)
    await until(lambda: len(cluster.waiting) == 2)
    await bench.controller.shutdown(0.1)
    assert await cluster.names() == frozenset()


def test_what_ray_put_where_no_plan_would_have_it_still_has_its_devices() -> None:
    """A stage over two hosts, from when Ray chose: neither of its halves is somebody else's to have."""
    reserved = {"m-serve-0": ("id-a", "id-b", "id-b", "id-b")}
    topology = Topology((host("a", 4), host("b", 4)), reserved)
    plan = planned(spec_of(2, 2, 2), topology)
    assert not plan.hosts
    assert plan.reasons["m-serve-1"] == (
        "a stage of tensor_parallel 2 needs 2 L4 in one node, b has 1 at most; "
        "pipeline_parallel 2 needs 2 x 2 L4, a has 1 x 2 in all"
    )


def test_what_runs_is_not_moved_out_of_the_way() -> None:
    small = PoolSpec(Role.SERVE, 2, Device.GPU)
    models = (ModelSpec("s", "none", {Role.SERVE: small}), *spec_of(1, 2).models)
    reserved = {"s-serve-0": ("id-a",), "s-serve-1": ("id-b",)}
    plan = planned(replace(spec_of(), models=models), Topology((host("a", 2), host("b", 2)), reserved))
    assert plan.hosts == reserved
    assert plan.reasons == {SLOT: "tensor_parallel 2 needs 2 L4 in one node, a, b have 1 free at most"}


def test_workers_that_listen_on_loopback_are_on_the_gateways_machine() -> None:
    topology = Topology((host("a", 1), replace(host("b", 4), here=False)))
    loopback, anywhere = spec_of(1, 2), replace(spec_of(1, 2), bind=Bind.NODE)
    assert planned(anywhere, topology).hosts == {SLOT: ("id-b",)}
    assert planned(loopback, topology).reasons == {
        SLOT: "tensor_parallel 2 needs 2 L4 in one node, a has 1 at most; nodes on other machines (1) need bind: node"
    }


async def test_with_workers_on_loopback_what_finds_no_room_waits_instead_of_going_elsewhere(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a", 1), replace(host("b", 4), here=False)])
    bench = start(spec_of(1, 2), cluster)
    await bench.until(lambda: "nodes on other machines (1) need bind: node" in bench.worker(SLOT).stage)
    for _ in range(20):
        await asyncio.sleep(0.01)  # longer than it takes to look again
    assert (where(cluster), cluster.orders) == ({}, {})
    cluster.add_host(host("c", 2))
    await bench.ready()
    assert where(cluster) == {SLOT: ("id-c",) * 2}


async def test_a_refused_place_is_asked_for_again_where_the_others_are_out_of_reach(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a"), replace(host("b"), here=False)])
    cluster.others["id-a"] = cluster.unseen["id-a"] = 1
    bench = start(spec_of(1, 4), cluster)
    await until(lambda: cluster.steps("remove", SLOT) >= 2)  # given up twice
    assert where(cluster) == {}
    del cluster.others["id-a"]
    cluster.changed()
    await bench.ready()
    assert where(cluster) == {SLOT: ("id-a",) * 4}


def test_a_reservation_on_a_host_that_is_gone_is_placed_anew() -> None:
    topology = Topology((host("a", 4),), {SLOT: ("id-gone",) * 4})
    assert planned(spec_of(1, 4), topology).hosts == {SLOT: ("id-a",)}


@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas_on_cpus_are_planned_beside_those_on_gpus(replicas: int) -> None:
    pools = {
        Role.PREFILL: PoolSpec(Role.PREFILL, 1, Device.GPU),
        Role.DECODE: PoolSpec(Role.DECODE, replicas, pipeline_parallel=2),
    }
    spec = replace(spec_of(), models=(ModelSpec("m", "none", pools),))
    plan = planned(spec, Topology((host("a", 1), host("b", 0))))
    assert plan.hosts["m-prefill-0"] == ("id-a",)
    cpus = [plan.hosts[f"m-decode-{number}"] for number in range(replicas)]
    expected = [("id-a", "id-b")] if replicas == 1 else [("id-a", "id-a"), ("id-b", "id-b")]
    assert sorted(tuple(sorted(hosts)) for hosts in cpus) == expected


# Pools on hosts of their own


def pools_apart(prefill: int = 1, decode: int = 1) -> ClusterSpec:
    pools = {
        Role.PREFILL: PoolSpec(Role.PREFILL, prefill, Device.GPU),
        Role.DECODE: PoolSpec(Role.DECODE, decode, Device.GPU),
    }
    return replace(spec_of(), models=(ModelSpec("m", "none", pools),))


def own(name: str, role: Role, gpus: int = 1) -> Host:
    return host(name, gpus, **{"segue.io/model": "m", "segue.io/role": role.value})


async def test_a_pool_is_on_its_own_hosts_also_where_others_have_room(start: Start) -> None:
    cluster = FakeCluster(hosts=[own("p", Role.PREFILL, 4), own("d", Role.DECODE, 1)])
    bench = start(pools_apart(2, 2), cluster)
    await bench.until(lambda: "1 of 2 nodes are for other pools" in bench.worker("m-decode-1").stage)
    await until(lambda: any(order.selector for order in cluster.orders.values()))
    await bench.settle()
    assert sorted(where(cluster).values()) == [("id-d",), ("id-p",), ("id-p",)]
    cluster.add_host(own("D", Role.DECODE, 1))
    await bench.until(lambda: bench.status.ready and bench.state("m-decode-1") is WorkerState.READY)
    assert where(cluster)["m-decode-1"] == ("id-D",)


async def test_what_waits_for_room_anywhere_hears_of_hosts_that_come_to_be_its_own(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a", 1)])
    bench = start(pools_apart(), cluster)
    await until(lambda: len(cluster.waiting) == 1 and cluster.reserved)
    [waits] = cluster.waiting
    cluster.hosts["id-b"] = own("b", Role(slot_of(waits).split("-")[1]), 1)  # nobody that waits is told
    await all_ready(bench)
    await bench.until(lambda: bench.status.ready)
    assert where(cluster)[slot_of(waits)] == ("id-b",)


async def test_a_host_that_is_to_go_gets_nothing_more_until_it_is_to_stay(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a", 1), host("b", 1)])
    bench = start(spec_of(1), cluster)
    await bench.ready()
    [used] = where(cluster)[SLOT]
    [empty] = cluster.hosts.keys() - {used}
    placer = bench.controller._placer
    assert await placer.close({used, empty}) == {empty}  # what has something is not closed
    assert await placer.close({empty}) == {empty}
    cluster.lose_host(used)
    await bench.until(lambda: bench.state(SLOT) is WorkerState.DEAD)
    bench.later(2)
    await until(lambda: any(order.selector for order in cluster.orders.values()))
    assert not where(cluster)
    assert await placer.close(set()) == set()
    await bench.ready()
    assert where(cluster) == {SLOT: (empty,)}


async def test_no_host_counts_as_closed_as_long_as_nobody_knows_what_is_on_it(start: Start) -> None:
    cluster = FakeCluster(hosts=[host("a", 1), host("b", 1)])
    bench = start(spec_of(1), cluster)
    await bench.ready()
    cluster.topology_error = SegueError("Ray is busy")
    assert await bench.controller._placer.close({"id-a", "id-b"}) == set()
