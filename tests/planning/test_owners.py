"""Pools on hosts of their own, as labels of these say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.planning.hosts import Host, Topology, cpu_parts_of, gangs_of, kept_of, misfits, nodes_of
from orchestrator.core.planning.owners import MODEL, NOBODY, ROLE, Owner, label_of, owner_for, selector_of
from orchestrator.core.planning.places import Constraint, Gang, Node
from orchestrator.core.planning.placing import place
from orchestrator.core.spec import ClusterSpec, GatewaySpec, ModelSpec, PoolSpec, Role
from tests.planning.support import check, gang, on, where, words

ROLES = (Role.PREFILL, Role.DECODE)


def own(name: str, count: int = 8, model: str = "", role: str = "") -> Node:
    labels = {MODEL: model, ROLE: role}
    return Node(name, "H100", count, {label: value for label, value in labels.items() if value})


def test_a_pool_with_nodes_of_its_own_is_on_these_alone_and_others_are_on_none_of_them() -> None:
    nodes = [own("big", 8, "m", "decode"), own("small", 1, "m", "prefill"), own("free", 8)]
    gangs = [
        gang("m-prefill-0", role=Role.PREFILL),
        gang("m-prefill-1", role=Role.PREFILL),
        gang("m-decode-0", 4, role=Role.DECODE),
        gang("n-serve-0", 8, model="n"),
        gang("n-serve-1", 2, model="n"),
    ]
    placement = place(gangs, nodes)
    check(placement, gangs, nodes)
    assert [(each.gang_id, each.stages[0][0]) for each in placement.placed] == [
        ("m-prefill-0", "small"),
        ("m-decode-0", "big"),
        ("n-serve-0", "free"),
    ]
    assert [left.gang_id for left in placement.unplaced] == ["m-prefill-1", "n-serve-1"]
    assert all(left.reasons[-1].constraint is Constraint.OWNER for left in placement.unplaced)
    assert "2 of 3 nodes are for other pools, by their labels segue.io/model and segue.io/role" in words(placement)


def test_what_is_kept_on_another_pools_node_is_placed_anew() -> None:
    nodes = [own("d", 4, "m", "decode"), own("p", 4, "m", "prefill")]
    there = on("m-decode-0", ("p", (0,)))
    placement = place([gang("m-decode-0", role=Role.DECODE)], nodes, [there])
    assert where(placement, "m-decode-0") == ["d"]


def test_labels_may_name_a_model_alone_or_a_role_alone() -> None:
    owners = {Owner("m", "decode"), Owner("m"), Owner(role="prefill"), NOBODY}
    assert owner_for("m", Role.DECODE, owners) == Owner("m", "decode")
    assert owner_for("m", Role.SERVE, owners) == Owner("m")
    assert owner_for("n", Role.PREFILL, owners) == Owner(role="prefill")
    assert owner_for("n", Role.DECODE, owners) == NOBODY


def test_a_model_whose_name_can_be_no_label_has_another_there() -> None:
    name = "Qwen/Qwen3-8B"
    owner = Owner(label_of(name), "decode")
    assert label_of(name) != label_of("qwen-qwen3-8b") == "qwen-qwen3-8b"
    assert owner_for(name, Role.DECODE, {owner}) == owner
    assert owner_for("qwen-qwen3-8b", Role.DECODE, {owner}) == NOBODY


def test_ray_is_told_to_choose_by_the_same_labels() -> None:
    owners = {Owner("m", "decode"), Owner("m", "prefill"), NOBODY}
    assert selector_of(Owner("m", "decode"), owners) == {MODEL: "m", ROLE: "decode"}
    assert selector_of(NOBODY, owners) == {MODEL: "!in(m)", ROLE: "!in(decode,prefill)"}
    assert selector_of(Owner("m"), {*owners, Owner("m")}) == {MODEL: "m", ROLE: "!in(decode,prefill)"}
    assert selector_of(NOBODY, {NOBODY}) == {}


def pods(role: Role, count: int) -> list[Host]:
    labels = {MODEL: "m", ROLE: role.value}
    return [Host(f"id-{role}-{number}", f"{role}-{number}", cpus=4, labels=labels) for number in range(count)]


@given(st.integers(1, 4), st.integers(1, 4))
def test_of_pods_for_a_replica_each_on_cpus_each_gets_one(prefill: int, decode: int) -> None:
    counts = dict(zip(ROLES, (prefill, decode), strict=True))
    pools = {role: PoolSpec(role, count) for role, count in counts.items()}
    spec = ClusterSpec("c", (ModelSpec("m", "none", pools),), gateway=GatewaySpec(processes=1))
    topology = Topology(tuple(each for role, count in counts.items() for each in pods(role, count)))
    nodes = nodes_of(topology, cpu_parts_of(spec, topology))
    placement = place(gangs_of(spec, nodes), nodes)
    assert sorted(placed.stages[0][0] for placed in placement.placed) == sorted(node.name for node in nodes)
    assert all(placed.stages[0][0].startswith(placed.gang_id.split("-")[1]) for placed in placement.placed)


def test_what_runs_on_another_pools_host_holds_it_all_the_same() -> None:
    """From before the hosts had labels."""
    topology = Topology(
        (
            Host("id-d", "d", 1, "L4", labels={MODEL: "m", ROLE: "decode"}),
            Host("id-p", "p", 1, "L4", labels={MODEL: "m", ROLE: "prefill"}),
        ),
        {"m-decode-0": ("id-p",)},
    )
    nodes = nodes_of(topology, 0)
    gangs = [Gang("m-decode-0", "m", Role.DECODE, ("L4",)), Gang("m-prefill-0", "m", Role.PREFILL, ("L4",))]
    assert kept_of(topology, gangs, nodes) == ()
    assert misfits(topology, gangs, ()) == gangs[:1]


@given(
    st.lists(st.tuples(st.sampled_from(["", "m", "n"]), st.sampled_from(["", *ROLES]), st.integers(1, 4)), max_size=6),
    st.lists(st.tuples(st.sampled_from(["m", "n", "o"]), st.sampled_from(ROLES), st.integers(1, 2)), max_size=6),
)
def test_no_pool_is_ever_on_anothers_node(
    hosts: list[tuple[str, str, int]], wanted: list[tuple[str, Role, int]]
) -> None:
    nodes = [own(f"n{number}", count, model, role) for number, (model, role, count) in enumerate(hosts)]
    gangs = [gang(f"g{number}", tp, model=model, role=role) for number, (model, role, tp) in enumerate(wanted)]
    placement = place(gangs, nodes)
    check(placement, gangs, nodes)
    by_name, by_id = {each.name: each for each in nodes}, {each.gang_id: each for each in gangs}
    for placed in placement.placed:
        whose, labels = by_id[placed.gang_id], by_name[placed.stages[0][0]].labels
        assert labels.get(MODEL, whose.model) == whose.model
        assert labels.get(ROLE, whose.role) == whose.role
        closer = [
            each for each in nodes if each.labels.get(MODEL) == whose.model and each.labels.get(ROLE) == whose.role
        ]
        assert not closer or by_name[placed.stages[0][0]] in closer
    assert place(gangs, nodes[::-1], placement.placed).placed == placement.placed
