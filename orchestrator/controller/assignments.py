"""From a slot and an epoch to an actor's complete orders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.controller.kinds import names_of
from orchestrator.controller.ports import Order
from orchestrator.core.planning.settings import UTILIZATION
from orchestrator.core.slots import Kind, Slot
from orchestrator.core.spec import Backend, ClusterSpec, ModelSpec, PoolSpec
from orchestrator.core.types import GatewayAssignment, WorkerAssignment

EngineArgs = Callable[[ModelSpec, PoolSpec], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Assigner:
    """Writes orders. ``engine_args`` is ``config.effective_engine_args``; ``fleet_address`` the controller's own."""

    spec: ClusterSpec
    log_dir: str
    engine_args: EngineArgs
    fleet_address: str = ""

    def order(self, slot: Slot, epoch: int) -> Order:
        """The orders for this filling of the slot."""
        if slot.kind is Kind.GATEWAY or slot.role is None:
            record = self.spec.gateway.recording(slot.slot_id)
            return GatewayAssignment(self.spec.name, slot.slot_id, epoch, self.fleet_address, self.log_dir, record)
        model = self.spec.model(slot.model)
        pool = model.pools[slot.role]
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
        )


def _within_share(engine: dict[str, Any], pool: PoolSpec) -> dict[str, Any]:
    """Ray only counts parts of a GPU: a vLLM engine keeps to its part by the memory that it takes."""
    if pool.share == 1 or pool.backend is not Backend.VLLM:
        return engine
    whole = engine.get("gpu_memory_utilization")
    return {**engine, "gpu_memory_utilization": pool.share * (UTILIZATION if whole is None else whole)}
