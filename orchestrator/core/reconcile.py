"""Desired slots x observed actors x now -> a plan in named buckets.

    ClusterSpec --slots_of--> desired slots ---+
                                               |
    controller's table --> Observed -----------+--> plan() --> Plan --> the controller carries it out
      (actors, slot histories, epoch)          |                 |
    the clock --> now -------------------------+                 +--> histories and epoch of the next look

    A desired slot is in exactly one of          An observed actor is in exactly one of
      start   empty, and may be filled now         keep     fills its slot, nothing to do
      wait    empty, and must stay so for now      drain    serves but is not wanted: finish its requests, then end it
      keep    filled by a sound actor              hold     not wanted, but a gateway that ends first still needs it
                                                   remove   lost, or never served and not wanted: end it now
                                                   leaving  an earlier plan ended it; it is not gone yet

A loss is an actor that failed to start, died, took longer than the start timeout or fell silent. It costs its slot a
backoff that doubles from loss to loss and is forgotten once a filling stayed ready for ``Limits.stable_after``. A slot
is never filled while a former actor of it is still there, so what that one held (devices, ports) is free.
When nothing is desired the cluster ends from the top: gateways first, so that their last requests find workers.
A rollout (``core/rollout``) says which actors go though their slot is desired (``replace``), and which stay for now
though theirs is not (``stay``).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import replace as changed

from orchestrator.core.slots import Kind, Limits, Observed, ObservedActor, Slot, SlotHistory
from orchestrator.core.types import WorkerState

_SERVING = (WorkerState.READY, WorkerState.DRAINING)


@dataclass(frozen=True, slots=True)
class Wait:
    """A slot that stays empty; ``until`` is on the planner's clock, None where an event and not time ends the wait."""

    slot: Slot
    until: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Removal:
    """An actor to end without draining. ``lost``: it is counted against its slot."""

    actor: ObservedActor
    lost: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. ``epoch`` grew by one if this changes anything; ``histories`` replace the observed ones."""

    epoch: int
    start: tuple[Slot, ...]
    wait: tuple[Wait, ...]
    keep: tuple[ObservedActor, ...]
    drain: tuple[ObservedActor, ...]
    hold: tuple[ObservedActor, ...]
    remove: tuple[Removal, ...]
    leaving: tuple[ObservedActor, ...]
    histories: Mapping[str, SlotHistory]

    @property
    def wake_at(self) -> float | None:
        """When time alone will change the plan: the end of the shortest backoff."""
        return min((wait.until for wait in self.wait if wait.until is not None), default=None)


def plan(
    desired: tuple[Slot, ...],
    observed: Observed,
    now: float,
    limits: Limits,
    *,
    replace: Container[tuple[str, int]] = frozenset(),
    stay: Container[tuple[str, int]] = frozenset(),
) -> Plan:
    """The whole decision; see the head of the file. ``replace`` and ``stay`` have actors' keys."""
    leaving = tuple(actor for actor in observed.actors if actor.leaving)
    present = [actor for actor in observed.actors if not actor.leaving]
    faults = {actor.key: fault(actor, now, limits) for actor in present}
    lost = [Removal(actor, True, faults[actor.key]) for actor in present if faults[actor.key]]
    sound = [actor for actor in present if not faults[actor.key]]

    wanted = {slot.slot_id for slot in desired}
    # One that drains takes nothing new any more, whoever told it to.
    stays = [actor for actor in sound if actor.key not in replace and actor.state is not WorkerState.DRAINING]
    keep = _newest_by_slot(actor for actor in stays if actor.slot.slot_id in wanted or (actor.key in stay and desired))
    unwanted = [actor for actor in sound if keep.get(actor.slot.slot_id) is not actor]
    drain, hold, idle = _part(unwanted, ending=not desired, gateway_left=_has_gateway(observed.actors))
    remove = (*lost, *(Removal(actor, False, "not wanted any more") for actor in idle))

    histories = dict(observed.histories)
    for removal in lost:
        slot_id = removal.actor.slot.slot_id
        histories[slot_id] = after_loss(histories.get(slot_id, SlotHistory()), removal, now, limits)
    empty = [slot for slot in desired if slot.slot_id not in keep]
    start, wait = _fill(empty, {actor.slot.slot_id for actor in observed.actors}, histories, now)
    for slot in start:
        former = histories.get(slot.slot_id, SlotHistory())
        histories[slot.slot_id] = changed(former, fillings=former.fillings + 1)

    changes = bool(start or drain or remove)
    return Plan(
        epoch=observed.epoch + changes,
        start=start,
        wait=wait,
        keep=tuple(keep.values()),
        drain=drain,
        hold=hold,
        remove=remove,
        leaving=leaving,
        histories=histories,
    )


