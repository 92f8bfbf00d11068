"""The places that a cluster has, and what is known of each: the nouns of ``reconcile``.

slot       a place that one actor at a time fills: a replica of a pool, or one gateway process. Its id never changes
           (``smollm2-135m-prefill-0``, ``gateway-0``), so logs, metrics and people can follow it over restarts.
epoch      the number of the plan that started an actor. (slot id, epoch) names one actor for all time: whoever holds a
           link to an older filling of the same slot sees it by the epoch alone.
history    what a slot went through: fillings, failures in a row, and before when it may not be filled again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.spec import ClusterSpec, ControllerSpec, Role
from orchestrator.core.types import ActorSnapshot, WorkerState

SILENCE_LIMIT = 30.0  # seconds a ready actor may leave every question open before it counts as lost


class Kind(StrEnum):
    """What fills a slot."""

    WORKER = "worker"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Slot:
    """A desired place. ``model`` and ``role`` are set for workers only."""

    slot_id: str
    kind: Kind
    model: str = ""
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class SlotHistory:
    """What a slot went through; ``lost_as`` and ``detail`` tell of the last loss.

    ``not_before`` is on the planner's clock; ``backoff`` (seconds) led to it.
    """

    fillings: int = 0
    failures: int = 0
    not_before: float = 0.0
    backoff: float = 0.0
    lost_as: WorkerState = WorkerState.PENDING
    detail: str = ""

    @property
    def restarts(self) -> int:
        return max(0, self.fillings - 1)


@dataclass(frozen=True, slots=True)
class ObservedActor:
    """An actor as the controller knows it now.

    ``snapshot.state`` is the controller's own verdict, the rest of the snapshot is the actor's last word. Times are on
    the planner's clock: ``changed_at`` when the state was entered, ``ready_at`` when it first became ready,
    ``heard_at`` when it last answered. ``leaving``: an order to end it is being carried out.
    """

    slot: Slot
    epoch: int
    snapshot: ActorSnapshot
    changed_at: float
    heard_at: float
    ready_at: float | None = None
    leaving: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.slot.slot_id, self.epoch

    @property
    def state(self) -> WorkerState:
        return self.snapshot.state


@dataclass(frozen=True, slots=True)
class Observed:
    """One immutable look at the cluster. ``epoch`` is that of the last plan that changed something."""

    epoch: int
    actors: tuple[ObservedActor, ...]
    histories: Mapping[str, SlotHistory]


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard to try, in seconds. After ``stable_after`` of being ready a slot's failures are forgotten."""

    backoff_initial: float
    backoff_max: float
    start_timeout: float
    stable_after: float
    silence: float = SILENCE_LIMIT

    @staticmethod
    def of(spec: ControllerSpec) -> Limits:
        """Stability is a whole longest backoff: what dies more often than that is a crash loop and is slowed down."""
        return Limits(
            backoff_initial=spec.restart_backoff_initial,
            backoff_max=spec.restart_backoff_max,
            start_timeout=spec.start_timeout,
            stable_after=spec.restart_backoff_max,
        )


def slots_of(spec: ClusterSpec) -> tuple[Slot, ...]:
    """Every place that the specification asks for: workers in the order of models and pools, then gateways."""
    workers = [
        Slot(f"{prefix}-{pool.role}-{index}", Kind.WORKER, model.name, pool.role)
        for model, prefix in zip(spec.models, _prefixes(spec), strict=True)
        for pool in model.pools.values()
        for index in range(pool.replicas)
    ]
    gateways = [Slot(f"gateway-{index}", Kind.GATEWAY) for index in range(spec.gateway.processes)]
    return (*workers, *gateways)


def _prefixes(spec: ClusterSpec) -> list[str]:
    """A file-name-safe, unique prefix a model; model names may hold slashes and differ in nothing else."""
    taken: list[str] = []
    for model in spec.models:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", model.name).strip("-.") or "model"
        prefix, number = plain, 2
        while prefix in taken:
            prefix, number = f"{plain}-{number}", number + 1
        taken.append(prefix)
    return taken
