"""What an operator hears: all that happened, once, and no more than can be read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.announcing import Announcement, Announcer, Pace
from orchestrator.core.slots import slots_of
from orchestrator.core.spec import Role
from orchestrator.core.types import WorkerState
from tests.core.scenes import World, spec_of

R = WorkerState
PACE = Pace(quiet=60.0, burst=20, refill=5.0, placing=10.0)
PD = {Role.PREFILL: 1, Role.DECODE: 2}
NO_ROOM = "no node has 8 GPUs free"


class Listener:
    """An announcer whose every word is kept."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = 1000.0
        self._announcer = Announcer(PACE)
        self.heard: list[Announcement] = []
        self.step(0.0)

    def step(self, seconds: float = 1.0) -> list[str]:
        """Reasons that are told now."""
        self.now += seconds
        told = self._announcer.step(self.world.scene, self.now)
        self.heard += told
        return [each.reason for each in told]


@pytest.fixture
def world() -> World:
    return World(spec_of(m=PD))


def test_a_model_is_ready_once_all_its_pools_are(world: World) -> None:
    it = Listener(world)
    world.be("m-prefill-0", R.READY)
    world.be("m-decode-0", R.STARTING)
    assert it.step() == []
    world.be("m-decode-0", R.READY)
    assert it.step() == ["ModelReady"]
    assert it.heard[-1].note == "m is ready: prefill 1/1, decode 1/2"
    world.be("m-decode-1", R.READY)
    assert it.step() == [], "it was ready before"


def test_a_model_without_a_pools_last_worker_is_a_warning(world: World) -> None:
    it = Listener(world.all_ready())
    world.lose("m-prefill-0", "its process is gone: exit code 137", it.now)
    world.gone("m-prefill-0")
    assert it.step() == ["ModelNotReady", "WorkerLost"]
    assert [each.warning for each in it.heard] == [True, True]
    assert it.heard[0].note == "m has no worker for prefill"
    assert it.heard[1].note == "m-prefill-0: its process is gone: exit code 137"


def test_one_that_flaps_is_told_as_it_is_in_the_end(world: World) -> None:
    it = Listener(world.all_ready())
    world.be("m-prefill-0", R.STARTING)
    assert it.step() == ["ModelNotReady"]
    for _ in range(20):
        world.be("m-prefill-0", R.READY)
        assert it.step() == []
        world.be("m-prefill-0", R.STARTING)
        assert it.step() == []
    world.be("m-prefill-0", R.READY)
    it.step()
    assert it.step(PACE.quiet) == ["ModelReady"]
    assert it.step(PACE.quiet) == []


def test_a_crash_loop_is_told_now_and_then_with_how_often(world: World) -> None:
    it = Listener(world.all_ready())
    for turn in range(6):
        world.lose("m-decode-0", f"exit code {turn}", it.now)
        world.gone("m-decode-0")
        it.step(5.0)
        world.be("m-decode-0", R.STARTING, anew=True)
        it.step(5.0)
    it.step(PACE.quiet)
    lost = [each.note for each in it.heard if each.reason == "WorkerLost"]
    assert lost == ["m-decode-0: exit code 0", "m-decode-0 (5 times): exit code 5"]


def test_many_lost_at_once_are_one_announcement() -> None:
    world = World(spec_of(m={Role.SERVE: 500})).all_ready()
    it = Listener(world)
    for slot in slots_of(world.spec):
        world.lose(slot.slot_id, "its node is gone", it.now)
        world.gone(slot.slot_id)
    it.step()
    (lost,) = [each for each in it.heard if each.reason == "WorkerLost"]
    assert lost.note == "m-serve-0, m-serve-1, m-serve-2, 497 more: its node is gone"


def test_one_that_was_lost_and_is_removed_later_did_not_drain(world: World) -> None:
    it = Listener(world.all_ready())
    world.lose("m-decode-0", "no answer for 10 s", it.now)
    assert it.step() == ["WorkerLost"]
    world.gone("m-decode-0")
    assert it.step() == []


