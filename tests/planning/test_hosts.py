"""A running cluster's hosts as nodes, its reservations as placed gangs, and places as hosts again."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.planning.hosts import Host, Topology, cpu_parts_of, gangs_of, hosts_by_node, kept_of, nodes_of
from orchestrator.core.planning.moves import moves
from orchestrator.core.planning.places import WHOLE, Gang, Node, Placed, Placement, parts_of
from orchestrator.core.planning.placing import place
from orchestrator.core.spec import AUTO, Backend, ClusterSpec, Device, GatewaySpec, ModelSpec, PoolSpec, Role
from tests.planning.support import check, gang, on

KINDS = ("H100-80GB", "L4")


def host(name: str, gpus: int = 0, gpu: str = "", cpus: float = 8, **labels: str) -> Host:
    return Host(f"id-{name}", name, gpus, gpu, cpus, 1 << 36, labels)


def spec_of(*pools: PoolSpec) -> ClusterSpec:
    """A model for each pool: m0, m1 ..."""
    models = tuple(ModelSpec(f"m{number}", "none", {pool.role: pool}) for number, pool in enumerate(pools))
    return ClusterSpec("c", models, gateway=GatewaySpec(processes=1))


def gpu_pool(replicas: int = 1, tp: int = 1, pp: int = 1, share: float = 1.0, *kinds: str) -> PoolSpec:
    return PoolSpec(Role.SERVE, replicas, Device.GPU, tp, pp, gpu=kinds, share=share)


def cpu_pool(replicas: int = 1, tp: int = 1, pp: int = 1) -> PoolSpec:
    return PoolSpec(Role.SERVE, replicas, Device.CPU, tp, pp, backend=Backend.MOCK)


def planned(spec: ClusterSpec, topology: Topology) -> tuple[Placement, list[Gang], tuple[Node, ...]]:
    nodes = nodes_of(topology, cpu_parts_of(spec, topology))
    gangs = gangs_of(spec, nodes)
    return place(gangs, nodes, kept_of(topology, gangs, nodes), movable=False), gangs, nodes


def host_ids(placed: Placed, topology: Topology) -> list[str]:
    """The host of each stage."""
    by_node = hosts_by_node(topology)
    return [by_node[name] for name, _ in placed.stages]


def carried_out(placement: Placement, topology: Topology) -> Topology:
    """The topology once all of this is reserved."""
    reserved = {
        placed.gang_id: tuple(
            host_id
            for host_id, (_, devices) in zip(host_ids(placed, topology), placed.stages, strict=True)
            for _ in devices
        )
        for placed in placement.placed
    }
    return replace(topology, reserved=reserved)


def where(placement: Placement, topology: Topology) -> dict[str, list[str]]:
    names = {each.host_id: each.name for each in topology.hosts}
    return {placed.gang_id: [names[host_id] for host_id in host_ids(placed, topology)] for placed in placement.placed}


# Nodes


def test_a_hosts_gpus_are_a_node_and_its_cpu_another_where_pools_run_on_cpus() -> None:
    topology = Topology((host("a", 4, "L4", rack="r0"), host("b", cpus=2), host("c", 2, cpus=0)))
    labels = {"rack": "r0"}
    assert nodes_of(topology, 0) == (Node("a", "L4", 4, labels), Node("c", "gpu", 2))
    assert nodes_of(topology, 3) == (
        Node("a", "L4", 4, labels),
        Node("a cpu", "cpu", 3, labels),
        Node("b", "cpu", 3),
        Node("c", "gpu", 2),
    )


def test_domains_that_name_devices_which_others_hold_do_not_keep_the_rest_from_being_used() -> None:
    split = host("a", 6, "L4", nvlink_domain="0-3,4-7", zone="z")
    [node] = nodes_of(Topology((split,)), 0)
    assert (node.count, dict(node.labels)) == (6, {"zone": "z"})
    [node] = nodes_of(Topology((replace(split, gpus=8),)), 0)
    assert node.labels["nvlink_domain"] == "0-3,4-7"


# Replicas on CPUs


def test_replicas_on_cpus_are_whole_on_a_host_each_and_one_alone_has_a_stage_on_each() -> None:
    topology = Topology((host("a"), host("b")))
    one, *_ = planned(spec_of(cpu_pool(1, 1, 2)), topology)
    assert sorted(where(one, topology)["m0-serve-0"]) == ["a", "b"]
    two, *_ = planned(spec_of(cpu_pool(2, 1, 2)), topology)
    assert sorted(where(two, topology).values()) == [["a", "a"], ["b", "b"]]


def test_there_is_always_room_for_a_stage_on_a_cpu() -> None:
    topology = Topology((host("a"), host("b")))
    placement, *_ = planned(spec_of(cpu_pool(1, 4), cpu_pool(3, 2)), topology)
    assert not placement.unplaced


def test_replicas_on_cpus_stay_where_they_are_when_a_host_joins() -> None:
    reserved = {f"m0-serve-{number}": ("id-a",) for number in range(4)}
    topology = Topology((host("a"), host("b")), reserved)
    placement, *_ = planned(spec_of(cpu_pool(6)), topology)
    assert where(placement, topology) == {
        **{slot: ["a"] for slot in reserved},
        "m0-serve-4": ["b"],
        "m0-serve-5": ["b"],
    }


def test_counts_that_are_open_are_one() -> None:
    spec = spec_of(PoolSpec(Role.SERVE, AUTO, Device.CPU, AUTO, 1), gpu_pool(AUTO))
    assert cpu_parts_of(spec, Topology((host("a"),))) == {"id-a": 1}
    assert cpu_parts_of(spec_of(gpu_pool()), Topology((host("a"),))) == {}
    assert cpu_parts_of(spec_of(cpu_pool(2, 3)), Topology(())) == {}


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(1, 5),
)
def test_any_replicas_on_cpus_find_a_place_on_any_hosts(pools: list[tuple[int, int, int]], hosts: int) -> None:
    topology = Topology(tuple(host(f"h{number}") for number in range(hosts)))
    placement, gangs, nodes = planned(spec_of(*(cpu_pool(*pool) for pool in pools)), topology)
    check(placement, gangs, nodes)
    assert not placement.unplaced


# Gangs


def test_a_pool_runs_on_the_kinds_that_it_names_or_on_all_gpus_that_there_are() -> None:
    topology = Topology((host("a", 1, "L4"), host("b", 4, "H100-80GB"), host("c")))
    spec = spec_of(gpu_pool(2, 2, 3), gpu_pool(1, 1, 1, 0.5, "H200", "L4"), cpu_pool())
    assert gangs_of(spec, nodes_of(topology, 1)) == [
        Gang("m0-serve-0", "m0", Role.SERVE, ("H100-80GB", "L4"), 2, 3),
        Gang("m0-serve-1", "m0", Role.SERVE, ("H100-80GB", "L4"), 2, 3),
        Gang("m1-serve-0", "m1", Role.SERVE, ("H200", "L4"), share=0.5),
        Gang("m2-serve-0", "m2", Role.SERVE, ("cpu",)),
    ]


def test_without_any_gpu_the_reason_says_so() -> None:
    placement, *_ = planned(spec_of(gpu_pool(), cpu_pool()), Topology((host("a"), host("b"))))
    [left] = placement.unplaced
    assert left.reasons[0].words == "0 of 2 nodes have gpu (there are 2 with cpu)"


# What is reserved


def test_reservations_have_devices_of_their_own_in_one_domain_and_shares_go_together() -> None:
    gangs = [gang("a", 2), gang("b", share=0.25), gang("c", 2), gang("d", share=0.5), gang("e", share=0.5)]
    nodes = (Node("n", "H100", 8, {"nvlink_domain": "0-2,3-7"}),)
    pairs, lone = dict.fromkeys("ac", ("id-n",) * 2), dict.fromkeys("bde", ("id-n",))
    kept = kept_of(Topology((host("n", 8, "H100"),), pairs | lone), gangs, nodes)
    assert kept == (
        on("a", ("n", (0, 1))),
        on("b", ("n", (5,))),
        on("c", ("n", (3, 4))),
        on("d", ("n", (2,))),
        on("e", ("n", (2,))),
    )
    assert place(gangs, nodes, kept, movable=False).placed == kept


def test_left_out_is_what_is_on_a_host_that_is_gone_or_is_not_of_the_gangs_size_or_kind() -> None:
    topology = Topology(
        (host("n", 4, "H100"), host("l", 2, "L4"), host("o", 1, "H100")),
        {
            "gone": ("id-gone",),
            "size": ("id-n",),
            "kind": ("id-l",),
            "torn": ("id-n", "id-o"),
            "stays": ("id-n", "id-n"),
            "other": ("id-n",),
        },
    )
    gangs = [gang("gone"), gang("size", 2), gang("kind"), gang("torn", 2), gang("stays", 1, 2)]
    kept = kept_of(topology, gangs, nodes_of(topology, 0))
    assert kept == (on("stays", ("n", (0,)), ("n", (1,))),)


def test_more_than_a_host_has_is_not_kept() -> None:
    topology = Topology((host("n", 3, "H100"),), {"a": ("id-n",) * 2, "b": ("id-n",) * 2})
    kept = kept_of(topology, [gang("a", 2), gang("b", 2)], nodes_of(topology, 0))
    assert [placed.gang_id for placed in kept] == ["a"]


def test_a_pipeline_that_is_not_kept_leaves_its_devices_to_others() -> None:
    topology = Topology(
        (host("n", 2, "H100"), host("o", 1, "H100")), {"a": ("id-n", "id-n", "id-o", "id-o"), "b": ("id-n", "id-n")}
    )
    kept = kept_of(topology, [gang("a", 2, 2), gang("b", 1, 2)], nodes_of(topology, 0))
    assert kept == (on("b", ("n", (0,)), ("n", (1,))),)


# Always


@st.composite
def clusters(draw: st.DrawFn) -> tuple[ClusterSpec, Topology]:
    """Sizes that divide each other, as of others the reservations of a host don't tell how they fit together."""
    hosts = []
    for number in range(draw(st.integers(1, 5))):
        gpus = draw(st.sampled_from([0, 1, 2, 4, 8]))
        labels = {"zone": draw(st.sampled_from("ab")), "rack": draw(st.sampled_from("xy"))}
        if gpus == 8 and draw(st.booleans()):
            labels["nvlink_domain"] = "0-3,4-7"
        hosts.append(Host(f"id{number}", f"h{number}", gpus, draw(st.sampled_from(KINDS)), 4, labels=labels))
    pools = []
    for _ in range(draw(st.integers(1, 3))):
        replicas, tp, pp = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 4])), draw(st.integers(1, 3))
        if draw(st.booleans()):
            share = draw(st.sampled_from([1.0, 0.25, 0.5])) if tp == pp == 1 else 1.0
            pools.append(gpu_pool(replicas, tp, pp, share, *draw(st.sampled_from([(), ("L4",), KINDS]))))
        else:
            pools.append(cpu_pool(replicas, tp, pp))
    return spec_of(*pools), Topology(tuple(hosts))


