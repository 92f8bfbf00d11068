"""Sets of slots in parts are sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.slot_sets import (
    PART,
    alone,
    common,
    difference,
    flipped,
    gather,
    has,
    members,
    put,
    take,
    top,
)

SLOTS = st.integers(0, 5) | st.integers(PART - 2, PART + 2) | st.integers(3 * PART - 2, 3 * PART + 2)
SETS = st.sets(SLOTS, max_size=12)


def parts(slots: set[int]) -> tuple[int, ...]:
    made: list[int] = []
    for slot in slots:
        put(made, slot)
    return tuple(made)


@given(one=SETS, other=SETS, slot=SLOTS)
def test_they_are_sets(one: set[int], other: set[int], slot: int) -> None:
    assert set(members(parts(one))) == one
    assert has(parts(one), slot) == (slot in one)
    assert flipped(parts(one), slot) == parts(one ^ {slot})
    assert common(parts(one), parts(other)) == parts(one & other)
    assert difference(parts(one), parts(other)) == parts(one - other)
    assert set(members(parts(one | other), parts(other))) == one - other
    assert top(parts(one)) == max(one, default=-1) + 1
    assert alone(slot) == parts({slot})
    changed = list(parts(one))
    put(changed, slot)
    assert tuple(changed) == parts(one | {slot})
    take(changed, slot)
    assert tuple(changed) == parts(one - {slot})


@given(one=SETS, within=SETS, start=SLOTS, most=st.integers(0, 8), found=st.lists(SLOTS, max_size=3, unique=True))
def test_slots_are_gathered_from_a_start_on_downwards_and_then_from_the_highest(
    one: set[int], within: set[int], start: int, most: int, found: list[int]
) -> None:
    gathered = list(found)
    gather(parts(one), list(parts(within)), start, max(most, len(found)), gathered)
    both = sorted(one & within, reverse=True)
    turns = [slot for slot in both if slot <= start] + [slot for slot in both if slot > start]
    assert gathered == [*found, *(slot for slot in turns if slot not in found)][: max(most, len(found))]