def test_one_that_is_taken_out_on_purpose_drained(world: World) -> None:
    it = Listener(world.all_ready())
    world.be("m-decode-0", R.DRAINING)
    assert it.step() == []
    world.be("m-decode-0", R.STARTING, anew=True)
    assert it.step() == ["WorkerDrained"]
    assert it.heard[-1].note == "m-decode-0: finished what it had, and ended"
    assert not it.heard[-1].warning
    world.gone("m-decode-0")
    assert it.step() == [], "it had not served yet"


def test_what_has_no_place_is_said_after_a_while_and_once(world: World) -> None:
    it = Listener(world.all_ready())
    world.be("m-decode-1", R.PENDING, NO_ROOM, anew=True)
    it.step()
    assert "WorkerNotPlaced" not in it.step(PACE.placing - 1)
    assert it.step(1.0) == ["WorkerNotPlaced"]
    assert it.heard[-1].note == f"m-decode-1: waits for a place: {NO_ROOM}"
    assert it.step(600.0) == []
    world.be("m-decode-1", R.STARTING)
    assert it.step(600.0) == []
    world.be("m-decode-1", R.PENDING, NO_ROOM, anew=True)
    it.step()
    assert it.step(PACE.placing) == ["WorkerNotPlaced"]


def test_an_upgrade_is_told_from_its_begin_to_its_end(world: World) -> None:
    it = Listener(world.all_ready())
    world.upgrade = ("rolling", 0, 3, "")
    assert it.step() == ["UpgradeBegun"]
    assert it.heard[-1].note == "3 of 3 workers become those of another configuration"
    world.upgrade = ("rolling", 2, 3, "")
    assert it.step() == []
    world.upgrade = ("done", 3, 3, "")
    assert it.step() == ["UpgradeDone"]


def test_a_failed_upgrade_says_why_and_that_it_is_back(world: World) -> None:
    it = Listener(world.all_ready())
    world.upgrade = ("rolling", 0, 3, "")
    it.step()
    why = "m-decode-0 failed 2 times: no such file"
    world.upgrade = ("rolling back", 1, 3, why)
    assert it.step() == ["UpgradeFailed"]
    world.upgrade = ("rolled back", 3, 3, why)
    assert it.step() == ["UpgradeRolledBack"]
    assert all(why in each.note and each.warning for each in it.heard[-2:])


def test_who_takes_over_says_so_and_nothing_of_what_was_there_before() -> None:
    world = World(spec_of(m=PD), term=3).all_ready()
    world.lose("m-decode-0", "long ago", 0.0)
    world.upgrade = ("rolling", 1, 3, "")
    it = Listener(world)
    assert [each.reason for each in it.heard] == ["ControllerTookOver"]
    assert it.step() == []
    assert not Listener(World(spec_of(m=PD), term=1)).heard


def test_the_end_is_told_once_and_its_workers_are_not(world: World) -> None:
    it = Listener(world.all_ready())
    world.ending = True
    assert it.step() == ["ClusterDraining"]
    for slot in slots_of(world.spec):
        world.gone(slot.slot_id)
        assert it.step() == []


def test_a_note_is_never_longer_than_kubernetes_takes(world: World) -> None:
    it = Listener(world.all_ready())
    world.lose("m-decode-0", "ß" * 3000, it.now)
    it.step()
    assert len(it.heard[-1].note.encode()) <= 1024
    assert it.heard[-1].note.endswith("...")


def test_one_that_is_back_where_it_was_told_to_be_is_not_told_again(world: World) -> None:
    it = Listener(world.all_ready())
    world.be("m-prefill-0", R.STARTING)
    assert it.step() == ["ModelNotReady"]
    world.be("m-prefill-0", R.READY)
    it.step()
    world.be("m-prefill-0", R.STARTING)
    it.step()
    assert it.step(PACE.quiet) == []


