"""How tight gangs are packed, and what moves when gangs and nodes come and go."""

from __future__ import annotations

import pytest

from orchestrator.core.planning import packing
from orchestrator.core.planning.moves import moves
from orchestrator.core.planning.places import Placed, Unplaced
from orchestrator.core.planning.placing import place
from tests.planning.support import cluster, gang, node, on, where, words

# Fragmentation


def test_large_gangs_go_first_and_small_ones_where_they_just_fit() -> None:
    gangs = [*(gang(f"s{number}", model=f"m{number}") for number in range(4)), gang("l", 8), gang("m", 4)]
    placement = place(gangs, [node("n0"), node("n1")])
    assert not placement.unplaced
    assert where(placement, "l") != where(placement, "m")


def test_a_packing_that_going_large_first_misses_is_found() -> None:
    gangs = [gang(f"g{number}", size) for number, size in enumerate((5, 4, 3, 4, 3, 3, 2))]
    assert not place(gangs, [node("n0", 12), node("n1", 12)]).unplaced


def test_the_search_says_when_it_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gangs = [gang(f"g{number}", size) for number, size in enumerate((6, 5, 4, 3, 3, 3))]
    nodes = [node("n0", 12), node("n1", 12)]
    assert not place(gangs, nodes).unplaced
    monkeypatch.setattr(packing, "MOST_STEPS", 2)
    bounded = place(gangs, nodes)
    assert bounded.exhausted == bool(bounded.unplaced)


def test_one_gang_without_hope_does_not_keep_the_others_from_being_packed() -> None:
    gangs = [gang(f"g{number}", size) for number, size in enumerate((5, 4, 3, 4, 3, 3, 2, 99))]
    assert [each.gang_id for each in place(gangs, [node("n0", 12), node("n1", 12)]).unplaced] == ["g7"]


# Replans


def test_what_runs_stays_where_it_is_even_if_it_would_now_go_elsewhere() -> None:
    kept = [on("g0", ("n1", (5,))), on("g1", ("n1", (7,)))]
    placement = place([gang("g0"), gang("g1"), gang("g2")], [node("n0"), node("n1")], kept)
    change = moves(kept, placement.placed)
    assert [each.gang_id for each in change.kept] == ["g0", "g1"]
    assert [each.gang_id for each in change.added] == ["g2"]
    assert where(placement, "g2") == ["n0"]


def test_a_lost_node_moves_only_what_was_on_it() -> None:
    nodes = cluster()
    gangs = [gang(f"g{number}", 2) for number in range(12)]
    before = place(gangs, nodes)
    after = place(gangs, [each for each in nodes if each.name != "a00"], before.placed)
    moved = {old.gang_id for old, _ in moves(before.placed, after.placed).moved}
    assert not after.unplaced
    assert moved == {each.gang_id for each in gangs if where(before, each.gang_id) == ["a00"]}


@pytest.mark.parametrize(
    "gone",
    [
        on("g", ("n9", (0, 1))),  # no such node
        on("g", ("n0", (7, 8))),  # no such device
        on("g", ("n0", (0, 0))),  # one device twice
        on("g", ("n0", (3, 4))),  # over two domains
        on("g", ("n0", (0,))),  # another shape
        on("g", ("l0", (0, 1))),  # another kind
        on("g", ("n0", (0, 1)), ("n0", (2, 3))),
        on("g"),
    ],
)
def test_a_place_that_is_no_longer_valid_is_replaced(gone: Placed) -> None:
    nodes = [node("n0", nvlink_domain="0-3,4-7"), node("l0", device="L4")]
    placement = place([gang("g", 2)], nodes, [gone])
    assert placement.placed == (on("g", ("n0", (0, 1))),)


def test_stages_on_two_kinds_are_placed_anew() -> None:
    either = gang("g", 1, 2, devices=("H100", "L4"))
    placement = place([either], [node("h", 2), node("l", 2, "L4")], [on("g", ("h", (0,)), ("l", (0,)))])
    assert where(placement, "g") == ["h", "h"]


def test_two_that_claim_one_device_do_not_both_keep_it() -> None:
    kept = [on("a", ("n0", (0,))), on("b", ("n0", (0,)))]
    placement = place([gang("a"), gang("b")], [node("n0", 2)], kept)
    assert placement.placed == (on("a", ("n0", (0,))), on("b", ("n0", (1,))))


def test_room_is_made_by_moving_few() -> None:
    kept = [on("a", ("n0", (0,))), on("b", ("n1", (0,))), on("c", ("n1", (1,)))]
    gangs = [gang("a"), gang("b"), gang("c"), gang("big", 4)]
    nodes = [node("n0", 4), node("n1", 4)]
    change = moves(kept, place(gangs, nodes, kept).placed)
    assert [old.gang_id for old, _ in change.moved] == ["a"]
    assert [each.gang_id for each in change.added] == ["big"]
    fixed = place(gangs, nodes, kept, movable=False)
    assert moves(kept, fixed.placed).empty
    assert words(fixed) == "tensor_parallel 4 needs 4 H100 in one node, n0, n1 have 3 free at most"


