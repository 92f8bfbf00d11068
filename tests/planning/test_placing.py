"""Where gangs go: what a user expects to see of a plan, case by case."""

from __future__ import annotations

from collections import Counter

import pytest

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning import packing, repairing
from orchestrator.core.planning.places import Constraint, Gang, Placement
from orchestrator.core.planning.placing import place
from orchestrator.core.spec import Role
from tests.planning.support import check, cluster, gang, node, on, where, words

EIGHT = tuple(range(8))


def spread(placement: Placement, gangs: list[Gang], letters: int) -> Counter[str]:
    """How many gangs there are by the first letters of their nodes' names: 1 is a zone, 2 a rack, 3 a node."""
    return Counter(where(placement, each.gang_id)[0][:letters] for each in gangs)


# Tensor parallelism


def test_a_stage_stays_in_one_node() -> None:
    placement = place([gang("g", 8)], [node("n0", 4), node("n1", 4)])
    assert not placement.placed
    (reason,) = placement.unplaced[0].reasons
    assert (reason.constraint, reason.needed, reason.found) == (Constraint.NODE, 8, 4)
    assert reason.nodes == ("n0", "n1")
    assert reason.words == "tensor_parallel 8 needs 8 H100 in one node, n0, n1 have 4 at most"


def test_a_stage_stays_in_one_nvlink_domain_of_a_node() -> None:
    nodes = [node("n0", nvlink_domain="0-3,4-7")]
    assert place([gang("a", 4), gang("b", 4)], nodes).placed == (
        on("a", ("n0", (0, 1, 2, 3))),
        on("b", ("n0", (4, 5, 6, 7))),
    )
    placement = place([gang("g", 8)], nodes)
    assert placement.unplaced[0].reasons[0].constraint is Constraint.DOMAIN
    assert "needs 8 H100 in one node and NVLink domain, those of n0 have 4 at most" in words(placement)


def test_domains_need_not_be_in_a_row_and_a_device_in_none_is_alone() -> None:
    nodes = [node("n0", 5, nvlink_domain="0+2,1+3")]
    placement = place([gang("a", 2), gang("b", 2), gang("c", 2), gang("d")], nodes)
    assert placement.placed == (on("a", ("n0", (0, 2))), on("b", ("n0", (1, 3))), on("d", ("n0", (4,))))


def test_free_devices_in_two_domains_are_not_free_together() -> None:
    nodes = [node("n0", nvlink_domain="0-3,4-7")]
    kept = [on("a", ("n0", (0,))), on("b", ("n0", (4,)))]
    placement = place([gang("a"), gang("b"), gang("g", 4)], nodes, kept, movable=False)
    assert "n0 has 3 free in one NVLink domain at most" in words(placement)


# Pipelines


def test_stages_share_a_node_where_they_can() -> None:
    placement = place([gang("g", 2, 3)], cluster())
    assert len(set(where(placement, "g"))) == 1


def test_stages_share_an_nvlink_domain_over_nodes_before_a_rack() -> None:
    nodes = [
        node(f"n{number}", 4, zone="z", rack=str(number % 2), nvlink_domain=f"nvl{number // 3}") for number in range(6)
    ]
    assert where(place([gang("g", 4, 3)], nodes), "g") == ["n0", "n1", "n2"]


def test_stages_share_a_node_before_a_rack() -> None:
    fillers = [gang("f0", 4, model="f"), gang("f1", 4, model="f")]
    kept = [on("f0", ("a00", (0, 1, 2, 3))), on("f1", ("a01", (0, 1, 2, 3)))]
    placement = place([*fillers, gang("g", 4, 2)], cluster("a"), kept)
    assert where(placement, "g") == ["a10", "a10"]


def test_stages_share_a_node_that_is_split_before_a_rack() -> None:
    nodes = [node(f"n{number}", nvlink_domain="0-3,4-7") for number in range(2)]
    placement = place([gang("f", model="f"), gang("g", 4, 2)], nodes, [on("f", ("n0", (0,)))])
    assert where(placement, "g") == ["n1", "n1"]


def test_a_pipeline_goes_over_zones_only_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_STEPS", 0)  # which knows no zones
    placement = place([gang("g", 8, 3)], [*cluster("a", 1), *cluster("b", 1, nodes=1)])
    assert where(placement, "g") == ["a00", "a01", "b00"]


def test_a_pipeline_is_near_the_other_half_of_its_model() -> None:
    halves = [gang("p", 8, role=Role.PREFILL), gang("d", 4, 4, role=Role.DECODE)]
    kept = [on("p", ("a00", EIGHT))]
    in_rack = place(halves, [*cluster("a", nodes=3), *cluster("b", racks=3)], kept)
    assert {name[:2] for name in where(in_rack, "d")} == {"a0"}
    in_zone = place(halves, [*cluster("a", racks=3, nodes=1), *cluster("b", racks=4, nodes=1)], kept)
    assert {name[:1] for name in where(in_zone, "d")} == {"a"}


