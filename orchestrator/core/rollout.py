"""How a running cluster becomes another one: what is started beside it, and which outdated actor goes now.

Everything follows from the goal and from what is there, so whoever looks anew, also after a restart, goes on with it. A
worker is *outdated* if it is made of something else than the goal has its pool made of (``ActorSnapshot.version``),
*surplus* if the goal has no such slot, and *proven* once it was ready for ``health_seconds``.

A model's pools are taken one after the other. In the pool whose turn it is ``surge`` spares of the new version
come up first, in slots of their own (``m-decode-spare-0``), as a slot has one filling at a time: links, logs, metrics
and reservations go by its id. Then outdated and surplus workers are drained, never so many that fewer than all replicas
but ``unavailable`` are left that are ready and proven. Their slots are filled anew, and at the end the spares go.

Slots that are new are filled at once. A pool that the goal doesn't have serves until the model's others are proven; a
model that it doesn't have goes at once.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.core.slots import Kind, ObservedActor, Slot
from orchestrator.core.spec import Role, RolloutSpec
from orchestrator.core.types import WorkerState

MOST_STARTS = 2  # that a slot may fail of what is new
ROOM_SECONDS = 20.0  # after which a spare that waits for its place is given up

PoolKey = tuple[str, Role | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be there at the end. ``versions``: of each pool's workers. ``pace``: that of pools not in ``paces``.

    ``makes_room``: pools that go may go before those that come are ready.
    """

    slots: tuple[Slot, ...]
    versions: Mapping[PoolKey, str]
    pace: RolloutSpec
    paces: Mapping[PoolKey, RolloutSpec] = field(default_factory=dict)
    makes_room: bool = False

    def outdated(self, actor: ObservedActor) -> bool:
        """An actor that has not said yet what it is made of was started by the newest orders."""
        made_of = actor.snapshot.version
        return bool(made_of) and made_of != self.versions.get(pool_of(actor.slot), made_of)


@dataclass(frozen=True, slots=True)
class Step:
    """What the plan of this moment is to be made of.

    ``slots`` are to be filled; actors in ``replace`` go though their slot is to be filled, those in ``stay`` remain for
    now though it is not. ``waiting`` are spares that wait for their place. ``done`` of ``total`` workers are as they
    are to be, and where nothing else is left, ``complete``.
    """

    slots: tuple[Slot, ...]
    replace: frozenset[tuple[str, int]]
    stay: frozenset[tuple[str, int]]
    waiting: tuple[ObservedActor, ...]
    done: int
    total: int
    complete: bool


@dataclass(frozen=True, slots=True)
class _Pool:
    """A pool of the goal and its workers: in its slots, in slots of spares, and in others."""

    slots: tuple[Slot, ...]
    pace: RolloutSpec
    outdated: tuple[ObservedActor, ...]
    fresh: tuple[ObservedActor, ...]
    proven: tuple[ObservedActor, ...]  # of the fresh ones
    spares: tuple[ObservedActor, ...]
    surplus: tuple[ObservedActor, ...]
    capacity: int  # workers that are ready, and proven if they are new
    leaving: int  # of spares and surplus

    @property
    def complete(self) -> bool:
        beside = len(self.spares) + len(self.surplus) + self.leaving
        return len(self.proven) == len(self.slots) and not self.outdated and not beside


def pool_of(slot: Slot) -> PoolKey:
    return slot.model, slot.role


def is_spare(slot: Slot) -> bool:
    """Whether it is one that only a rollout fills."""
    return slot.role is not None and slot.slot_id.rpartition("-")[0].endswith(f"-{slot.role}-spare")