def test_shares_move_together_for_a_gang_that_needs_a_whole_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_STEPS", 0)
    kept = [on("a", ("n0", (0,))), on("b", ("n1", (0,)))]
    gangs = [gang("a", share=0.5), gang("b", share=0.5), gang("whole")]
    placement = place(gangs, [node("n0", 1), node("n1", 1)], kept)
    assert not placement.unplaced
    assert len(moves(kept, placement.placed).moved) == 1


def test_many_with_a_choice_move_out_of_the_way_of_many_without() -> None:
    either = ("H100", "L4")
    nodes = [node(f"{kind}{number}", 8, kind) for kind in either for number in range(100)]
    kept = [on(f"either{number}", (f"H100{number}", tuple(range(8)))) for number in range(99)]
    gangs = [gang(f"either{number}", 8, devices=either) for number in range(99)]
    gangs += [gang(f"fixed{number}", model="f") for number in range(800)]
    placement = place(gangs, nodes, kept)
    assert not placement.unplaced
    assert len(moves(kept, placement.placed).moved) == 99


def test_the_one_that_has_somewhere_to_go_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_STEPS", 0)
    gangs = [gang("a"), gang("b", devices=("H100", "L4")), gang("c")]
    kept = [on("a", ("h", (0,))), on("b", ("h", (1,)))]
    change = moves(kept, place(gangs, [node("h", 2), node("l", 1, "L4")], kept).placed)
    assert [old.gang_id for old, _ in change.moved] == ["b"]


def test_the_smaller_of_two_moves() -> None:
    gangs = [gang("a"), gang("b", 2), gang("c", 2), gang("big", 3)]
    kept = [on("a", ("n0", (0,))), on("b", ("n0", (1, 2))), on("c", ("n1", (0, 1)))]
    change = moves(kept, place(gangs, [node("n0", 5), node("n1", 4)], kept).placed)
    assert [old.gang_id for old, _ in change.moved] == ["a"]
    assert [each.gang_id for each in change.added] == ["big"]


def test_a_search_for_a_tighter_packing_leaves_in_place_what_it_can() -> None:
    gangs = [gang(f"g{number}", size) for number, size in enumerate((2, 3, 3, 3, 2, 4, 2, 2, 3))]
    kept = [
        on("g0", ("n3", (0, 3))),
        on("g1", ("n2", (0, 2, 4))),
        on("g2", ("n2", (1, 3, 5))),
        on("g3", ("n3", (1, 4, 5))),
        on("g4", ("n1", (4, 5))),
        on("g5", ("n0", (1, 2, 3, 5))),
    ]
    placement = place(gangs, [node(f"n{number}", 6) for number in range(4)], kept)
    assert not placement.unplaced  # each device is taken
    assert [old.gang_id for old, _ in moves(kept, placement.placed).moved] == ["g0"]


def test_it_settles_where_one_gangs_move_leaves_room_for_another() -> None:
    either = ("L4", "H100")
    gangs = [
        gang("g2", 5, devices=either),
        gang("g3", share=0.5, devices=("L4",)),
        gang("g4", share=0.6, devices=either),
        gang("g8", share=0.5, devices=either),
        gang("g9", 1, 3, devices=("L4",)),
        gang("g10", 1, 3),
        gang("g11", share=0.6, devices=("L4",)),
        gang("g15", 4, 3, devices=either),
        gang("g16", 2, devices=either),
    ]
    nodes = [node("n0", 6, "L4"), *(node(f"n{number}", 4) for number in (1, 2, 4)), node("n5", 4, "L4")]
    kept = [
        on("g4", ("n0", (5,))),
        on("g8", ("n5", (2,))),
        on("g10", ("n1", (0,)), ("n1", (1,)), ("n1", (2,))),
        on("g16", ("n5", (0, 1))),
    ]
    placement = place(gangs, nodes, kept)
    assert moves(placement.placed, place(gangs, nodes, placement.placed).placed).empty


def test_nobody_is_displaced_for_another() -> None:
    kept = [on(f"g{number}", ("n0", (number,))) for number in range(4)]
    gangs = [*(gang(f"g{number}") for number in range(4)), gang("big", 4)]
    placement = place(gangs, [node("n0", 4)], kept)
    assert moves(kept, placement.placed).empty
    assert placement.unplaced == (Unplaced("big", placement.unplaced[0].reasons),)


def test_moves_are_told_in_buckets_and_the_order_of_devices_is_no_move() -> None:
    before = [on("a", ("n0", (0, 1))), on("b", ("n0", (2,))), on("c", ("n0", (3,)))]
    after = [on("a", ("n0", (1, 0))), on("b", ("n1", (2,))), on("d", ("n0", (4,)))]
    change = moves(before, after)
    assert ([each.gang_id for each in change.kept], change.moved) == (["a"], ((before[1], after[1]),))
    assert (change.added, change.removed) == ((after[2],), (before[2],))
    assert not change.empty