def test_stages_share_a_rack_and_else_a_zone() -> None:
    placement = place([gang("rack", 8, 2), gang("zone", 8, 4)], [*cluster("a"), *cluster("b", 1)])
    assert {name[0] for name in where(placement, "zone")} == {"a"}
    assert {name[:2] for name in where(placement, "rack")} == {"b0"}


def test_a_pipeline_is_whole_or_absent_and_says_how_many_stages_found_room() -> None:
    placement = place([gang("one", 4, 5), gang("two", 4)], [node("n0"), node("n1", 4), node("n2", 2)])
    assert [each.gang_id for each in placement.placed] == ["two"]
    found = placement.unplaced[0].reasons
    assert [(each.constraint, each.nodes) for each in found] == [
        (Constraint.NODE, ("n2",)),
        (Constraint.STAGES, ("n0", "n1")),
    ]
    assert found[1].words == "pipeline_parallel 5 needs 5 x 4 H100, n0, n1 have 3 x 4 in all"

    kept = [on("two", ("n1", (0, 1, 2, 3)))]
    late = place([gang("one", 4, 3), gang("two", 4)], [node("n0"), node("n1", 4)], kept)
    assert [(each.constraint, each.found) for each in late.unplaced[0].reasons] == [
        (Constraint.FREE, 0),
        (Constraint.STAGES, 2),
    ]


def test_all_stages_are_on_one_kind_of_device() -> None:
    nodes = [node("n0", 4, "H100"), node("n1", 4, "L4"), node("n2", 4, "L4")]
    placement = place([gang("g", 4, 2, devices=("H100", "L4"))], nodes)
    assert where(placement, "g") == ["n1", "n2"]


# Availability


def test_replicas_are_spread_over_zones_racks_and_nodes() -> None:
    gangs = [gang(f"g{number}", 2) for number in range(8)]
    placement = place(gangs, cluster("ab", racks=2, nodes=2))
    assert spread(placement, gangs, 1) == {"a": 4, "b": 4}
    assert set(spread(placement, gangs, 2).values()) == {2}


def test_two_replicas_never_share_a_node_if_there_are_two() -> None:
    gangs = [gang("g0", share=0.25), gang("g1", share=0.25)]
    assert len(spread(place(gangs, [node("n00"), node("n10")]), gangs, 3)) == 2


def test_a_large_pool_leaves_whole_nodes_free_for_large_gangs() -> None:
    gangs = [gang(f"g{number}") for number in range(16)]
    placement = place(gangs, [node(f"n{number:02}") for number in range(16)])
    assert set(spread(placement, gangs, 3).values()) == {4}


def test_other_pools_fill_the_gaps_first() -> None:
    gangs = [gang(f"{model}{number}", model=model) for model in "wxyz" for number in range(2)]
    placement = place(gangs, [node(f"n{number:02}") for number in range(8)])
    assert len(spread(placement, gangs, 3)) == 2


def test_spreading_gives_way_where_there_is_no_room() -> None:
    assert not place([gang(f"g{number}") for number in range(8)], [node("n0", 1), node("n1", 7)]).unplaced


# The two halves of a model


def test_each_decode_replica_has_a_prefill_replica_in_its_zone_and_prefers_its_rack() -> None:
    halves = [gang(f"p{number}", 2, role=Role.PREFILL) for number in range(2)]
    halves += [gang(f"d{number}", 2, role=Role.DECODE) for number in range(2)]
    placement = place(halves, cluster("abcd", racks=3))
    assert spread(placement, halves[:2], 2) == spread(placement, halves[2:], 2)
    assert len(spread(placement, halves, 1)) == 2


def test_the_other_halfs_rack_comes_before_a_better_fit() -> None:
    gangs = [gang("f", 7, model="f"), gang("p", 2, role=Role.PREFILL), gang("d", role=Role.DECODE)]
    kept = [on("f", ("a00", tuple(range(7)))), on("p", ("a10", (0, 1)))]
    assert where(place(gangs, cluster("a"), kept), "d")[0].startswith("a1")


def test_one_prefill_replica_keeps_its_decode_replicas_in_its_zone_on_nodes_of_their_own() -> None:
    prefill, decode = gang("p", 2, role=Role.PREFILL), [gang(f"d{number}", role=Role.DECODE) for number in range(4)]
    placement = place([prefill, *decode], cluster("abc"))
    assert spread(placement, decode, 1) == spread(placement, [prefill] * 4, 1)
    assert len(spread(placement, decode, 3)) == 4


def test_halves_on_different_kinds_are_near_each_other_too() -> None:
    nodes = [node("h", 8, "H100", zone="b"), node("la", 8, "L4", zone="a"), node("lb", 8, "L4", zone="b")]
    halves = [gang("p", role=Role.PREFILL, devices=("L4",)), gang("d", 2, role=Role.DECODE)]
    assert where(place(halves, nodes), "p") == ["lb"]


