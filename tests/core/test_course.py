"""On the way from one specification to another: how it ends, and what turns it back, whatever is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.course import Aim, Course, Phase
from orchestrator.core.errors import ConfigError
from orchestrator.core.rollout import MOST_STARTS, Goal, PoolKey, Step, pool_of
from orchestrator.core.slots import Kind, ObservedActor, Slot, SlotHistory, slots_of
from orchestrator.core.spec import ClusterSpec, ModelSpec, PoolSpec, Role
from orchestrator.core.types import ActorSnapshot, WorkerState

POOL: PoolKey = ("m", Role.SERVE)


def aim(name: str, replicas: int = 2, model: str = "m", *, makes_room: bool = False) -> Aim:
    """Of a specification whose workers are made of ``name``."""
    pools = {Role.SERVE: PoolSpec(Role.SERVE, replicas=replicas)}
    spec = ClusterSpec("c", (ModelSpec(model, "x", pools),))
    slots = slots_of(spec)
    versions = {pool_of(slot): name for slot in slots if slot.kind is Kind.WORKER}
    return Aim(spec, f"digest of {name}", Goal(slots, versions, spec.controller.rollout, makes_room=makes_room))


OLD, NEW = aim("old"), aim("new")


def actor(slot_id: str, ready_at: float = 0.0, **word: str) -> ObservedActor:
    of_gateway = slot_id.startswith("gateway")
    slot = Slot(slot_id, Kind.GATEWAY) if of_gateway else Slot(slot_id, Kind.WORKER, "m", Role.SERVE)
    return ObservedActor(slot, 1, ActorSnapshot(WorkerState.READY, **word), 0.0, 100.0, ready_at)  # type: ignore[arg-type]


def gateway(**word: str) -> ObservedActor:
    return actor("gateway-0", **word)


def look(course: Course, *actors: ObservedActor, lost: tuple[ObservedActor, ...] = (), complete: bool = False) -> bool:
    step = Step((), frozenset(), frozenset(), (), 1, 2, complete)
    return course.saw(step, [(each, "it died") for each in lost], actors, 100.0)


def rolling() -> Course:
    course = Course(OLD)
    course.change(NEW)
    return course


def test_at_its_end_it_has_come_from_nowhere() -> None:
    course = rolling()
    assert (course.spec, course.previous, course.progress.total) == (NEW.spec, OLD.spec, 2)
    assert not look(course)
    assert (course.progress.phase, course.progress.done) == (Phase.ROLLING, 1)
    assert look(course, complete=True)
    assert (course.progress.phase, course.previous) == (Phase.DONE, None)
    assert not look(course, complete=True), "that is told once"


def test_it_is_not_at_its_end_before_all_gateways_serve_it() -> None:
    course = rolling()
    assert not look(course, gateway(serves=OLD.digest), complete=True)
    starting = replace(gateway(serves=OLD.digest), snapshot=ActorSnapshot(WorkerState.STARTING, serves=OLD.digest))
    assert not look(course, gateway(serves=OLD.digest), starting, complete=True)
    assert look(course, gateway(serves=NEW.digest), starting, gateway(), complete=True)
    assert course.progress.phase is Phase.DONE


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_fails_again_and_again_turns_it_back_with_room_as_before(replicas: int) -> None:
    course = Course(aim("old", replicas))
    course.change(aim("new", replicas))
    broken = replace(actor("m-serve-0"), ready_at=None)
    for _ in range(MOST_STARTS - 1):
        assert not look(course, lost=(broken,))
    assert look(course, lost=(broken,))
    assert (course.progress.phase, course.spec, course.previous) == (
        Phase.ROLLING_BACK,
        aim("old", replicas).spec,
        None,
    )
    assert course.back == f"m-serve-0 failed {MOST_STARTS} times: it died"
    assert course.aim.goal.makes_room
    assert not look(course, lost=(broken, broken, broken)), "there is nowhere further back"
    assert look(course, complete=True)
    assert (course.progress.phase, course.back) == (Phase.ROLLED_BACK, "")


def test_losses_in_pools_that_are_as_they_were_speak_against_nothing() -> None:
    course = Course(OLD)
    course.change(replace(aim("old"), digest="only the gateway's part differs"))
    broken = actor("m-serve-0", ready_at=99.0)
    assert not look(course, lost=(broken, broken, broken))
    assert course.progress.phase is Phase.ROLLING


def test_a_gateway_that_refuses_it_turns_it_back_and_one_that_refused_another_does_not() -> None:
    course = rolling()
    assert not look(course, gateway(refuses="something else", detail="of then"))
    assert look(course, gateway(refuses=NEW.digest, detail="no such template"))
    assert course.back == "gateway-0: no such template"


def test_a_second_change_waits_for_the_first_but_for_the_way_back_and_from_there() -> None:
    course = rolling()
    with pytest.raises(ConfigError, match="an upgrade is rolling"):
        course.turns_back_for("another")
    assert course.turns_back_for(OLD.digest)
    course.turn_back("that was asked for")
    assert (course.progress.phase, course.back) == (Phase.ROLLING_BACK, "that was asked for")
    assert not course.turns_back_for("another")
    course.change(aim("another"))
    assert (course.progress.phase, course.previous, course.back) == (Phase.ROLLING, OLD.spec, "")


def test_a_pool_without_room_for_a_spare_is_told_and_stays_so_on_the_way_back() -> None:
    course = Course(OLD)
    course.change(NEW, full=[POOL])
    outdated = [actor(slot.slot_id, version="old") for slot in OLD.goal.slots if slot.kind is Kind.WORKER]
    assert not any("spare" in slot.slot_id for slot in course.step(outdated, 100.0).slots)
    course.turn_back("it failed")
    outdated = [actor(each.slot.slot_id, version="new") for each in outdated]
    assert not any("spare" in slot.slot_id for slot in course.step(outdated, 100.0).slots)
    later = Course(NEW, OLD)
    assert any("spare" in slot.slot_id for slot in later.step([actor("m-serve-0", version="old")], 100.0).slots)


def test_on_its_way_it_expects_nothing_that_is_only_to_come() -> None:
    course = Course(OLD)
    second = aim("new", model="second").spec.models
    new = replace(NEW, spec=replace(NEW.spec, models=(*NEW.spec.models, *second)))
    assert course.expected == OLD.spec
    course.change(new)
    assert [model.name for model in course.expected.models] == ["m"]
    look(course, complete=True)
    assert [model.name for model in course.expected.models] == ["m", "second"]


def test_failures_of_what_a_slot_was_filled_with_before_are_forgiven() -> None:
    past = SlotHistory(fillings=3, failures=2, not_before=200.0, backoff=8.0)
    course = rolling()
    assert course.forgiven({"m-serve-0": past, "gateway-0": past}) == {
        "m-serve-0": SlotHistory(fillings=3),
        "gateway-0": past,
    }
    grown = Course(OLD)
    grown.change(aim("old", replicas=3))
    assert grown.forgiven({"m-serve-0": past})["m-serve-0"].failures == 0
    assert Course(NEW, OLD).forgiven({"m-serve-0": past}) == course.forgiven({"m-serve-0": past})
    shrunk = Course(OLD)
    shrunk.change(aim("old", replicas=1))
    assert shrunk.forgiven({"m-serve-0": past}) == {"m-serve-0": past}


EVENTS = st.sampled_from(("look", "complete", "lost", "refuses", "ask another", "ask back", "ask the same"))


@given(st.lists(EVENTS, max_size=30))
def test_whatever_comes_it_is_at_one_of_two_specifications_and_goes_back_only_to_where_it_came_from(
    events: list[str],
) -> None:
    course, came_from, number = Course(OLD), OLD.spec, 0
    for event in events:
        before = course.progress.phase
        if event.startswith("ask"):
            number += event == "ask another"
            wanted = {"ask another": f"v{number}", "ask the same": course.aim.goal.versions[POOL]}
            new = OLD if event == "ask back" else aim(wanted[event])
            try:
                back = course.turns_back_for(new.digest)
            except ConfigError:
                assert before is Phase.ROLLING
                continue
            if back:
                assert before is Phase.ROLLING
                course.turn_back("asked for")
            else:
                came_from = course.spec
                course.change(new)
        else:
            lost = (actor("m-serve-0", ready_at=99.0),) if event == "lost" else ()
            seen = [gateway(refuses=course.aim.digest)] if event == "refuses" else []
            turned = look(course, *seen, lost=lost, complete=event == "complete")
            assert turned is (course.progress.phase is not before)
        phase = course.progress.phase
        assert (course.previous is not None) is (phase is Phase.ROLLING)
        assert course.previous in (None, came_from)
        assert bool(course.back) is (phase is Phase.ROLLING_BACK)
        assert phase not in (Phase.ROLLING_BACK, Phase.ROLLED_BACK) or course.spec == came_from
