"""Clusters for tests of what is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.core.scene import Scene, scene_of
from orchestrator.core.slots import Observed, ObservedActor, SlotHistory, slots_of
from orchestrator.core.spec import ClusterSpec, GatewaySpec, ModelSpec, PoolSpec, Role
from orchestrator.core.types import ActorSnapshot, WorkerState

R = WorkerState


def spec_of(**models: Mapping[Role, int]) -> ClusterSpec:
    return ClusterSpec(
        "llm",
        tuple(
            ModelSpec(name, "none", {role: PoolSpec(role, count) for role, count in pools.items()})
            for name, pools in models.items()
        ),
        gateway=GatewaySpec(processes=0),
    )


@dataclass
class World:
    """What a test makes happen; ``scene`` is how it looks."""

    spec: ClusterSpec
    actors: dict[str, ObservedActor] = field(default_factory=dict)
    histories: dict[str, SlotHistory] = field(default_factory=dict)
    epoch: int = 0
    term: int = 1
    ending: bool = False
    upgrade: tuple[str, int, int, str] = ("", 0, 0, "")

    def __post_init__(self) -> None:
        self.slots = {slot.slot_id: slot for slot in slots_of(self.spec)}

    def be(self, slot_id: str, state: WorkerState, stage: str = "", detail: str = "", *, anew: bool = False) -> None:
        """The slot's worker is in that state; ``anew``: it is another worker."""
        if anew or slot_id not in self.actors:
            self.epoch += 1
            slot = self.slots[slot_id]
            self.actors[slot_id] = ObservedActor(slot, self.epoch, ActorSnapshot(state), 0.0, 0.0)
        snapshot = ActorSnapshot(state, stage=stage, detail=detail)
        self.actors[slot_id] = replace(self.actors[slot_id], snapshot=snapshot)

    def all_ready(self) -> World:
        for slot_id in self.slots:
            self.be(slot_id, R.READY)
        return self

    def lose(self, slot_id: str, reason: str, at: float) -> None:
        """It is counted; its actor is there a little longer."""
        former = self.histories.get(slot_id, SlotHistory())
        self.histories[slot_id] = replace(
            former, failures=former.failures + 1, not_before=at + 1.0, lost_as=R.DEAD, detail=reason
        )

    def gone(self, slot_id: str) -> None:
        del self.actors[slot_id]

    @property
    def scene(self) -> Scene:
        observed = Observed(self.epoch, tuple(self.actors.values()), dict(self.histories))
        return scene_of(self.spec, observed, ending=self.ending, term=self.term, upgrade=self.upgrade)
