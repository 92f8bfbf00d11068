"""What an operator is to hear of a cluster, from one scene to the next: each thing once, and never too much.

What is told is what changed since the last scene; what changes again and again is told every ``quiet`` seconds, and
then as it is by then, with how often it happened. All together there are never more than ``burst`` announcements at
once and one every ``refill`` seconds after that; nothing is lost by it: what waits is merged by subject.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.core.readiness import SlotReport
from orchestrator.core.scene import Pool, Scene
from orchestrator.core.types import WorkerState

_NAMED = 3  # workers that are named in one note; of the others the number
_NOTE_BYTES = 1024  # Kubernetes takes no more of an Event
_SERVED = (WorkerState.READY, WorkerState.DRAINING)

Subject = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announcement:
    """``reason`` is one word for programs, ``action`` what the controller did of it, ``note`` a sentence for people."""

    reason: str
    action: str
    note: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds. ``placing``: how long a worker has to wait for its place before that is news."""

    quiet: float = 60.0
    burst: int = 20
    refill: float = 5.0
    placing: float = 10.0


@dataclass(slots=True)
class _Waiting:
    """What is to be told of one subject. ``happened`` counts by worker."""

    reason: str
    action: str
    text: str
    warning: bool
    happened: dict[str, int] = field(default_factory=dict)