# Kinds of devices


def test_the_best_kind_that_has_room() -> None:
    nodes = [node("h", 1, "H100"), node("l", 1, "L4"), node("t", 1, "T4")]
    placement = place([gang(name, devices=("H100", "L4")) for name in "abc"], nodes)
    assert [where(placement, name) for name in "ab"] == [["h"], ["l"]]
    assert [reason.nodes for reason in placement.unplaced[0].reasons] == [("h",), ("l",)]


def test_who_has_a_choice_leaves_room_for_who_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "MOST_FAILURES", 0)  # from the start, and not by being moved
    monkeypatch.setattr(packing, "MOST_STEPS", 0)
    nodes = [node("h", 8, "H100"), node("l", 8, "L4")]
    gangs = [gang("big", 4, devices=("H100", "L4")), *(gang(f"g{number}") for number in range(8))]
    placement = place(gangs, nodes)
    assert not placement.unplaced
    assert where(placement, "big") == ["l"]


def test_a_kind_that_no_node_has_is_told_with_what_there_is() -> None:
    placement = place([gang("g", devices=("B200",))], [node("n0"), node("n1", device="L4")])
    assert words(placement) == "0 of 2 nodes have B200 (there are 1 with H100, 1 with L4)"
    assert "0 of 0 nodes" in words(place([gang("g")], []))


# Shares


def test_shares_of_one_device_add_up_to_it_and_no_further() -> None:
    gangs = [gang("a", share=0.25), gang("b", share=0.75), gang("c", share=0.5)]
    placement = place(gangs, [node("n0", 1)])
    assert [each.gang_id for each in placement.placed] == ["a", "b"]
    assert words(placement) == "a share of 0.5 needs as much of one H100, n0 has 0 left of one at most"
    check(placement, gangs, [node("n0", 1)])


def test_thirds_and_tenths_add_up() -> None:
    assert not place([gang(f"g{number}", share=1 / 3) for number in range(3)], [node("n0", 1)]).unplaced
    assert not place([gang(f"g{number}", share=0.1) for number in range(10)], [node("n0", 1)]).unplaced


def test_a_share_goes_where_the_least_is_left() -> None:
    kept = [on("a", ("n0", (0,))), on("b", ("n1", (1,)))]
    gangs = [gang("a", share=0.4, model="a"), gang("b", share=0.7, model="b"), gang("c", share=0.3)]
    assert place(gangs, [node("n0", 4), node("n1", 4)], kept).placed[2] == on("c", ("n1", (1,)))


def test_a_share_is_never_split_over_devices() -> None:
    gangs = [gang("a", share=0.6), gang("b", share=0.6), gang("c", share=0.6)]
    placement = place(gangs, [node("n0", 2)])
    assert len(placement.placed) == 2
    assert "n0 has 0.4 left of one at most" in words(placement)


def test_a_device_in_shared_use_is_not_free_for_a_whole_gang() -> None:
    assert len(place([gang("a", share=0.1), gang("b", 2)], [node("n0", 2)]).placed) == 1


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (gang("g", 2, share=0.5), "a share of 0.5 is of 1 device, and tensor_parallel 2 x pipeline_parallel 1 are 2"),
        (gang("g", 1, 3, share=0.5), "tensor_parallel 1 x pipeline_parallel 3 are 3"),
        (gang("g", share=0.0), "a share of 0, allowed: from 0.0001 to 1"),
        (gang("g", share=1.5), "a share of 1.5, allowed: from 0.0001 to 1"),
        (gang("g", devices=()), "found 0 kinds of devices"),
        (gang("g", 0), "tensor_parallel 0 and pipeline_parallel 1, allowed: 1 or more"),
    ],
)
def test_a_gang_that_makes_no_sense_is_refused_with_its_numbers(wrong: Gang, text: str) -> None:
    placement = place([wrong, gang("good")], [node("n0")])
    assert text in words(placement)
    assert [each.gang_id for each in placement.placed] == ["good"]


# What is no inventory


def test_a_node_without_devices_is_nobodys() -> None:
    placement = place([gang("g")], [node("empty", 0), node("n0", 1)])
    assert placement.placed == (on("g", ("n0", (0,))),)


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two gangs have the name g"):
        place([gang("g"), gang("g")], [])
    with pytest.raises(ConfigError, match="two nodes have the name n"):
        place([], [node("n"), node("n")])


def test_a_split_that_names_what_is_not_there_is_refused() -> None:
    for split, text in (("0-3,4-8", "4-8, of devices 0 to 7"), ("0-3,3-7", "device 3 twice"), ("3-0,4", "3-0")):
        with pytest.raises(ConfigError, match=text):
            place([], [node("n", nvlink_domain=split)])
