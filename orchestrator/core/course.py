"""Which specification a cluster is on its way to, and back from it where that fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.core import rollout
from orchestrator.core.errors import ConfigError
from orchestrator.core.rollout import AS_IT_IS, Goal, PoolKey, Room, Seen, Trial, pool_of
from orchestrator.core.slots import Kind, ObservedActor, SlotHistory
from orchestrator.core.spec import ClusterSpec
from orchestrator.core.types import WorkerState


class Phase(StrEnum):
    """How far a change of the specification is; ``REST`` where none was asked for."""

    REST = ""
    ROLLING = "rolling"
    DONE = "done"
    ROLLING_BACK = "rolling back"
    ROLLED_BACK = "rolled back"

    @property
    def under_way(self) -> bool:
        return self in (Phase.ROLLING, Phase.ROLLING_BACK)


@dataclass(frozen=True, slots=True)
class Progress:
    """For status: ``done`` of ``total`` workers are as they are to be; ``detail`` has the reason of a way back."""

    phase: Phase = Phase.REST
    done: int = 0
    total: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Aim:
    """A specification, the short name that gateways say it by, and what its workers are to be made of."""

    spec: ClusterSpec
    digest: str
    goal: Goal


class Course:
    """The specification that is aimed at, and the one that it would go back to.

    A cluster that starts on its way (``previous``, or ``back`` with the reason) goes on with it.
    """

    def __init__(self, aim: Aim, previous: Aim | None = None, *, back: str = "") -> None:
        self.aim = aim
        self._previous = previous
        self._before = (previous or aim).spec
        self._changed = _changed(previous.goal, aim.goal) if previous is not None else frozenset[PoolKey]()
        self._trial = Trial()
        self.progress = Progress()
        if previous is not None:
            self._begin(Phase.ROLLING, "")
        elif back:
            self._begin(Phase.ROLLING_BACK, back)

    @property
    def spec(self) -> ClusterSpec:
        return self.aim.spec

    @property
    def previous(self) -> ClusterSpec | None:
        """What it goes back to if it fails; None where it is on no way, or on its way back."""
        return self._previous.spec if self._previous is not None else None

    @property
    def back(self) -> str:
        """Why it is on its way back; empty if it is not."""
        return self.progress.detail if self.progress.phase is Phase.ROLLING_BACK else ""

    @property
    def expected(self) -> ClusterSpec:
        """What has to be there for the cluster to be ready: on its way nothing that is only to come."""
        if not self.progress.phase.under_way:
            return self.spec
        before = {model.name: model.pools for model in self._before.models}
        models = [
            replace(model, pools={role: pool for role, pool in model.pools.items() if role in there} or there)
            for model in self.spec.models
            if (there := before.get(model.name)) is not None
        ]
        return replace(self.spec, models=tuple(models))

    # ---- what is asked for

    def turns_back_for(self, digest: str) -> bool:
        """Whether this specification, asked for now, is the one that it comes from, and so ``turn_back``.

        Raises:
            ConfigError: another change is under way. On its way back it may turn elsewhere: what it goes back to may
                never be well again.
        """
        if self.progress.phase is not Phase.ROLLING:
            return False
        if self._previous is None or digest != self._previous.digest:
            hint = "segue status shows how far it is; the configuration that it comes from takes it back"
            raise ConfigError(f"an upgrade is {self.progress.phase}", hint=hint)
        return True

    def change(self, aim: Aim, full: Iterable[PoolKey] = ()) -> None:
        """Aims at another specification from now on. ``full`` are pools that have no room for a spare."""
        self._previous, self._before = self.aim, self.spec
        self._aim(aim)
        self._begin(Phase.ROLLING, "")
        self._trial = Trial(full=frozenset(full))

    def turn_back(self, why: str) -> None:
        """To where it comes from; only where that is known."""
        assert self._previous is not None  # noqa: S101
        # Whatever room there was, there is as much again.
        self._aim(replace(self._previous, goal=replace(self._previous.goal, makes_room=True)))
        self._previous = None
        self._begin(Phase.ROLLING_BACK, why)

    # ---- what is seen

    def step(self, actors: Iterable[ObservedActor], now: float) -> rollout.Step:
        """What the next plan is to be made of."""
        goal = self.aim.goal
        return rollout.step(rollout.without_spares(goal, self._trial.full) if self._trial.full else goal, actors, now)

    def saw(
        self,
        step: rollout.Step,
        lost: Iterable[tuple[ObservedActor, str]],
        actors: Iterable[ObservedActor],
        now: float,
        room: Room = AS_IT_IS,
    ) -> bool:
        """Takes in what a look brought. True where that turned the course, or brought it to its end."""
        full = self._trial.full
        seen = Seen(tuple(lost), step.waiting, self._coming(step, room, now))
        self._trial = rollout.judged(self._trial, self.aim.goal, self._changed, seen, now)
        if not self.progress.phase.under_way:
            return False
        gateways = [actor for actor in actors if actor.slot.kind is Kind.GATEWAY]
        verdict = self._trial.verdict or next((why for each in gateways if (why := self._refusal(each))), "")
        detail = self.progress.detail
        if self._trial.full - full and self.progress.phase is Phase.ROLLING:
            keys = sorted(self._trial.full - full, key=str)
            names = ", ".join(" ".join(filter(None, key)) for key in keys)
            whys = "".join(f"; {room.lacks[key]}" for key in keys if key in room.lacks)
            detail = f"no room for a spare of {names}: a replica is missing instead{whys}"
        self.progress = replace(self.progress, done=step.done, total=step.total, detail=detail)
        if verdict and self.progress.phase is Phase.ROLLING:
            self.turn_back(verdict)
            return True
        if step.complete and all(self._serves(gateway) for gateway in gateways):
            back = self.progress.phase is Phase.ROLLING_BACK
            self.progress = replace(self.progress, phase=Phase.ROLLED_BACK if back else Phase.DONE)
            self._previous = None
            return True
        return False

    def _coming(self, step: rollout.Step, room: Room, now: float) -> frozenset[PoolKey]:
        """Pools whose spares have a machine on its way, for no longer than a start may take."""
        patience = self.spec.controller.start_timeout
        tired = {pool_of(spare.slot) for spare in step.waiting if now - spare.changed_at >= patience}
        return room.coming - tired

    def forgiven(self, histories: Mapping[str, SlotHistory]) -> dict[str, SlotHistory]:
        """Histories as they count for what the slots are filled with now: failures of something else don't."""
        changed = {slot.slot_id for slot in self.aim.goal.slots if pool_of(slot) in self._changed}
        return {
            slot_id: replace(past, failures=0, not_before=0.0, backoff=0.0) if slot_id in changed else past
            for slot_id, past in histories.items()
        }

    def _aim(self, aim: Aim) -> None:
        self._changed = _changed(self.aim.goal, aim.goal)
        self.aim = aim

    def _begin(self, phase: Phase, detail: str) -> None:
        full = self._trial.full if phase is Phase.ROLLING_BACK else frozenset[PoolKey]()
        self._trial = Trial(full=full)
        total = sum(slot.kind is Kind.WORKER for slot in self.aim.goal.slots)
        self.progress = Progress(phase, 0, total, detail)

    def _serves(self, gateway: ObservedActor) -> bool:
        """One that is not up will take the specification of then; one that says nothing takes any."""
        word = gateway.snapshot
        return gateway.state is not WorkerState.READY or word.serves in ("", self.aim.digest)

    def _refusal(self, gateway: ObservedActor) -> str:
        word = gateway.snapshot
        return f"{gateway.slot.slot_id}: {word.detail}" if word.refuses == self.aim.digest else ""


def _changed(before: Goal, after: Goal) -> frozenset[PoolKey]:
    """Pools that are made of something else, or have more replicas."""
    sizes = Counter(pool_of(slot) for slot in before.slots), Counter(pool_of(slot) for slot in after.slots)
    return frozenset(
        key
        for key, version in after.versions.items()
        if before.versions.get(key) != version or sizes[0][key] < sizes[1][key]
    )
