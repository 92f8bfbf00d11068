"""Which specification a cluster is on its way to, and back from it where that fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.config import digest, effective_engine_args, loads
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.ports import Memory
from orchestrator.core import rollout
from orchestrator.core.errors import ConfigError, SegueError
from orchestrator.core.planning.differences import differences
from orchestrator.core.rollout import Goal, PoolKey, Seen, Trial, pool_of
from orchestrator.core.slots import Kind, ObservedActor, SlotHistory, slots_of
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


class Course:
    """The specification that is aimed at (``assigner.spec``), and ``previous``, which it would go back to.

    A cluster that starts on its way (``previous``, or ``back`` with the reason) goes on with it.
    """

    def __init__(
        self, assigner: Assigner, previous: ClusterSpec | None = None, *, makes_room: bool = False, back: str = ""
    ) -> None:
        self.assigner = assigner
        self.previous = previous
        self.goal = replace(_goal(assigner, strict=False), makes_room=makes_room)
        self._changed = frozenset[PoolKey]()
        self._trial = Trial()
        self._made_of = digest(assigner.spec)
        self._before = previous or assigner.spec
        self.progress = Progress()
        if previous is not None:
            self._begin(Phase.ROLLING, "")
        elif back:
            self._begin(Phase.ROLLING_BACK, back)

    @classmethod
    def resumed(cls, assigner: Assigner, memory: Memory) -> Course:
        """As another controller left it."""
        previous = loads(memory.previous_json) if memory.previous_json else None
        return cls(assigner, previous, makes_room=memory.makes_room, back=memory.back)

    @property
    def back(self) -> str:
        """Why it is on its way back; empty if it is not."""
        return self.progress.detail if self.progress.phase is Phase.ROLLING_BACK else ""

    @property
    def spec(self) -> ClusterSpec:
        return self.assigner.spec

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

    def change(self, spec: ClusterSpec, *, makes_room: bool, full: Iterable[PoolKey] = ()) -> None:
        """Aims at another specification from now on. ``full`` are pools that have no room for a spare.

        On its way back it may turn elsewhere: what it goes back to may never be well again.

        Raises:
            ConfigError: it can't be had while the cluster runs, or another change is under way.
        """
        new = taken_over(self.spec, spec)
        if self.progress.phase is Phase.ROLLING:
            if self.previous is None or digest(new) != digest(self.previous):
                hint = "segue status shows how far it is; the configuration that it comes from takes it back"
                raise ConfigError(f"an upgrade is {self.progress.phase}", hint=hint)
            self._turn_back(self.previous, "that was asked for")
            return
        assigner = replace(self.assigner, spec=new)
        goal = replace(_goal(assigner, strict=True), makes_room=makes_room)
        self.previous = self._before = self.spec
        self._aim(assigner, goal)
        self._begin(Phase.ROLLING, "")
        self._trial = Trial(full=frozenset(full))

    def step(self, actors: Iterable[ObservedActor], now: float) -> rollout.Step:
        """What the next plan is to be made of."""
        goal = rollout.without_spares(self.goal, self._trial.full) if self._trial.full else self.goal
        return rollout.step(goal, actors, now)

    def saw(
        self, step: rollout.Step, lost: Iterable[tuple[ObservedActor, str]], actors: Iterable[ObservedActor], now: float
    ) -> bool:
        """Takes in what a look brought. True where that turned the course, or brought it to its end."""
        full = self._trial.full
        self._trial = rollout.judged(self._trial, self.goal, self._changed, Seen(tuple(lost), step.waiting), now)
        if not self.progress.phase.under_way:
            return False
        gateways = [actor for actor in actors if actor.slot.kind is Kind.GATEWAY]
        verdict = self._trial.verdict or next((why for each in gateways if (why := self._refusal(each))), "")
        detail = self.progress.detail
        if self._trial.full - full and self.progress.phase is Phase.ROLLING:
            names = ", ".join(" ".join(filter(None, key)) for key in sorted(self._trial.full - full, key=str))
            detail = f"no room for a spare of {names}: a replica is missing instead"
        self.progress = replace(self.progress, done=step.done, total=step.total, detail=detail)
        if verdict and self.progress.phase is Phase.ROLLING and self.previous is not None:
            self._turn_back(self.previous, verdict)
            return True
        if step.complete and all(self._serves(gateway) for gateway in gateways):
            back = self.progress.phase is Phase.ROLLING_BACK
            self.progress = replace(self.progress, phase=Phase.ROLLED_BACK if back else Phase.DONE)
            self.previous = None
            return True
        return False

    def forgiven(self, histories: Mapping[str, SlotHistory]) -> dict[str, SlotHistory]:
        """Histories as they count for what the slots are filled with now: failures of something else don't."""
        changed = {slot.slot_id for slot in self.goal.slots if pool_of(slot) in self._changed}
        return {
            slot_id: replace(past, failures=0, not_before=0.0, backoff=0.0) if slot_id in changed else past
            for slot_id, past in histories.items()
        }

    def _turn_back(self, previous: ClusterSpec, verdict: str) -> None:
        assigner = replace(self.assigner, spec=previous)
        # Whatever room there was, there is as much again.
        self._aim(assigner, replace(_goal(assigner, strict=False), makes_room=True))
        self.previous = None
        self._begin(Phase.ROLLING_BACK, verdict)

    def _aim(self, assigner: Assigner, goal: Goal) -> None:
        self._changed = _changed(self.goal, goal)
        self.assigner, self.goal = assigner, goal
        self._made_of = digest(assigner.spec)

    def _begin(self, phase: Phase, detail: str) -> None:
        if self.previous is not None and not self._changed:
            self._changed = _changed(_goal(replace(self.assigner, spec=self.previous), strict=False), self.goal)
        full = self._trial.full if phase is Phase.ROLLING_BACK else frozenset[PoolKey]()
        self._trial = Trial(full=full)
        total = sum(slot.kind is Kind.WORKER for slot in self.goal.slots)
        self.progress = Progress(phase, 0, total, detail)

    def _serves(self, gateway: ObservedActor) -> bool:
        """One that is not up will take the specification of then; one that says nothing takes any."""
        word = gateway.snapshot
        return gateway.state is not WorkerState.READY or word.serves in ("", self._made_of)

    def _refusal(self, gateway: ObservedActor) -> str:
        word = gateway.snapshot
        return f"{gateway.slot.slot_id}: {word.detail}" if word.refuses == self._made_of else ""


