"""From a slot and an epoch to an actor's complete orders, and the name of what these make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.controller.kinds import names_of
from orchestrator.controller.ports import Order
from orchestrator.core.planning.settings import UTILIZATION
from orchestrator.core.slots import Slot
from orchestrator.core.spec import Backend, ClusterSpec, ModelSpec, PoolSpec, Role
from orchestrator.core.types import GatewayAssignment, WorkerAssignment

EngineArgs = Callable[[ModelSpec, PoolSpec], dict[str, Any]]
# Which filling of which slot it is, where it is and who speaks to it: replicas that differ in nothing else are alike.
_PASSING = frozenset(
    ("cluster", "worker_id", "gateway_id", "epoch", "controller", "log_dir", "hosts", "selector", "version")
)


def version_of(order: Order) -> str:
    """A short hash of all that an order says its actor is made of."""
    return short_hash({name: value for name, value in asdict(order).items() if name not in _PASSING})


def short_hash(value: object) -> str:
    """Of anything that JSON can say, and of what a word says of the rest."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Assigner:
    """Writes orders. ``engine_args`` is ``config.effective_engine_args``; ``fleet_address`` the controller's own."""

    spec: ClusterSpec
    log_dir: str
    engine_args: EngineArgs
    fleet_address: str = ""

    def order(self, slot: Slot, epoch: int) -> Order:
        """The orders for this filling of the slot."""
        order = self._gateway(slot, epoch) if slot.role is None else self._worker(slot, slot.role, epoch)
        return replace(order, version=version_of(order))

    def _gateway(self, slot: Slot, epoch: int) -> GatewayAssignment:
        spec = self.spec
        settings = short_hash([asdict(spec.gateway), asdict(spec.telemetry)])
        record = spec.gateway.recording(slot.slot_id)
        return GatewayAssignment(spec.name, slot.slot_id, epoch, self.fleet_address, self.log_dir, record, settings)

    def _worker(self, slot: Slot, role: Role, epoch: int) -> WorkerAssignment:
        model = self.spec.model(slot.model)
        pool = model.pools[role]
        return WorkerAssignment(
            cluster=self.spec.name,
            worker_id=slot.slot_id,
            epoch=epoch,
            model=model.name,
            source=model.source,
            role=pool.role,
            device=pool.device,
            backend=pool.backend,
            bind=self.spec.bind,
            tensor_parallel=pool.tensor_parallel,
            pipeline_parallel=pool.pipeline_parallel,
            engine=_within_share(self.engine_args(model, pool), pool),
            kv_transfer=model.disaggregated,
            otlp_endpoint=self.spec.telemetry.otlp_endpoint,
            log_level=self.spec.telemetry.log_level,
            log_dir=self.log_dir,
            share=pool.share,
            gpu=names_of(pool.gpu),
            hang_seconds=self.spec.controller.hang_seconds,
        )


def _within_share(engine: dict[str, Any], pool: PoolSpec) -> dict[str, Any]:
    """Ray only counts parts of a GPU: a vLLM engine keeps to its part by the memory that it takes."""
    if pool.share == 1 or pool.backend is not Backend.VLLM:
        return engine
    whole = engine.get("gpu_memory_utilization")
    return {**engine, "gpu_memory_utilization": pool.share * (UTILIZATION if whole is None else whole)}