def fault(actor: ObservedActor, now: float, limits: Limits) -> str:
    """Why this actor counts as lost; empty if it is sound. Waiting for a reservation is no fault: nodes may come."""
    state, snapshot = actor.state, actor.snapshot
    if state in (WorkerState.FAILED, WorkerState.DEAD):
        return snapshot.detail or f"{state} without a reason given"
    if state is WorkerState.STARTING and now - actor.changed_at >= limits.start_timeout:
        stage = f"; it was busy with: {snapshot.stage}" if snapshot.stage else ""
        return f"not ready after {limits.start_timeout:g} s{stage}"
    if state in _SERVING and now - actor.heard_at >= limits.silence:
        return f"no answer for {limits.silence:g} s"
    return ""


def after_loss(history: SlotHistory, removal: Removal, now: float, limits: Limits) -> SlotHistory:
    """The slot's history with this loss in it: one more failure in a row, or the first after a stable time."""
    ready_at = removal.actor.ready_at
    stable = ready_at is not None and now - ready_at >= limits.stable_after
    failures = 1 if stable else history.failures + 1
    backoff = backoff_seconds(failures, limits)
    return changed(
        history,
        failures=failures,
        backoff=backoff,
        not_before=now + backoff,
        lost_as=WorkerState.FAILED if ready_at is None else WorkerState.DEAD,
        detail=removal.reason,
    )


def backoff_seconds(failures: int, limits: Limits) -> float:
    """initial, twice that, four times ... up to the maximum; ``failures`` counts from 1."""
    doublings = min(failures - 1, 64)  # a float overflows long before a patient cluster gives up
    return float(min(limits.backoff_max, limits.backoff_initial * 2.0**doublings))


def _newest_by_slot(actors: Iterable[ObservedActor]) -> dict[str, ObservedActor]:
    newest: dict[str, ObservedActor] = {}
    for actor in actors:
        rival = newest.get(actor.slot.slot_id)
        if rival is None or actor.epoch > rival.epoch:
            newest[actor.slot.slot_id] = actor
    return newest


def _has_gateway(actors: Iterable[ObservedActor]) -> bool:
    return any(actor.slot.kind is Kind.GATEWAY for actor in actors)


def _part(
    unwanted: list[ObservedActor], *, ending: bool, gateway_left: bool
) -> tuple[tuple[ObservedActor, ...], tuple[ObservedActor, ...], tuple[ObservedActor, ...]]:
    """Unwanted actors as (drain, hold, idle); idle ones never served, so there is nothing to finish."""
    serving = [actor for actor in unwanted if actor.state in _SERVING]
    idle = tuple(actor for actor in unwanted if actor.state not in _SERVING)
    if not (ending and gateway_left):
        return tuple(serving), (), idle
    held = tuple(actor for actor in serving if actor.slot.kind is Kind.WORKER)
    drain = tuple(actor for actor in serving if actor.slot.kind is not Kind.WORKER)
    return drain, held, idle


def _fill(
    empty: list[Slot], occupied: set[str], histories: Mapping[str, SlotHistory], now: float
) -> tuple[tuple[Slot, ...], tuple[Wait, ...]]:
    """Empty slots as (start, wait)."""
    start: list[Slot] = []
    wait: list[Wait] = []
    for slot in empty:
        history = histories.get(slot.slot_id, SlotHistory())
        if now < history.not_before:
            wait.append(Wait(slot, history.not_before, f"backoff of {history.backoff:g} s after: {history.detail}"))
        elif slot.slot_id in occupied:
            wait.append(Wait(slot, None, "its last actor is not gone yet"))
        else:
            start.append(slot)
    return tuple(start), tuple(wait)
