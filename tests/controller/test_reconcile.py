"""Properties of the plan: conservation, safety, liveness; and the few exact numbers that people rely on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.readiness import cluster_ready, reports
from orchestrator.core.reconcile import Plan, backoff_seconds, plan
from orchestrator.core.slots import Kind, Limits, Observed, ObservedActor, Slot, SlotHistory, slots_of
from orchestrator.core.spec import ClusterSpec, GatewaySpec, ModelSpec, PoolSpec, Role
from orchestrator.core.types import ActorSnapshot, WorkerState

LIMITS = Limits(backoff_initial=1, backoff_max=60, start_timeout=600, stable_after=60, silence=30)
SERVING = (WorkerState.READY, WorkerState.DRAINING)
SLOTS = tuple(
    [Slot(f"m-{role}-{index}", Kind.WORKER, "m", role) for role in (Role.PREFILL, Role.DECODE) for index in range(2)]
    + [Slot(f"gateway-{index}", Kind.GATEWAY) for index in range(2)]
)

moments = st.floats(0, 2000, allow_nan=False)


@st.composite
def actors(draw: st.DrawFn) -> ObservedActor:
    state = draw(st.sampled_from(WorkerState))
    ready = state in (*SERVING, WorkerState.DEAD)
    return ObservedActor(
        slot=draw(st.sampled_from(SLOTS)),
        epoch=draw(st.integers(1, 9)),
        snapshot=ActorSnapshot(state, detail=draw(st.sampled_from(["", "out of memory"]))),
        changed_at=draw(moments),
        heard_at=draw(moments),
        ready_at=draw(moments) if ready else None,
        leaving=draw(st.booleans()),
    )


histories = st.builds(
    SlotHistory,
    fillings=st.integers(0, 9),
    failures=st.integers(0, 200),
    not_before=moments,
    backoff=st.floats(0, 60),
)
observations = st.builds(
    Observed,
    epoch=st.integers(9, 99),
    actors=st.lists(actors(), max_size=8, unique_by=lambda actor: actor.key).map(tuple),
    histories=st.dictionaries(st.sampled_from([slot.slot_id for slot in SLOTS]), histories),
)
desires = st.lists(st.sampled_from(SLOTS), unique=True).map(tuple)
cases = given(desired=desires, observed=observations, now=moments)


def actor_of(slot: Slot, state: WorkerState, at: float = 0.0, *, epoch: int = 1, **more: object) -> ObservedActor:
    ready_at = at if state in SERVING else None
    return replace(ObservedActor(slot, epoch, ActorSnapshot(state), at, at, ready_at), **more)  # type: ignore[arg-type]


def observed(*seen: ObservedActor, epoch: int = 9, **history: SlotHistory) -> Observed:
    return Observed(epoch, seen, {name.replace("_", "-"): past for name, past in history.items()})


# ---- conservation


@cases
def test_each_desired_slot_is_in_exactly_one_bucket(desired: tuple[Slot, ...], observed: Observed, now: float) -> None:
    made = plan(desired, observed, now, LIMITS)
    placed = [*made.start, *(wait.slot for wait in made.wait), *(actor.slot for actor in made.keep)]
    assert sorted(slot.slot_id for slot in placed) == sorted(slot.slot_id for slot in desired)


@cases
def test_each_observed_actor_is_in_exactly_one_bucket(
    desired: tuple[Slot, ...], observed: Observed, now: float
) -> None:
    made = plan(desired, observed, now, LIMITS)
    removed = [removal.actor for removal in made.remove]
    placed = [*made.keep, *made.drain, *made.hold, *removed, *made.leaving]
    assert sorted(actor.key for actor in placed) == sorted(actor.key for actor in observed.actors)


# ---- safety


@cases
def test_a_slot_is_filled_only_where_nobody_is_and_its_backoff_is_over(
    desired: tuple[Slot, ...], observed: Observed, now: float
) -> None:
    occupied = {actor.slot.slot_id for actor in observed.actors}
    for slot in plan(desired, observed, now, LIMITS).start:
        assert slot.slot_id not in occupied
        assert observed.histories.get(slot.slot_id, SlotHistory()).not_before <= now


@cases
def test_an_actor_that_serves_is_never_ended_without_draining(
    desired: tuple[Slot, ...], observed: Observed, now: float
) -> None:
    for removal in plan(desired, observed, now, LIMITS).remove:
        silent = now - removal.actor.heard_at >= LIMITS.silence
        assert removal.actor.state not in SERVING or silent


@cases
def test_what_is_kept_is_wanted_and_sound_and_has_its_slot_alone(
    desired: tuple[Slot, ...], observed: Observed, now: float
) -> None:
    keep = plan(desired, observed, now, LIMITS).keep
    assert {actor.slot for actor in keep} <= set(desired)
    assert len({actor.slot for actor in keep}) == len(keep)
    assert not any(actor.leaving or actor.state in (WorkerState.FAILED, WorkerState.DEAD) for actor in keep)


@cases
def test_the_epoch_grows_by_one_exactly_when_something_is_ordered(
    desired: tuple[Slot, ...], observed: Observed, now: float
) -> None:
    made = plan(desired, observed, now, LIMITS)
    ordered = bool(made.start or made.drain or made.remove)
    assert made.epoch == observed.epoch + (1 if ordered else 0)


@cases
def test_every_loss_costs_its_slot_a_backoff_within_the_limits(
    desired: tuple[Slot, ...], observed: Observed, now: float
) -> None:
    made = plan(desired, observed, now, LIMITS)
    for removal in made.remove:
        if removal.lost:
            past = made.histories[removal.actor.slot.slot_id]
            assert LIMITS.backoff_initial <= past.not_before - now + 1e-6
            assert past.not_before - now <= LIMITS.backoff_max + 1e-6
            assert past.detail


@cases
def test_at_the_end_workers_go_on_while_a_gateway_is_there(
    desired: tuple[Slot, ...], observed: Observed, now: float
) -> None:
    made = plan((), observed, now, LIMITS)
    gateways = [actor for actor in observed.actors if actor.slot.kind is Kind.GATEWAY]
    assert not made.start
    if gateways:
        assert all(actor.slot.kind is Kind.GATEWAY for actor in made.drain)
    else:
        assert not made.hold


# ---- liveness: a world that obeys every order comes to rest whole


def obey(made: Plan, now: float, *, failing: frozenset[str] = frozenset()) -> Observed:
    """The world at ``now``, all orders carried out; who was started is ready, or has failed if in ``failing``."""
    kept = [replace(actor, heard_at=now) for actor in (*made.keep, *made.hold)]
    started = [
        actor_of(slot, WorkerState.FAILED if slot.slot_id in failing else WorkerState.READY, now, epoch=made.epoch)
        for slot in made.start
    ]
    return Observed(made.epoch, (*kept, *started), made.histories)


@cases
def test_an_obedient_world_becomes_what_is_desired_and_stays_so(
    desired: tuple[Slot, ...], observed: Observed, now: float
) -> None:
    now += 2000  # past every backoff there is
    start_timeout_and_all_after_it = int(LIMITS.start_timeout / LIMITS.backoff_max) + 4
    for _ in range(start_timeout_and_all_after_it):
        made = plan(desired, observed, now, LIMITS)
        now += LIMITS.backoff_max
        observed = obey(made, now)
    assert {actor.slot for actor in made.keep} == set(desired)
    assert not any((made.start, made.wait, made.drain, made.remove, made.hold, made.leaving))


def test_a_slot_that_always_fails_is_tried_at_growing_intervals_and_never_given_up() -> None:
    slot = SLOTS[0]
    seen, now, tries = Observed(0, (), {}), 0.0, []
    while len(tries) < 12:
        made = plan((slot,), seen, now, LIMITS)
        tries += [now] * len(made.start)
        seen = obey(made, now, failing=frozenset({slot.slot_id}))
        now = made.wake_at if made.wake_at is not None else now
    gaps = [late - early for early, late in pairwise(tries)]
    assert gaps == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]


# ---- exact cases


def test_a_long_ready_actor_starts_its_backoff_anew_and_a_flapping_one_does_not() -> None:
    slot = SLOTS[0]
    past = SlotHistory(fillings=6, failures=5)
    for ready_for, expected in ((LIMITS.stable_after, 1), (LIMITS.stable_after - 1, 32)):
        dead = actor_of(slot, WorkerState.DEAD, 100, ready_at=100.0)
        made = plan((slot,), Observed(9, (dead,), {slot.slot_id: past}), 100 + ready_for, LIMITS)
        assert made.histories[slot.slot_id].backoff == expected


def test_a_start_that_takes_too_long_is_lost_with_what_it_was_busy_with() -> None:
    slow = actor_of(SLOTS[0], WorkerState.STARTING, 0, snapshot=ActorSnapshot(WorkerState.STARTING, "loading weights"))
    assert plan((SLOTS[0],), observed(slow), 599.9, LIMITS).keep == (slow,)
    [removal] = plan((SLOTS[0],), observed(slow), 600, LIMITS).remove
    assert removal.lost
    assert removal.reason == "not ready after 600 s; it was busy with: loading weights"


def test_a_reservation_may_wait_for_ever() -> None:
    waiting = actor_of(SLOTS[0], WorkerState.PENDING, 0)
    assert plan((SLOTS[0],), observed(waiting), 1e9, LIMITS).keep == (waiting,)


def test_a_replacement_waits_until_what_it_replaces_is_gone() -> None:
    dead = actor_of(SLOTS[0], WorkerState.DEAD, 0)
    first = plan((SLOTS[0],), observed(dead), 0, LIMITS)
    assert [removal.actor for removal in first.remove] == [dead]
    going = Observed(first.epoch, (replace(dead, leaving=True),), first.histories)
    later = plan((SLOTS[0],), going, 5, LIMITS)
    assert not later.start
    assert [wait.reason for wait in later.wait] == ["its last actor is not gone yet"]
    gone = plan((SLOTS[0],), Observed(later.epoch, (), later.histories), 5, LIMITS)
    assert gone.start == (SLOTS[0],)
    assert gone.epoch > first.epoch


def test_of_two_actors_in_one_slot_the_newer_stays() -> None:
    old, new = (actor_of(SLOTS[0], WorkerState.READY, epoch=epoch) for epoch in (3, 4))
    made = plan((SLOTS[0],), observed(new, old), 1, LIMITS)
    assert (made.keep, made.drain) == ((new,), (old,))


def test_backoff_does_not_overflow() -> None:
    assert backoff_seconds(10_000, LIMITS) == LIMITS.backoff_max


# ---- slots and readiness


def spec_of(*models: ModelSpec, processes: int = 1) -> ClusterSpec:
    return ClusterSpec("test", models, gateway=GatewaySpec(processes=processes))


def apart(name: str) -> ModelSpec:
    return ModelSpec(name, "none", {role: PoolSpec(role) for role in (Role.PREFILL, Role.DECODE)})


def test_slot_ids_are_file_names_that_never_change() -> None:
    ids = [slot.slot_id for slot in slots_of(spec_of(apart("smollm2-135m"), apart("org/big model"), processes=2))]
    assert ids == [
        "smollm2-135m-prefill-0",
        "smollm2-135m-decode-0",
        "org-big-model-prefill-0",
        "org-big-model-decode-0",
        "gateway-0",
        "gateway-1",
    ]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True))
def test_slot_ids_are_unique_whatever_models_are_called(names: list[str]) -> None:
    ids = [slot.slot_id for slot in slots_of(spec_of(*(apart(name) for name in names)))]
    assert len(set(ids)) == len(ids)
    assert not any(set(slot_id) & set("/@ \0") for slot_id in ids)


@pytest.mark.parametrize("missing", range(3))
def test_the_cluster_is_ready_when_every_pool_and_a_gateway_is(missing: int) -> None:
    spec = spec_of(apart("m"))
    slots = slots_of(spec)
    ready = [actor_of(slot, WorkerState.READY) for slot in slots]
    assert cluster_ready(spec, reports(slots, observed(*ready)))
    ready[missing] = actor_of(slots[missing], WorkerState.DRAINING)
    assert not cluster_ready(spec, reports(slots, observed(*ready)))
    del ready[missing]
    assert not cluster_ready(spec, reports(slots, observed(*ready)))


def test_a_cluster_whose_gateways_are_others_to_start_is_ready_without_one() -> None:
    spec = spec_of(apart("m"))
    spec = replace(spec, gateway=replace(spec.gateway, processes=0))
    slots = slots_of(spec)
    assert not [slot for slot in slots if slot.kind is Kind.GATEWAY]
    ready = [actor_of(slot, WorkerState.READY) for slot in slots]
    assert cluster_ready(spec, reports(slots, observed(*ready)))
    assert not cluster_ready(spec, reports(slots, observed(*ready[:-1])))


def test_an_empty_slot_tells_of_its_last_loss() -> None:
    slots = slots_of(spec_of(apart("m")))
    failed = SlotHistory(fillings=3, failures=2, backoff=2, lost_as=WorkerState.FAILED, detail="no weights there")
    told = reports(slots, observed(m_prefill_0=failed))[0]
    assert (told.snapshot.state, told.snapshot.detail, told.restarts) == (WorkerState.FAILED, "no weights there", 2)
    assert told.snapshot.stage == "waits 2 s before the next try (failure 2 in a row)"