def test_one_that_found_its_place_before_its_turn_is_not_told_to_wait(world: World) -> None:
    it = Listener(world.all_ready())
    for _ in range(2):  # the second time it has to wait until it may be told
        world.be("m-decode-1", R.PENDING, NO_ROOM, anew=True)
        it.step()
        it.step(PACE.placing)
        world.be("m-decode-1", R.STARTING)
        it.step()
    assert it.step(PACE.quiet) == []
    assert [each.reason for each in it.heard].count("WorkerNotPlaced") == 1


def test_a_hundred_models_at_once_are_told_one_after_the_other() -> None:
    world = World(spec_of(**{f"m{number}": {Role.SERVE: 1} for number in range(100)}))
    it = Listener(world)
    world.all_ready()
    assert len(it.step()) == PACE.burst
    assert [len(it.step(PACE.refill)) for _ in range(5)] == [1, 1, 1, 1, 1]
    for _ in range(100):
        it.step(PACE.refill)
    assert len({each.note for each in it.heard}) == 100


slots = [slot.slot_id for slot in slots_of(spec_of(a=PD, b=PD, c=PD))]
happenings = st.lists(
    st.tuples(
        st.sampled_from(slots),
        st.sampled_from(["ready", "starting", "lose", "drain", "pending"]),
        st.sampled_from([0.1, 1.0, 7.0, 30.0]),
    ),
    max_size=150,
)


@settings(max_examples=150, deadline=None)
@given(happenings)
def test_in_any_weather_it_keeps_its_pace_and_ends_with_how_things_are(
    weather: list[tuple[str, str, float]],
) -> None:
    world = World(spec_of(a=PD, b=PD, c=PD))
    it = Listener(world)
    told: list[tuple[float, str, str]] = []
    losses = 0
    for slot_id, what, seconds in weather:
        if what == "lose" and slot_id in world.actors:
            losses += 1
            world.lose(slot_id, "gone", it.now)
            world.gone(slot_id)
        elif what == "drain" and slot_id in world.actors:
            world.gone(slot_id)
        elif what in ("ready", "starting", "pending"):
            state = WorkerState(what)
            world.be(slot_id, state, NO_ROOM if state is R.PENDING else "")
        before = len(it.heard)
        it.step(seconds)
        told += [(it.now, each.reason, each.note) for each in it.heard[before:]]
    for _ in range(20):
        before = len(it.heard)
        it.step(30.0)
        told += [(it.now, each.reason, each.note) for each in it.heard[before:]]
    for at, _, _ in told:
        window = [each for each in told if at <= each[0] < at + PACE.refill * 10]
        assert len(window) <= PACE.burst + 10
    counted = sum(count_of(note) for _, reason, note in told if reason == "WorkerLost")
    assert counted == losses, "every loss is in some announcement"
    for model in ("a", "b", "c"):
        states = [reason for _, reason, note in told if reason.startswith("Model") and note.startswith(model)]
        pools = world.scene.of_model()[model]
        ready = all(pool.ready for pool in pools)
        assert (states[-1] == "ModelReady" if states else False) == ready


def count_of(note: str) -> int:
    names = note.partition(": ")[0].split(", ")
    assert not any("more" in name for name in names), "pools here have no more than three workers"
    return sum(int(name.partition("(")[2].partition(" ")[0]) if "(" in name else 1 for name in names)


def test_nothing_is_kept_of_workers_that_are_gone_as_soon_as_they_are_lost(world: World) -> None:
    announcer = Announcer()
    announcer.step(world.all_ready().scene, 0.0)
    for at in range(50):
        world.lose("m-decode-0", "its node is gone", float(at))
        world.gone("m-decode-0")
        announcer.step(world.scene, float(at))
        world.be("m-decode-0", R.READY, anew=True)
        announcer.step(world.scene, at + 0.5)
    assert not announcer._lost


def test_a_reason_that_is_no_text_is_told_as_well_as_it_goes(world: World) -> None:
    announcer = Announcer()
    announcer.step(world.all_ready().scene, 0.0)
    world.lose("m-decode-0", "it said \udcff", 1.0)
    assert [each.note for each in announcer.step(world.scene, 1.0)] == ["m-decode-0: it said ?"]