@given(clusters())
def test_planning_again_what_was_carried_out_moves_nothing(given_: tuple[ClusterSpec, Topology]) -> None:
    spec, topology = given_
    first, gangs, nodes = planned(spec, topology)
    after = carried_out(first, topology)
    again, gangs, nodes = planned(spec, after)
    kept = kept_of(after, gangs, nodes)
    assert {placed.gang_id for placed in kept} == {placed.gang_id for placed in first.placed}
    assert moves(kept, again.placed).empty
    assert where(again, topology) == where(first, topology)


@given(clusters(), st.data())
def test_no_host_gets_more_than_it_has_whatever_is_reserved_on_it(
    given_: tuple[ClusterSpec, Topology], data: st.DataObject
) -> None:
    spec, topology = given_
    ids = [each.host_id for each in topology.hosts] + ["gone"]
    slots = [each.gang_id for each in gangs_of(spec, ())]
    reserved = data.draw(
        st.dictionaries(st.sampled_from(slots), st.lists(st.sampled_from(ids), max_size=6).map(tuple), max_size=6)
    )
    placement, gangs, nodes = planned(spec, replace(topology, reserved=reserved))
    check(placement, gangs, nodes)
    held: dict[str, float] = {}
    for placed in placement.placed:
        wanted = next(each for each in gangs if each.gang_id == placed.gang_id)
        hosts = host_ids(placed, topology)
        assert len(hosts) == wanted.pipeline_parallel
        if wanted.devices != ("cpu",):
            for host_id in hosts:
                held[host_id] = held.get(host_id, 0) + wanted.tensor_parallel * parts_of(wanted.share)
    assert all(held.get(each.host_id, 0) <= each.gpus * WHOLE for each in topology.hosts)
