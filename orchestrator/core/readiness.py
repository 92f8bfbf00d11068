"""What to tell of each slot, and whether pools and the cluster are ready: pure derivations for status."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.core.slots import Kind, Observed, Slot, SlotHistory
from orchestrator.core.spec import ClusterSpec, Role
from orchestrator.core.types import ActorSnapshot, WorkerState


@dataclass(frozen=True, slots=True)
class SlotReport:
    """A slot as people see it; ``epoch`` is 0 where no actor fills it."""

    slot: Slot
    snapshot: ActorSnapshot
    epoch: int = 0
    restarts: int = 0


def reports(slots: tuple[Slot, ...], observed: Observed, *, ending: bool = False) -> tuple[SlotReport, ...]:
    """One report a slot, told by its newest actor. Empty slots tell of their last loss, or while ending nothing."""
    newest = {actor.slot.slot_id: actor for actor in sorted(observed.actors, key=lambda actor: actor.epoch)}
    told: list[SlotReport] = []
    for slot in slots:
        history = observed.histories.get(slot.slot_id, SlotHistory())
        actor = newest.get(slot.slot_id)
        if actor is not None:
            told.append(SlotReport(slot, actor.snapshot, actor.epoch, history.restarts))
        elif not ending:
            told.append(SlotReport(slot, _vacant(history), 0, history.restarts))
    return tuple(told)


def _vacant(history: SlotHistory) -> ActorSnapshot:
    if not history.failures:
        return ActorSnapshot(WorkerState.PENDING)
    waits = f"waits {history.backoff:g} s before the next try (failure {history.failures} in a row)"
    return ActorSnapshot(history.lost_as, stage=waits, detail=history.detail)


def pool_ready(told: Iterable[SlotReport], model: str, role: Role) -> bool:
    """Whether a request for the model can find a worker of this role."""
    return any(_ready(report) for report in told if report.slot.model == model and report.slot.role is role)


def cluster_ready(spec: ClusterSpec, told: tuple[SlotReport, ...]) -> bool:
    """Whether every pool of every model has a ready worker, and a gateway serves if the cluster is to have any."""
    pools = all(pool_ready(told, model.name, role) for model in spec.models for role in model.pools)
    gateways = any(_ready(report) for report in told if report.slot.kind is Kind.GATEWAY)
    return pools and (gateways or not spec.gateway.processes)


def _ready(report: SlotReport) -> bool:
    return report.snapshot.state is WorkerState.READY
