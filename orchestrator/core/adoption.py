"""What a controller finds of its cluster when it takes over -> the table that it goes on with.

    reserved, no actor      leaving  whoever was to make it is gone, so the reservation is given back
    an actor, mute          STARTING it may answer yet; how long that may take is the caller's to bound
    an actor, with a word   as it says; it goes on with what it does, and ``reconcile`` with what is to become of it

Nothing is started and nothing that serves is ended here. Times begin anew, as clocks are not shared: an actor has all
of ``start_timeout`` again. How long it has been ready is its own to say, so that one that has proven itself has done so
for good. Failures in a row, backoffs and how often a slot was
filled are forgotten; that it is filled is not, so that its next filling counts as a restart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.core.slots import Kind, ObservedActor, Slot, SlotHistory
from orchestrator.core.types import ActorSnapshot, WorkerState

MUTE = "has not answered this controller yet"
_SERVING = (WorkerState.READY, WorkerState.DRAINING)
_GATEWAY = re.compile(r"gateway-\d+")
_INDEX = re.compile(r"-\d+$")

_RECENT = 60.0  # seconds; lives that began longer ago say nothing of this one
_AT_ONCE = 2  # lives within that time before one has to wait
_LONGEST = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Sighting:
    """A name that the cluster has: an actor with its word, a mute one (``word`` None), or only a reservation."""

    slot_id: str
    epoch: int
    actor: bool
    word: ActorSnapshot | None = None


@dataclass(frozen=True, slots=True)
class Adoption:
    """The table to go on with. ``epoch``: the highest that was ever used."""

    actors: tuple[ObservedActor, ...]
    epoch: int
    histories: Mapping[str, SlotHistory]


def adopt(sightings: Iterable[Sighting], known: Iterable[Slot], epoch: int, now: float) -> Adoption:
    """``known``: slots by which the others are understood too. ``epoch``: the last that was remembered."""
    known = tuple(known)
    actors = tuple(_observed(sighting, known, now) for sighting in sightings)
    filled = {actor.slot.slot_id for actor in actors if not actor.leaving}
    return Adoption(
        actors,
        max((epoch, *(actor.epoch for actor in actors))),
        {slot_id: SlotHistory(fillings=1) for slot_id in sorted(filled)},
    )


def slot_named(slot_id: str, known: tuple[Slot, ...]) -> Slot:
    """The slot of that id, wanted or not. One that no known slot is like has no model and no role."""
    for slot in known:
        if slot.slot_id == slot_id:
            return slot
    if _GATEWAY.fullmatch(slot_id):
        return Slot(slot_id, Kind.GATEWAY)
    stems = {_INDEX.sub("", slot.slot_id) + "-": slot for slot in known if slot.kind is Kind.WORKER}
    alike = max((stem for stem in stems if slot_id.startswith(stem)), key=len, default=None)
    if alike is None:
        return Slot(slot_id, Kind.WORKER)
    return Slot(slot_id, Kind.WORKER, stems[alike].model, stems[alike].role)


def pause(ages: Iterable[float]) -> float:
    """Seconds for a controller to wait before it begins, by how long ago its cluster's last controllers began.

    One that ends again and again waits ever longer; the first replacement goes on at once.
    """
    recent = sum(age < _RECENT for age in ages)
    return min(_LONGEST, 2.0 ** (recent - _AT_ONCE)) if recent >= _AT_ONCE else 0.0


def _observed(sighting: Sighting, known: tuple[Slot, ...], now: float) -> ObservedActor:
    slot, word = slot_named(sighting.slot_id, known), sighting.word
    if not sighting.actor:
        word = ActorSnapshot(WorkerState.PENDING, stage="its reservation is given back")
    elif word is None:
        word = ActorSnapshot(WorkerState.STARTING, stage=MUTE)
    ready_at = now - word.ready_for if word.state in _SERVING else None
    return ObservedActor(slot, sighting.epoch, word, now, now, ready_at, leaving=not sighting.actor)