def outdated_pools(old: ClusterSpec, new: ClusterSpec) -> tuple[PoolKey, ...]:
    """Pools of both whose workers would be made of something else. Raises what is wrong with the new one's orders."""
    was, now = (Assigner(spec, "", effective_engine_args) for spec in (old, new))
    before, after = _goal(was, strict=False).versions, _goal(now, strict=True).versions
    return tuple(key for key, version in after.items() if before.get(key, version) != version)


def taken_over(old: ClusterSpec, new: ClusterSpec) -> ClusterSpec:
    """The new specification, with what only a start says.

    Raises:
        ConfigError: it differs in what can't be changed while the cluster runs.
    """
    new = replace(new, gateway=replace(new.gateway, record=old.gateway.record))
    fixed = [
        each
        for each in differences(replace(old, models=()), replace(new, models=()))
        if each.where == "controller.listen" or not each.where.startswith("controller.")
    ]
    if old.name != new.name:
        raise ConfigError(f"cluster.name is {old.name} in what runs, and {new.name} here", where="cluster.name")
    if fixed:
        told = ", ".join(f"{each.where} ({each.was} -> {each.now})" for each in fixed)
        hint = "segue down and segue up start it anew"
        raise ConfigError(f"can't be changed while the cluster runs: {told}", where=fixed[0].where, hint=hint)
    before = {model.name: model for model in old.models}
    for model in new.models:
        if model.name in before and before[model.name].source != model.source:
            what = f"{model.name} can't become another model while it is served: {before[model.name].source} -> "
            hint = "add the other one under a name of its own, and take this one out once nobody asks for it"
            raise ConfigError(what + model.source, where=f"models: {model.name}: source", hint=hint)
    _require_own_slots(old, new)
    return new


def _require_own_slots(old: ClusterSpec, new: ClusterSpec) -> None:
    """Ids leave out what file names can't hold, so that models may change places with each other."""
    was = {slot.slot_id: slot.model for slot in slots_of(old)}
    for slot in slots_of(new):
        former = was.get(slot.slot_id, slot.model)
        if former != slot.model:
            what = f"{slot.slot_id} is a replica of {former}, and would be one of {slot.model}"
            hint = "keep both models in their order, or give one a name with other letters"
            raise ConfigError(what, where=f"models: {slot.model}: name", hint=hint)


def _changed(before: Goal, after: Goal) -> frozenset[PoolKey]:
    """Pools that are made of something else, or have more replicas."""
    sizes = Counter(pool_of(slot) for slot in before.slots), Counter(pool_of(slot) for slot in after.slots)
    return frozenset(
        key
        for key, version in after.versions.items()
        if before.versions.get(key) != version or sizes[0][key] < sizes[1][key]
    )


def _goal(assigner: Assigner, *, strict: bool) -> Goal:
    """``strict``: orders that can't be written are an error; else their pools are of any version."""
    slots = slots_of(assigner.spec)
    versions: dict[PoolKey, str] = {}
    for slot in slots:
        if slot.kind is Kind.WORKER and pool_of(slot) not in versions:
            try:
                versions[pool_of(slot)] = assigner.order(slot, 0).version
            except SegueError:
                if strict:
                    raise
    return Goal(slots, versions, assigner.spec.controller.rollout)
