"""What holds for every placement, whatever the gangs and nodes."""

from __future__ import annotations

import random
import re
import time
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.planning.moves import apply, moves
from orchestrator.core.planning.places import Gang, Node, Placed, Placement
from orchestrator.core.planning.placing import place
from orchestrator.core.spec import Role
from tests.planning.support import can_all_be_placed, check, gang, node

KINDS = ("H100", "L4")
SPLITS = {1: [""], 2: ["", "0,1"], 3: ["", "0-1,2"], 4: ["", "0-1,2-3", "0+2,1+3"], 8: ["", "0-3,4-7", "rack-wide"]}


@st.composite
def some_nodes(draw: st.DrawFn, most: int, counts: tuple[int, ...]) -> list[Node]:
    found = []
    for place_ in range(draw(st.integers(0, most))):
        count = draw(st.sampled_from(counts))
        labels = {"zone": draw(st.sampled_from("ab")), "rack": draw(st.sampled_from("xy"))}
        split = draw(st.sampled_from(SPLITS[count]))
        kind = draw(st.sampled_from(KINDS))
        found.append(Node(f"n{place_}", kind, count, {**labels, **({"nvlink_domain": split} if split else {})}))
    return found


@st.composite
def some_gangs(draw: st.DrawFn, most: int, sizes: tuple[int, ...]) -> list[Gang]:
    found = []
    for place_ in range(draw(st.integers(0, most))):
        share = draw(st.sampled_from([1.0, 1.0, 1.0, 0.25, 0.5, 0.75, 1 / 3]))
        whole = share == 1.0
        found.append(
            gang(
                f"g{place_}",
                draw(st.sampled_from(sizes)) if whole else 1,
                draw(st.sampled_from([1, 1, 2, 3])) if whole else 1,
                share,
                model=draw(st.sampled_from("mk")),
                role=draw(st.sampled_from(list(Role))),
                devices=draw(st.sampled_from([("H100",), ("L4",), KINDS, KINDS[::-1]])),
            )
        )
    return found


TINY = (some_gangs(4, (1, 2, 3)), some_nodes(3, (1, 2, 3, 4)))
SMALL = (some_gangs(14, (1, 2, 3, 4, 8)), some_nodes(7, (2, 4, 8)))


@given(*SMALL)
@settings(max_examples=200)
def test_whole_or_absent_in_one_domain_and_never_oversubscribed(gangs: list[Gang], nodes: list[Node]) -> None:
    check(place(gangs, nodes), gangs, nodes)


@given(*SMALL)
@settings(max_examples=200)
def test_placing_again_changes_nothing(gangs: list[Gang], nodes: list[Node]) -> None:
    first = place(gangs, nodes)
    again = place(gangs, nodes, first.placed)
    assert again == first
    assert moves(first.placed, again.placed).empty


@given(*SMALL, st.integers(0, 1 << 30), st.booleans())
@settings(max_examples=200)
def test_from_any_earlier_state_it_is_valid_and_settles_at_once(
    gangs: list[Gang], nodes: list[Node], seed: int, movable: bool
) -> None:
    chance = random.Random(seed)
    earlier = place(gangs[::2], nodes[: chance.randint(0, len(nodes))])
    kept = [each for each in earlier.placed if chance.random() < 0.8]
    after = place(gangs, nodes, kept, movable=movable)
    check(after, gangs, nodes)
    if not movable:
        assert set(kept) <= set(after.placed)
    assert place(gangs, nodes, after.placed, movable=movable) == after
    change = moves(earlier.placed, after.placed)
    assert {each.gang_id: each for each in apply(earlier.placed, change)} == {
        each.gang_id: each for each in after.placed
    }


@given(*SMALL, some_nodes(1, (2, 4, 8)))
@settings(max_examples=200, derandomize=True)  # a search may stop at its bound, rarely
def test_another_node_never_displaces_what_was_placed(gangs: list[Gang], nodes: list[Node], more: list[Node]) -> None:
    before = place(gangs, nodes)
    added = [Node(f"more{place_}", each.device, each.count, each.labels) for place_, each in enumerate(more)]
    after = place(gangs, [*nodes, *added], before.placed)
    assert {each.gang_id for each in before.placed} <= {each.gang_id for each in after.placed}
    if not before.unplaced:
        assert moves(before.placed, after.placed).empty
        assert not place(gangs, [*nodes, *added]).unplaced  # nor does it when nothing is running yet


