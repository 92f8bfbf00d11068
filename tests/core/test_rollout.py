"""A rollout in any weather: never too few that serve, never too many, and an end that is one version or the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import rollout
from orchestrator.core.reconcile import Plan, plan
from orchestrator.core.rollout import Goal, PoolKey, Seen, Trial, is_spare, pool_of
from orchestrator.core.slots import Kind, Limits, Observed, ObservedActor, Slot, slots_of
from orchestrator.core.spec import ClusterSpec, GatewaySpec, ModelSpec, PoolSpec, Role
from orchestrator.core.spec import RolloutSpec as Pace
from orchestrator.core.types import ActorSnapshot, WorkerState

LIMITS = Limits(backoff_initial=1, backoff_max=4, start_timeout=600, stable_after=4)
GATE = 10.0
OLD, NEW = "old", "new"


def goal_of(replicas: dict[str, dict[Role, int]], version: str, pace: Pace, unchanged: Iterable[Role] = ()) -> Goal:
    """``replicas``: by model and role."""
    models = tuple(
        ModelSpec(name, "none", {role: PoolSpec(role, count) for role, count in pools.items()})
        for name, pools in replicas.items()
    )
    slots = slots_of(ClusterSpec("test", models, gateway=GatewaySpec(processes=1)))
    pools = {pool_of(slot) for slot in slots if slot.kind is Kind.WORKER}
    return Goal(slots, {key: OLD if key[1] in tuple(unchanged) else version for key in pools}, pace)


@dataclass
class World:
    """A cluster that carries every order out, sooner or later. ``chance`` says how it fares."""

    goal: Goal
    chance: Random
    now: float = 1000.0
    epoch: int = 1
    actors: list[ObservedActor] = field(default_factory=list)
    histories: dict[str, object] = field(default_factory=dict)
    lost: tuple[tuple[ObservedActor, str], ...] = ()

    @staticmethod
    def at_rest(goal: Goal, chance: Random) -> World:
        world = World(goal, chance)
        world.actors = [
            ObservedActor(slot, 1, ActorSnapshot(WorkerState.READY, version=_made_of(goal, slot)), 0.0, world.now, 0.0)
            for slot in goal.slots
        ]
        return world

    def look(self) -> tuple[rollout.Step, Plan]:
        """One look and its orders, which are begun."""
        self.actors = [replace(actor, heard_at=self.now) for actor in self.actors]
        step = rollout.step(self.goal, self.actors, self.now)
        seen = Observed(self.epoch, tuple(self.actors), self.histories)  # type: ignore[arg-type]
        made = plan(step.slots, seen, self.now, LIMITS, replace=step.replace, stay=step.stay)
        going = {actor.key for actor in made.drain} | {removal.actor.key for removal in made.remove}
        self.actors = [self._told(actor, actor.key in going) for actor in self.actors]
        self.actors += [
            ObservedActor(
                slot,
                made.epoch,
                ActorSnapshot(WorkerState.PENDING, version=_made_of(self.goal, slot)),
                self.now,
                self.now,
            )
            for slot in made.start
        ]
        self.epoch, self.histories = made.epoch, dict(made.histories)
        self.lost = tuple((removal.actor, removal.reason) for removal in made.remove if removal.lost)
        return step, made

    def _told(self, actor: ObservedActor, going: bool) -> ObservedActor:
        if not going or actor.leaving:
            return actor
        return self._enter(replace(actor, leaving=True), WorkerState.DRAINING)

    def _enter(self, actor: ObservedActor, state: WorkerState) -> ObservedActor:
        ready = self.now if state is WorkerState.READY else actor.ready_at
        snapshot = replace(actor.snapshot, state=state)
        return replace(actor, snapshot=snapshot, changed_at=self.now, heard_at=self.now, ready_at=ready)

    def goes_on(self, *, fails: float = 0.0, dies: float = 0.0, slow: float = 0.0) -> None:
        """Some seconds: starts come up or fail, drains end, and some that serve die."""
        self.now += self.chance.choice([0.1, 1.0, 5.0])
        self.actors = [later for actor in self.actors for later in self._later(actor, fails, dies, slow)]

    def _later(self, actor: ObservedActor, fails: float, dies: float, slow: float) -> list[ObservedActor]:
        if self.chance.random() < slow:
            return [actor]
        if actor.leaving:
            return []
        if actor.state in (WorkerState.PENDING, WorkerState.STARTING):
            state = WorkerState.FAILED if self.chance.random() < fails else WorkerState.READY
            return [self._enter(actor, state)]
        if actor.state is WorkerState.READY and self.chance.random() < dies:
            return [self._enter(actor, WorkerState.DEAD)]
        return [actor]

    def serving(self, actors: Iterable[ObservedActor]) -> Counter[PoolKey]:
        return Counter(
            pool_of(actor.slot) for actor in actors if actor.state is WorkerState.READY and not actor.leaving
        )

    def versions(self) -> set[str]:
        return {actor.snapshot.version for actor in self.actors if actor.slot.kind is Kind.WORKER}


def _made_of(goal: Goal, slot: Slot) -> str:
    return goal.versions.get(pool_of(slot), "")


counts = st.integers(1, 3)
pools = st.one_of(
    st.fixed_dictionaries({Role.PREFILL: counts, Role.DECODE: counts}), st.fixed_dictionaries({Role.SERVE: counts})
)
clusters = st.dictionaries(st.sampled_from(["m", "n"]), pools, min_size=1)
paces = st.sampled_from([Pace(1, 0, GATE), Pace(0, 1, GATE), Pace(2, 1, GATE), Pace(2, 0, GATE)])
chances = st.integers(0, 2**32).map(Random)


@settings(max_examples=150, deadline=None)
@given(old=clusters, new=clusters, pace=paces, chance=chances, fails=st.sampled_from([0.0, 0.3, 1.0]))
def test_in_any_weather_enough_serve_nothing_is_doubled_and_it_ends_as_the_new_or_as_the_old(
    old: dict[str, dict[Role, int]], new: dict[str, dict[Role, int]], pace: Pace, chance: Random, fails: float
) -> None:
    before, after = goal_of(old, OLD, pace), goal_of(new, NEW, pace)
    world, trial = World.at_rest(before, chance), Trial()
    world.goal = after
    changed = frozenset(after.versions)
    most = sizes(before) | sizes(after)
    for _ in range(40):
        look_and_check(world, most, pace)
        if world.goal is after:
            trial = rollout.judged(trial, after, changed, Seen(world.lost), world.now)
            world.goal = before if trial.verdict else after
        world.goes_on(fails=fails if world.goal is after else 0.1, dies=0.02, slow=0.3)
    if fails == 1.0 and world.goal is after:
        return  # it may just not have come to a second try
    for _ in range(100):
        step, _ = look_and_check(world, most, pace)
        world.goes_on()
    assert step.complete
    assert world.versions() == ({OLD} if world.goal is before else {NEW})
    assert {actor.slot for actor in world.actors} == set(world.goal.slots)


def sizes(goal: Goal) -> Counter[PoolKey]:
    return Counter(pool_of(slot) for slot in goal.slots if slot.kind is Kind.WORKER)


def look_and_check(world: World, most: Counter[PoolKey], pace: Pace) -> tuple[rollout.Step, Plan]:
    """One look, which may drain only what can be spared, and start only as many as may be there."""
    ready = world.serving(world.actors)
    step, made = world.look()
    wanted = sizes(world.goal)
    for key in {pool_of(actor.slot) for actor in made.drain}:
        if key in wanted:
            left = world.serving(world.actors)[key]
            drained = sum(pool_of(actor.slot) == key and actor.key in step.replace for actor in made.drain)
            assert not drained or left >= wanted[key] - pace.unavailable, (key, ready[key], left)
    there = Counter(pool_of(actor.slot) for actor in world.actors if actor.slot.kind is Kind.WORKER)
    for key, count in there.items():
        assert count <= most[key] + pace.surge, (key, count)
    assert max(Counter(actor.slot.slot_id for actor in world.actors).values(), default=1) == 1
    return step, made


def rolled(old: Goal, new: Goal, rounds: int = 200) -> tuple[World, list[tuple[float, str, str]]]:
    """A quiet rollout to its end, and what it did: (when, start or drain, slot id)."""
    world = World.at_rest(old, Random(1))
    world.goal = new
    did: list[tuple[float, str, str]] = []
    for _ in range(rounds):
        step, made = world.look()
        did += [(world.now, "drain", actor.slot.slot_id) for actor in made.drain]
        did += [(world.now, "start", slot.slot_id) for slot in made.start]
        if step.complete:
            return world, did
        world.now += 1.0
        world.goes_on()
    raise AssertionError("it does not end")


def only(did: list[tuple[float, str, str]]) -> list[str]:
    return [f"{what} {slot_id}" for _, what, slot_id in did]


def test_one_replica_after_the_other_is_replaced_while_a_spare_stands_in() -> None:
    pace = Pace(1, 0, GATE)
    _, did = rolled(goal_of({"m": {Role.SERVE: 2}}, OLD, pace), goal_of({"m": {Role.SERVE: 2}}, NEW, pace))
    assert only(did) == [
        "start m-serve-spare-0",
        "drain m-serve-0",
        "start m-serve-0",
        "drain m-serve-1",
        "start m-serve-1",
        "drain m-serve-spare-0",
    ]
    times = dict(zip(only(did), (at for at, _, _ in did), strict=True))
    assert times["drain m-serve-1"] - times["start m-serve-0"] >= GATE


def test_of_a_model_one_pool_is_replaced_after_the_other() -> None:
    pace = Pace(1, 0, 0.0)
    both = {"m": {Role.PREFILL: 1, Role.DECODE: 1}}
    _, did = rolled(goal_of(both, OLD, pace), goal_of(both, NEW, pace))
    roles = [slot_id.split("-")[1] for _, _, slot_id in did]
    assert roles == sorted(roles, reverse=True)


def test_an_unchanged_pool_is_left_alone() -> None:
    pace = Pace(1, 0, 0.0)
    both = {"m": {Role.PREFILL: 2, Role.DECODE: 2}}
    world, did = rolled(goal_of(both, OLD, pace), goal_of(both, NEW, pace, unchanged=[Role.PREFILL]))
    assert all("prefill" not in slot_id for _, _, slot_id in did)
    assert world.versions() == {OLD, NEW}


def test_a_pool_that_shrinks_drains_only_what_is_too_many() -> None:
    pace = Pace(1, 0, 0.0)
    _, did = rolled(goal_of({"m": {Role.SERVE: 3}}, OLD, pace), goal_of({"m": {Role.SERVE: 1}}, OLD, pace))
    assert sorted(only(did)) == ["drain m-serve-1", "drain m-serve-2"]


def test_one_pool_in_place_of_two_serves_before_they_go() -> None:
    pace = Pace(1, 0, GATE)
    apart, together = {"m": {Role.PREFILL: 1, Role.DECODE: 1}}, {"m": {Role.SERVE: 1}}
    for old, new in ((apart, together), (together, apart)):
        _, did = rolled(goal_of(old, OLD, pace), goal_of(new, NEW, pace))
        whats = [what for _, what, _ in did]
        assert whats == sorted(whats, reverse=True), did  # all starts before all drains


def test_where_there_is_no_room_for_a_spare_a_replica_is_missing_instead_and_of_one_it_is_refused() -> None:
    pace = Pace(1, 0, GATE)
    for count, verdict in ((2, ""), (1, "there is no room for m-serve-spare-0, and its pool has one replica: full")):
        goal = goal_of({"m": {Role.SERVE: count}}, NEW, pace)
        spare = Slot("m-serve-spare-0", Kind.WORKER, "m", Role.SERVE)
        waits = ObservedActor(spare, 2, ActorSnapshot(WorkerState.PENDING, "full"), 100.0, 100.0)
        changed = frozenset(goal.versions)
        early = rollout.judged(Trial(), goal, changed, Seen(waiting=(waits,)), 100.0 + rollout.ROOM_SECONDS - 1)
        assert early == Trial()
        late = rollout.judged(Trial(), goal, changed, Seen(waiting=(waits,)), 100.0 + rollout.ROOM_SECONDS)
        assert late.verdict == verdict
        allowed = rollout.judged(Trial(), replace(goal, makes_room=True), changed, Seen(waiting=(waits,)), 1e4)
        assert allowed.verdict == ""
        assert late.full == allowed.full == {("m", Role.SERVE)}
    less = rollout.without_spares(goal_of({"m": {Role.SERVE: 2}}, NEW, pace), [("m", Role.SERVE)])
    _, did = rolled(goal_of({"m": {Role.SERVE: 2}}, OLD, pace), less)
    assert only(did) == ["drain m-serve-0", "start m-serve-0", "drain m-serve-1", "start m-serve-1"]


@pytest.mark.parametrize(
    ("ready_for", "times", "verdict"),
    [
        (None, 1, ""),
        (None, 2, "m-serve-0 failed 2 times: no memory"),
        (GATE - 1, 1, "m-serve-0 was lost within 10 s: no memory"),
        (GATE, 1, ""),
    ],
)
def test_what_speaks_against_the_new_version(ready_for: float | None, times: int, verdict: str) -> None:
    goal = goal_of({"m": {Role.SERVE: 1}}, NEW, Pace(1, 0, GATE))
    ready_at = None if ready_for is None else 100.0 - ready_for
    trial = Trial()
    for version, key in ((NEW, frozenset[PoolKey]()), (OLD, frozenset(goal.versions)), (NEW, frozenset(goal.versions))):
        lost = ObservedActor(goal.slots[0], 2, ActorSnapshot(WorkerState.DEAD, version=version), 100, 100, ready_at)
        for _ in range(times):
            trial = rollout.judged(trial, goal, key, Seen(((lost, "no memory"),)), 100.0)
        if version == OLD or not key:
            assert trial == Trial()  # neither what didn't change nor what is to go is its doing
    assert trial.verdict == verdict


def test_only_a_rollouts_slots_are_spares() -> None:
    assert is_spare(Slot("a-b-decode-spare-1", Kind.WORKER, "a-b", Role.DECODE))
    for name, role in (("spare-decode-0", Role.DECODE), ("m-spare-decode-0", Role.DECODE), ("gateway-0", None)):
        assert not is_spare(Slot(name, Kind.WORKER, "m", role))
