"""A cluster at one moment as its operators see it: what is told of it outside follows from one of these to the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.core.readiness import SlotReport, cluster_ready, reports
from orchestrator.core.slots import Kind, Observed, slots_of
from orchestrator.core.spec import ClusterSpec, Role
from orchestrator.core.types import WorkerState


@dataclass(frozen=True, slots=True)
class Loss:
    """The last loss of a slot; ``mark`` is another one after each."""

    mark: float
    reason: str


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers of one model in one role. ``wanted`` is 0 for one that is going."""

    model: str
    role: Role
    wanted: int
    workers: tuple[SlotReport, ...]

    @property
    def ready(self) -> int:
        return sum(worker.snapshot.state is WorkerState.READY for worker in self.workers)


@dataclass(frozen=True, slots=True)
class Scene:
    """``phase`` is that of an upgrade, empty where there was none; ``detail`` why it goes back."""

    name: str
    pools: tuple[Pool, ...]
    losses: tuple[tuple[str, Loss], ...]  # by slot
    ready: bool
    ending: bool = False
    term: int = 0
    phase: str = ""
    done: int = 0
    total: int = 0
    detail: str = ""

    def of_model(self) -> dict[str, list[Pool]]:
        """The pools of each model, in order."""
        models: dict[str, list[Pool]] = {}
        for pool in self.pools:
            models.setdefault(pool.model, []).append(pool)
        return models


def scene_of(
    spec: ClusterSpec,
    observed: Observed,
    *,
    expected: ClusterSpec | None = None,
    ending: bool = False,
    term: int = 0,
    upgrade: tuple[str, int, int, str] = ("", 0, 0, ""),
) -> Scene:
    """``expected``: what has to be there to be ready, if that is less. ``upgrade``: phase, done, total, detail."""
    slots = slots_of(spec)
    known = {slot.slot_id for slot in slots}
    beside = dict.fromkeys(actor.slot for actor in observed.actors if actor.slot.slot_id not in known)
    told = reports((*slots, *beside), observed, ending=ending)
    losses = {
        slot_id: Loss(history.not_before, history.detail)
        for slot_id, history in observed.histories.items()
        if history.failures
    }
    phase, done, total, detail = upgrade
    return Scene(
        spec.name,
        tuple(_pools(spec, told)),
        tuple(losses.items()),
        not ending and cluster_ready(expected or spec, told),
        ending,
        term,
        phase,
        done,
        total,
        detail,
    )


def _pools(spec: ClusterSpec, told: Iterable[SlotReport]) -> list[Pool]:
    wanted = {(model.name, role): pool.replicas for model in spec.models for role, pool in model.pools.items()}
    workers: dict[tuple[str, Role], list[SlotReport]] = {key: [] for key in wanted}
    for report in told:
        if report.slot.kind is Kind.WORKER and report.slot.role is not None:
            workers.setdefault((report.slot.model, report.slot.role), []).append(report)
    return [Pool(*key, wanted.get(key, 0), tuple(own)) for key, own in workers.items()]