@given(*SMALL, st.integers(0, 1 << 30))
@settings(max_examples=100)
def test_the_order_of_the_input_makes_no_difference(gangs: list[Gang], nodes: list[Node], seed: int) -> None:
    chance = random.Random(seed)
    mixed_gangs, mixed_nodes = chance.sample(gangs, len(gangs)), chance.sample(nodes, len(nodes))
    assert set(place(mixed_gangs, mixed_nodes).placed) == set(place(gangs, nodes).placed)


@given(*TINY)
@settings(max_examples=300)
def test_all_are_placed_whenever_trying_everything_finds_a_way(gangs: list[Gang], nodes: list[Node]) -> None:
    placement = place(gangs, nodes)
    assert not placement.exhausted
    assert bool(placement.unplaced) != can_all_be_placed(gangs, nodes)


@given(st.integers(0, 1 << 30))
@settings(max_examples=200, derandomize=True)  # a search may stop at its bound, rarely
def test_what_was_cut_out_of_full_nodes_fits_back(seed: int) -> None:
    chance = random.Random(seed)
    nodes = [node(f"n{place_}", 8, chance.choice(KINDS)) for place_ in range(8)]
    pieces: Counter[tuple[str, int]] = Counter()
    for each in nodes:
        free = each.count
        while free:
            size = chance.randint(1, free)
            pieces[each.device, size] += 1
            free -= size
    gangs: list[Gang] = []
    for (kind, size), count in pieces.items():
        while count:
            stages = min(count, chance.randint(1, 3))
            kinds = (kind,) if chance.random() < 0.5 else tuple(chance.sample(KINDS, 2))
            gangs.append(gang(f"g{len(gangs)}", size, stages, devices=kinds))
            count -= stages
    placement = place(gangs, nodes)
    assert not placement.unplaced
    check(placement, gangs, nodes)


@given(*TINY, st.integers(0, 3))
@settings(max_examples=150)
def test_that_holds_with_gangs_already_there(gangs: list[Gang], nodes: list[Node], running: int) -> None:
    kept = place(gangs[:running], nodes).placed
    assert bool(place(gangs, nodes, kept).unplaced) != can_all_be_placed(gangs, nodes)


@given(*SMALL)
@settings(max_examples=200)
def test_whatever_has_no_place_says_why_in_numbers(gangs: list[Gang], nodes: list[Node]) -> None:
    placement = place(gangs, nodes)
    by_id = {each.gang_id: each for each in gangs}
    for each in placement.unplaced:
        assert each.reasons
        for reason in each.reasons:
            assert reason.found < reason.needed, reason
            assert f"{reason.needed:g}" in re.findall(r"[\d.]+", reason.words) or not reason.nodes
            assert set(reason.nodes) <= {node_.name for node_ in nodes}
        wanted = {node_.name for node_ in nodes if node_.device in by_id[each.gang_id].devices}
        assert {name for reason in each.reasons for name in reason.nodes} == wanted


def big(gangs: list[Gang], nodes: list[Node], kept: tuple[Placed, ...] = ()) -> Placement:
    start = time.perf_counter()
    placement = place(gangs, nodes, kept)
    assert time.perf_counter() - start < 2, "a thousand nodes take well below a second; twice that is a regression"
    return placement


def test_a_thousand_nodes_and_thousands_of_gangs() -> None:
    nodes = [node(f"n{place_}", zone="abc"[place_ % 3], rack=f"r{place_ // 24}") for place_ in range(1000)]
    gangs = [
        gang(f"{role}-{place_}", tp, model=f"m{place_ % 40}", role=role)
        for role, tp in ((Role.PREFILL, 1), (Role.DECODE, 2), (Role.SERVE, 4))
        for place_ in range(1100)
    ]
    gangs += [gang(f"wide-{place_}", 8, 2, model=f"w{place_ % 5}") for place_ in range(18)]
    placement = big(gangs, nodes)
    check(placement, gangs, nodes)
    assert not placement.unplaced
    assert big(gangs, nodes, placement.placed) == placement
    more = [*gangs, *(gang(f"late-{place_}", 8) for place_ in range(300))]
    full = big(more, nodes, placement.placed)
    check(full, more, nodes)
    assert full.unplaced
    assert not full.exhausted  # counting is enough to know
    assert not moves(placement.placed, full.placed).removed