def step(goal: Goal, actors: Iterable[ObservedActor], now: float) -> Step:
    """The whole decision; see the head of the file."""
    workers = [actor for actor in actors if actor.slot.kind is Kind.WORKER]
    slots = list(goal.slots)
    going: set[tuple[str, int]] = set()
    stay: set[tuple[str, int]] = set()
    waiting: list[ObservedActor] = []
    done, complete = 0, True
    for pools in _models(goal, workers, now):
        turn = True
        for pool in pools:
            done += len(pool.proven)
            slots += _spares(pool, goal, turn=turn)
            now_going = _going(pool) if turn else _useless(pool.outdated)
            going.update(actor.key for actor in now_going)
            stay.update(actor.key for actor in pool.surplus if actor not in now_going)
            waiting += [spare for spare in pool.spares if spare.state is WorkerState.PENDING]
            turn = turn and pool.complete
        complete = complete and turn
        if not (turn or goal.makes_room):
            model = pools[0].slots[0].model
            stay.update(actor.key for actor in _of_no_pool(workers, goal) if actor.slot.model == model)
    wanted = {slot.slot_id for slot in goal.slots}
    total = sum(slot.kind is Kind.WORKER for slot in goal.slots)
    complete = complete and all(actor.slot.slot_id in wanted for actor in workers)
    return Step(tuple(slots), frozenset(going), frozenset(stay), tuple(waiting), done, total, complete)


def _models(goal: Goal, workers: Sequence[ObservedActor], now: float) -> list[list[_Pool]]:
    """The pools of each model of the goal."""
    slots: dict[PoolKey, list[Slot]] = {}
    for slot in goal.slots:
        if slot.kind is Kind.WORKER:
            slots.setdefault(pool_of(slot), []).append(slot)
    models: dict[str, list[_Pool]] = {}
    for key, own in slots.items():
        there = [actor for actor in workers if pool_of(actor.slot) == key]
        models.setdefault(key[0], []).append(_pool(goal, tuple(own), goal.paces.get(key, goal.pace), there, now))
    return list(models.values())


def _pool(goal: Goal, slots: tuple[Slot, ...], pace: RolloutSpec, there: list[ObservedActor], now: float) -> _Pool:
    ids = {slot.slot_id for slot in slots}
    present = [actor for actor in there if not actor.leaving]
    inside = [actor for actor in present if actor.slot.slot_id in ids]
    spares = [actor for actor in present if is_spare(actor.slot)]
    surplus = [actor for actor in present if actor.slot.slot_id not in ids and not is_spare(actor.slot)]
    # A spare of an older goal is of no more use than any other outdated worker.
    surplus += [spare for spare in spares if goal.outdated(spare)]
    spares = [spare for spare in spares if not goal.outdated(spare)]
    outdated = [actor for actor in inside if goal.outdated(actor)]
    fresh = [actor for actor in inside if not goal.outdated(actor)]
    proven = [actor for actor in (*fresh, *spares) if _proven(actor, pace, now)]
    serving = [actor for actor in (*outdated, *surplus) if actor.state is WorkerState.READY]
    return _Pool(
        slots,
        pace,
        tuple(outdated),
        tuple(fresh),
        tuple(actor for actor in proven if actor.slot.slot_id in ids),
        tuple(spares),
        tuple(surplus),
        len(proven) + len(serving),
        sum(actor.leaving and actor.slot.slot_id not in ids for actor in there),
    )


def _proven(actor: ObservedActor, pace: RolloutSpec, now: float) -> bool:
    ready = actor.state is WorkerState.READY and actor.ready_at is not None
    return ready and now - (actor.ready_at or 0.0) >= pace.health_seconds


def _spares(pool: _Pool, goal: Goal, *, turn: bool) -> list[Slot]:
    """Those to be there now: as many as are needed to begin, and then until all replicas are proven."""
    count = 0
    if turn and pool.outdated:
        count = min(pool.pace.surge, len(pool.outdated))
    there = {spare.slot.slot_id: spare.slot for spare in pool.spares}
    kept = [] if len(pool.proven) == len(pool.slots) and not pool.outdated else list(there.values())
    stem, model, role = pool.slots[0].slot_id.rpartition("-")[0], pool.slots[0].model, pool.slots[0].role
    new = [Slot(f"{stem}-spare-{index}", Kind.WORKER, model, role) for index in range(count)]
    return kept[: pool.pace.surge] + [slot for slot in new if slot.slot_id not in there][: max(0, count - len(kept))]


