"""What is asked of Ray for each kind of replica, and what status says while Ray does not have it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.controller.resources import footprint, why_waiting
from orchestrator.core.spec import Backend, Bind, Device, Role
from orchestrator.core.types import WorkerAssignment


def order(device: Device, *, tensor: int = 1, pipeline: int = 1, share: float = 1.0, **engine: Any) -> WorkerAssignment:
    return WorkerAssignment(
        cluster="test",
        worker_id="m-decode-0",
        epoch=1,
        model="m",
        source="none",
        role=Role.DECODE,
        device=device,
        backend=Backend.VLLM,
        bind=Bind.LOOPBACK,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        engine=engine,
        share=share,
    )


def test_many_cpu_replicas_fit_on_a_laptop() -> None:
    need = footprint(order(Device.CPU, tensor=2))
    assert sum(bundle["CPU"] for bundle in need.bundles) * 20 < 2
    assert need.actor_gpus == 0


@pytest.mark.parametrize(
    ("case", "bundles", "strategy", "actor_gpus"),
    [
        (order(Device.GPU), [{"GPU": 1, "CPU": 1}], "STRICT_PACK", 1),
        (order(Device.GPU, share=0.25), [{"GPU": 0.25, "CPU": 1}], "STRICT_PACK", 0.25),
        (order(Device.GPU, tensor=4), [{"GPU": 1, "CPU": 1}] * 4, "STRICT_PACK", 0),
        (order(Device.GPU, tensor=2, pipeline=2), [{"GPU": 1, "CPU": 1}] * 4, "PACK", 0),
        (order(Device.GPU, tensor=4, distributed_executor_backend="mp"), [{"GPU": 4, "CPU": 4}], "STRICT_PACK", 4),
    ],
)
def test_gpus_are_booked_whole_but_for_a_share_of_a_lone_one(
    case: WorkerAssignment, bundles: list[dict[str, float]], strategy: str, actor_gpus: float
) -> None:
    need = footprint(case)
    assert (list(need.bundles), need.strategy, need.actor_gpus) == (bundles, strategy, actor_gpus)


def test_why_a_replica_waits() -> None:
    need = footprint(order(Device.GPU, tensor=8))
    nodes = [{"CPU": 16.0, "GPU": 4.0, "memory": 1e9}, {"CPU": 8.0}]
    assert why_waiting(need, nodes, infeasible=True) == (
        "waits for GPU=8 CPU=8 on one node: no node has that much (nodes: GPU=4 CPU=16, GPU=0 CPU=8)"
    )
    need = footprint(order(Device.GPU, tensor=1, pipeline=2))
    assert why_waiting(need, [], infeasible=False) == (
        "waits for GPU=2 CPU=2 in the cluster: it is in use by others (nodes: none)"
    )
