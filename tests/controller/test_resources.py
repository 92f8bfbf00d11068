"""What is asked of Ray for each kind of replica, and what status says while Ray does not have it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.controller.resources import Machine, footprint, why_waiting
from orchestrator.core.spec import Backend, Bind, Device, Role
from orchestrator.core.types import WorkerAssignment


def order(
    device: Device,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    share: float = 1.0,
    hosts: tuple[str, ...] = (),
    gpu: tuple[str, ...] = (),
    **engine: Any,
) -> WorkerAssignment:
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
        hosts=hosts,
        gpu=gpu,
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


@pytest.mark.parametrize(
    ("case", "hosts", "strategy"),
    [
        (order(Device.GPU, hosts=("a",)), ["a"], "STRICT_PACK"),
        (order(Device.GPU, tensor=2, hosts=("a",)), ["a", "a"], "STRICT_PACK"),
        (order(Device.GPU, tensor=2, pipeline=2, hosts=("a", "a")), ["a"] * 4, "STRICT_PACK"),
        (order(Device.GPU, tensor=2, pipeline=2, hosts=("b", "a")), ["b", "b", "a", "a"], "PACK"),
        (order(Device.GPU, pipeline=3, hosts=("b", "a", "b")), ["b", "a", "b"], "PACK"),
        (order(Device.GPU, tensor=2, hosts=("a",), distributed_executor_backend="mp"), ["a"], "STRICT_PACK"),
        (order(Device.CPU, pipeline=2, hosts=("a", "b")), ["a", "b"], "PACK"),
        (order(Device.CPU, tensor=2, hosts=("a",)), ["a", "a"], "STRICT_PACK"),
    ],
)
def test_each_stage_is_booked_on_its_host(case: WorkerAssignment, hosts: list[str], strategy: str) -> None:
    need = footprint(case)
    assert [dict(selector) for selector in need.selectors] == [{"ray.io/node-id": host} for host in hosts]
    assert len(need.bundles) == len(hosts)
    assert need.strategy == strategy


def test_where_ray_chooses_it_keeps_to_the_kinds_that_the_pool_names() -> None:
    assert footprint(order(Device.GPU)).selectors == ()
    need = footprint(order(Device.GPU, tensor=2, gpu=("L4", "NVIDIA-L4")))
    assert need.selectors == ({"ray.io/accelerator-type": "in(L4,NVIDIA-L4)"},) * 2
    assert footprint(order(Device.GPU, gpu=("L4",), hosts=("a",))).selectors == ({"ray.io/node-id": "a"},)


def machine(name: str, **resources: float) -> Machine:
    return Machine(f"{name}0123456789", name, resources)


def test_why_a_replica_waits() -> None:
    need = footprint(order(Device.GPU, tensor=8))
    nodes = [machine("a", CPU=16, GPU=4, memory=1e9), machine("b", CPU=8)]
    assert why_waiting(need, nodes, infeasible=True) == (
        "waits for GPU=8 CPU=8 on one node: no node has that much (nodes: a GPU=4 CPU=16, b GPU=0 CPU=8)"
    )
    need = footprint(order(Device.GPU, tensor=1, pipeline=2))
    assert why_waiting(need, [], infeasible=False) == (
        "waits for GPU=2 CPU=2 in the cluster: it is in use by others (nodes: none)"
    )
    many = [machine(f"n{number}", CPU=1) for number in range(10)]
    assert why_waiting(need, many, infeasible=False).endswith("n7 GPU=0 CPU=1, 2 more)")


def test_why_a_replica_waits_for_hosts_of_its_own() -> None:
    nodes = [machine("a", CPU=16, GPU=4), machine("b", CPU=16, GPU=4)]
    need = footprint(order(Device.GPU, tensor=4, hosts=(nodes[1].host_id,)))
    assert why_waiting(need, nodes, infeasible=False) == (
        "waits for GPU=4 CPU=4 on b: it is in use by others (nodes: b GPU=4 CPU=16)"
    )
    need = footprint(order(Device.GPU, pipeline=2, hosts=(nodes[0].host_id, "feedbeefcafe")))
    assert why_waiting(need, nodes, infeasible=True) == (
        "waits for GPU=2 CPU=2 on a, feedbe (gone): there is not as much (nodes: a GPU=4 CPU=16)"
    )
