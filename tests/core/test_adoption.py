"""What a controller that takes over makes of what it finds, and how soon one that was restarted begins."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.adoption import MUTE, Sighting, adopt, pause, slot_named
from orchestrator.core.reconcile import plan
from orchestrator.core.rollout import Goal, Seen, Trial, judged, pool_of
from orchestrator.core.slots import Kind, Limits, Observed, Slot
from orchestrator.core.spec import Role, RolloutSpec
from orchestrator.core.types import ActorSnapshot, WorkerState

LIMITS = Limits(backoff_initial=1, backoff_max=60, start_timeout=600, stable_after=60, silence=30)
SLOTS = (
    Slot("m-prefill-0", Kind.WORKER, "m", Role.PREFILL),
    Slot("m-decode-0", Kind.WORKER, "m", Role.DECODE),
    Slot("m-decode-1", Kind.WORKER, "m", Role.DECODE),
    Slot("gateway-0", Kind.GATEWAY),
)
NOW = 1000.0

words = st.none() | st.sampled_from([state for state in WorkerState if state is not WorkerState.PENDING]).map(
    lambda state: ActorSnapshot(state, address="127.0.0.1:7")
)
sightings = st.lists(
    st.builds(
        lambda slot_id, epoch, actor, word: Sighting(slot_id, epoch, actor, word if actor else None),
        st.sampled_from([*(slot.slot_id for slot in SLOTS), "m-decode-7", "gone-serve-0", "gateway-5"]),
        st.integers(1, 9),
        st.booleans(),
        words,
    ),
    unique_by=lambda sighting: (sighting.slot_id, sighting.epoch),
    max_size=8,
)


@given(sightings, st.integers(0, 20))
def test_whatever_is_found_the_first_plan_ends_nothing_wanted_that_serves_and_fills_no_slot_twice(
    found: list[Sighting], remembered: int
) -> None:
    adopted = adopt(found, SLOTS, remembered, NOW)
    assert [actor.key for actor in adopted.actors] == [(each.slot_id, each.epoch) for each in found]
    made = plan(SLOTS, Observed(adopted.epoch, adopted.actors, adopted.histories), NOW, LIMITS)
    there = {each.slot_id for each in found}
    assert not any(slot.slot_id in there for slot in made.start)
    newest = {
        slot.slot_id: max(
            (each.epoch for each in found if each.slot_id == slot.slot_id and serves(each)),
            default=0,
        )
        for slot in SLOTS
    }
    kept = {actor.key for actor in made.keep}
    later = {
        each.slot_id
        for each in found
        if each.actor and (each.word is None or each.word.state is WorkerState.STARTING)
        if each.epoch > newest.get(each.slot_id, 0)
    }
    for slot_id, epoch in newest.items():
        assert not epoch or (slot_id, epoch) in kept or slot_id in later
    assert made.epoch > max((each.epoch for each in found), default=0) or not (made.start or made.drain or made.remove)
    assert adopted.epoch >= max([remembered, *(each.epoch for each in found)])


def serves(sighting: Sighting) -> bool:
    return sighting.word is not None and sighting.word.state is WorkerState.READY


def test_what_is_only_reserved_is_on_its_way_out_and_what_says_nothing_is_waited_for() -> None:
    found = [
        Sighting("m-decode-0", 3, actor=False),
        Sighting("m-decode-1", 4, actor=True),
        Sighting("gateway-0", 4, actor=True, word=ActorSnapshot(WorkerState.READY, address="127.0.0.1:8000")),
    ]
    reserved, mute, gateway = adopt(found, SLOTS, 4, NOW).actors
    assert reserved.leaving
    assert (mute.state, mute.snapshot.stage, mute.leaving) == (WorkerState.STARTING, MUTE, False)
    assert (gateway.state, gateway.snapshot.address, gateway.heard_at) == (WorkerState.READY, "127.0.0.1:8000", NOW)
    assert adopt(found, SLOTS, 4, NOW).histories.keys() == {"m-decode-1", "gateway-0"}


@pytest.mark.parametrize(
    ("slot_id", "slot"),
    [
        ("m-decode-1", SLOTS[2]),
        ("m-decode-12", Slot("m-decode-12", Kind.WORKER, "m", Role.DECODE)),
        ("m-decode-spare-0", Slot("m-decode-spare-0", Kind.WORKER, "m", Role.DECODE)),
        ("gateway-9", Slot("gateway-9", Kind.GATEWAY)),
        ("other-serve-0", Slot("other-serve-0", Kind.WORKER)),
    ],
)
def test_a_slot_that_is_not_wanted_is_still_known_for_what_it_is(slot_id: str, slot: Slot) -> None:
    assert slot_named(slot_id, SLOTS) == slot


def test_the_first_replacement_begins_at_once_and_one_that_ends_again_and_again_ever_later() -> None:
    assert pause([]) == pause([5.0]) == pause([61.0] * 20) == 0
    waits = [pause([1.0] * lives) for lives in range(1, 12)]
    assert waits[:4] == [0, 1, 2, 4]
    assert all(before <= after for before, after in pairwise(waits))
    assert waits[-1] == 10


def test_what_has_proven_itself_before_the_takeover_needs_not_do_so_again() -> None:
    found = [
        Sighting("m-decode-0", 3, True, ActorSnapshot(WorkerState.READY, ready_for=60.0)),
        Sighting("m-decode-1", 4, True, ActorSnapshot(WorkerState.READY, ready_for=1.0)),
    ]
    old, new = adopt(found, SLOTS, 4, NOW).actors
    assert (old.ready_at, new.ready_at) == (NOW - 60, NOW - 1)
    goal = Goal(SLOTS, {}, RolloutSpec(health_seconds=10.0))
    verdicts = [
        judged(Trial(), goal, {pool_of(each.slot)}, Seen(((each, "it died"),)), NOW + 5).verdict for each in (old, new)
    ]
    assert verdicts == ["", "m-decode-1 was lost within 10 s: it died"]