def _going(pool: _Pool) -> list[ObservedActor]:
    """Outdated and surplus workers that go now; those that serve nobody cost nothing."""
    both = [*pool.surplus, *pool.outdated]
    serving = [actor for actor in both if actor.state is WorkerState.READY]
    least = len(pool.slots) - pool.pace.unavailable
    return [*_useless(both), *serving[: max(0, pool.capacity - least)]]


def _useless(actors: Iterable[ObservedActor]) -> list[ObservedActor]:
    return [actor for actor in actors if actor.state is not WorkerState.READY]


def _of_no_pool(workers: Iterable[ObservedActor], goal: Goal) -> list[ObservedActor]:
    pools = {pool_of(slot) for slot in goal.slots}
    return [actor for actor in workers if pool_of(actor.slot) not in pools and not actor.leaving]


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of the new version so far. ``verdict``: why it is not to stay; empty as long as it may.

    ``losses`` are counted by slot; in ``full`` pools there was no room for a spare. ``hoped``: when there last was
    something on its way that would be room for one.
    """

    losses: Mapping[str, int] = field(default_factory=dict)
    full: frozenset[PoolKey] = frozenset()
    verdict: str = ""
    hoped: Mapping[PoolKey, float] = field(default_factory=dict)


def judged(trial: Trial, goal: Goal, changed: Container[PoolKey], seen: Seen, now: float) -> Trial:
    """The trial after another look. Only workers of ``changed`` pools speak against the new version."""
    losses, full, verdict = dict(trial.losses), set(trial.full), trial.verdict
    hoped = {**trial.hoped, **dict.fromkeys(seen.coming, now)}
    for actor, reason in seen.lost:
        key, slot_id = pool_of(actor.slot), actor.slot.slot_id
        if key not in changed or goal.outdated(actor):
            continue
        losses[slot_id] = losses.get(slot_id, 0) + 1
        pace = goal.paces.get(key, goal.pace)
        unproven = actor.ready_at is not None and now - actor.ready_at < pace.health_seconds
        if unproven:
            verdict = verdict or f"{slot_id} was lost within {pace.health_seconds:g} s: {reason}"
        elif losses[slot_id] >= MOST_STARTS:
            verdict = verdict or f"{slot_id} failed {losses[slot_id]} times: {reason}"
    for spare in seen.waiting:
        key = pool_of(spare.slot)
        if now - max(spare.changed_at, hoped.get(key, 0.0)) >= ROOM_SECONDS:
            full.add(key)
            if not goal.makes_room and _replicas(goal, spare.slot) == 1:
                why = spare.snapshot.stage or "it got no place"
                verdict = verdict or f"there is no room for {spare.slot.slot_id}, and its pool has one replica: {why}"
    return Trial(losses, frozenset(full), verdict, hoped)


@dataclass(frozen=True, slots=True)
class Room:
    """By pool: whether machines for it are on their way, and why there are not as many as it wants and won't be."""

    coming: frozenset[PoolKey] = frozenset()
    lacks: Mapping[PoolKey, str] = field(default_factory=dict)


AS_IT_IS = Room()


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look brought: workers that were lost, with the reason, and spares that wait for their place.

    ``coming``: pools for which there are machines on their way.
    """

    lost: tuple[tuple[ObservedActor, str], ...] = ()
    waiting: tuple[ObservedActor, ...] = ()
    coming: frozenset[PoolKey] = frozenset()


def without_spares(goal: Goal, full: Iterable[PoolKey]) -> Goal:
    """The goal where these pools have no room for one: a replica may be missing instead."""
    paces = {key: goal.paces.get(key, goal.pace) for key in full}
    less = {key: replace(pace, surge=0, unavailable=max(1, pace.unavailable)) for key, pace in paces.items()}
    return replace(goal, paces={**goal.paces, **less})


def _replicas(goal: Goal, of: Slot) -> int:
    return sum(pool_of(slot) == pool_of(of) for slot in goal.slots)