class Announcer:
    """Of one controller. The first scene is what it found: nothing in it is news but that it took over."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._before: Scene | None = None
        self._waiting: dict[Subject, _Waiting] = {}
        self._told_at: dict[Subject, float] = {}
        self._told: dict[Subject, str] = {}  # of what is a state: how it was told last
        self._unplaced_since: dict[tuple[str, int], float] = {}
        self._lost: set[tuple[str, int]] = set()  # and not gone yet
        self._tokens = float(self._pace.burst)
        self._filled_at = 0.0

    def step(self, scene: Scene, now: float) -> list[Announcement]:
        """What is to be told now. Has to be called again after ``quiet`` at the latest, also where nothing changed."""
        before, self._before = self._before, scene
        if before is None:
            self._found(scene)
        else:
            self._models(scene)
            self._workers(before, scene)
            self._upgrade(before, scene)
            if scene.ending and not before.ending:
                self._add(("cluster",), "ClusterDraining", "Drain", "the cluster ends: gateways, then workers drain")
        self._places(scene, now)
        return list(self._turns(now))

    def _found(self, scene: Scene) -> None:
        for model, pools in scene.of_model().items():
            self._told["model", model] = _readiness(pools)
        if scene.term > 1:
            note = f"controller {scene.term} goes on with the cluster, as the one before it is gone"
            self._add(("controller",), "ControllerTookOver", "TakeOver", note)

    def _models(self, scene: Scene) -> None:
        for model, pools in scene.of_model().items():
            if scene.ending:
                continue
            subject, is_now = ("model", model), _readiness(pools)
            if self._told.get(subject, "no") == is_now:
                self._waiting.pop(subject, None)  # as it was told, whatever it was in between
            elif is_now == "yes":
                counts = ", ".join(f"{pool.role} {pool.ready}/{pool.wanted}" for pool in pools if pool.wanted)
                self._add(subject, "ModelReady", "Serve", f"{model} is ready: {counts}")
            else:
                empty = " and ".join(pool.role for pool in pools if pool.wanted and not pool.ready)
                self._add(subject, "ModelNotReady", "Serve", f"{model} has no worker for {empty}", warning=True)

    def _workers(self, before: Scene, scene: Scene) -> None:
        former = dict(before.losses)
        lost = {slot_id: loss for slot_id, loss in scene.losses if former.get(slot_id) != loss}
        there = {(worker.slot.slot_id, worker.epoch) for pool in scene.pools for worker in pool.workers}
        for pool in before.pools:
            for worker in pool.workers:
                slot_id, key = worker.slot.slot_id, (worker.slot.slot_id, worker.epoch)
                if slot_id in lost:
                    self._count(("lost", *_key(pool)), slot_id, lost[slot_id].reason)
                    self._lost.add(key)
                elif worker.epoch and key not in there:
                    served = worker.snapshot.state in _SERVED and key not in self._lost
                    self._lost.discard(key)
                    if served and not scene.ending:
                        self._count(("drained", *_key(pool)), slot_id, "finished what it had, and ended")
        self._lost &= there

    def _count(self, subject: Subject, slot_id: str, text: str) -> None:
        lost = subject[0] == "lost"
        reason, action = ("WorkerLost", "Replace") if lost else ("WorkerDrained", "Drain")
        waiting = self._add(subject, reason, action, text, warning=lost)
        waiting.happened[slot_id] = waiting.happened.get(slot_id, 0) + 1

    def _upgrade(self, before: Scene, scene: Scene) -> None:
        if before.phase == scene.phase:
            return
        match scene.phase:
            case "rolling":
                note = f"{scene.total - scene.done} of {scene.total} workers become those of another configuration"
                self._add(("upgrade", "begun"), "UpgradeBegun", "Upgrade", note)
            case "done":
                detail = f"; {scene.detail}" if scene.detail else ""
                self._add(("upgrade", "done"), "UpgradeDone", "Upgrade", f"all workers are as configured{detail}")
            case "rolling back":
                note = f"it goes back to the configuration before: {scene.detail}"
                self._add(("upgrade", "back"), "UpgradeFailed", "RollBack", note, warning=True)
            case "rolled back":
                note = f"the configuration is the one before again: {scene.detail}"
                self._add(("upgrade", "was back"), "UpgradeRolledBack", "RollBack", note, warning=True)

    def _places(self, scene: Scene, now: float) -> None:
        since, self._unplaced_since = self._unplaced_since, {}
        for pool in scene.pools:
            unplaced = {(worker.slot.slot_id, worker.epoch): worker for worker in pool.workers if _unplaced(worker)}
            self._unplaced_since |= {key: since.get(key, now) for key in unplaced}
            late = [each for key, each in unplaced.items() if now - self._unplaced_since[key] >= self._pace.placing]
            subject = ("place", *_key(pool))
            self._waiting.pop(subject, None)  # those that have come to a place are heard of as what they are now
            if not late:
                self._told.pop(subject, None)
            elif self._told.get(subject) != _names(late):
                text = f"waits for a place: {late[0].snapshot.stage}"
                waiting = self._add(subject, "WorkerNotPlaced", "Place", text, warning=True)
                waiting.happened = {worker.slot.slot_id: 1 for worker in late}

    def _add(self, subject: Subject, reason: str, action: str, text: str, *, warning: bool = False) -> _Waiting:
        waiting = self._waiting.get(subject)
        if waiting is None or waiting.reason != reason:
            waiting = self._waiting[subject] = _Waiting(reason, action, text, warning)
        waiting.text = text
        return waiting

    def _turns(self, now: float) -> Iterator[Announcement]:
        """Those whose turn it is."""
        pace = self._pace
        self._tokens = min(float(pace.burst), self._tokens + (now - self._filled_at) / pace.refill)
        self._filled_at = now
        self._told_at = {subject: at for subject, at in self._told_at.items() if now - at < pace.quiet}
        for subject in [subject for subject in self._waiting if subject not in self._told_at]:
            if self._tokens < 1:
                return
            self._tokens -= 1
            waiting = self._waiting.pop(subject)
            self._told_at[subject] = now
            if subject[0] == "model":
                self._told[subject] = "yes" if waiting.reason == "ModelReady" else "no"
            elif subject[0] == "place":
                self._told[subject] = " ".join(waiting.happened)
            yield Announcement(waiting.reason, waiting.action, _note(waiting), waiting.warning)


def _unplaced(worker: SlotReport) -> bool:
    return worker.snapshot.state is WorkerState.PENDING and bool(worker.epoch and worker.snapshot.stage)


def _names(workers: list[SlotReport]) -> str:
    return " ".join(worker.slot.slot_id for worker in workers)


def _key(pool: Pool) -> Subject:
    return pool.model, str(pool.role)


def _readiness(pools: list[Pool]) -> str:
    return "yes" if all(pool.ready for pool in pools if pool.wanted) else "no"


def _note(waiting: _Waiting) -> str:
    names = [name if count == 1 else f"{name} ({count} times)" for name, count in waiting.happened.items()]
    if len(names) > _NAMED:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} more"]
    who = ", ".join(names)
    return cut(f"{who}: {waiting.text}" if who else waiting.text, _NOTE_BYTES)


def cut(text: str, most: int) -> str:
    """At most so many bytes of it, and never a part of a character."""
    raw = text.encode(errors="replace")
    return raw.decode() if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "..."
