"""Which executor a replica gets, by its device, by how the model is cut and by where its stages are."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.errors import WorkerStartFailed
from orchestrator.core.types import WorkerAssignment
from tests.workers.worker_process import assignment
from workers import executors, inventory
from workers.executors import executor_arguments

PIPELINE = {"worker_cls": "workers.pipeline_cpu.PipelineCpuWorker"}


def order(device: str, tensor: int, pipeline: int, hosts: tuple[str, ...] = (), **fields: Any) -> WorkerAssignment:
    sizes = {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
    return assignment({"device": device, "hosts": hosts, **sizes, **fields})


@pytest.mark.parametrize(
    ("device", "tensor", "pipeline", "expected"),
    [
        ("cpu", 1, 1, {}),
        ("gpu", 1, 1, {}),
        # In a placement group vLLM's own choice would be Ray, whose ranks want GPUs.
        ("cpu", 2, 1, {"distributed_executor_backend": "mp"}),
        # Its own choice would be to refuse: the worker's process sees none of the GPUs of its placement group.
        ("gpu", 4, 1, {"distributed_executor_backend": "ray"}),
        ("gpu", 4, 2, {"distributed_executor_backend": "ray"}),
        ("cpu", 1, 2, {"distributed_executor_backend": "mp", **PIPELINE}),
    ],
)
def test_the_executor_follows_device_and_parallelism(
    device: str, tensor: int, pipeline: int, expected: dict[str, Any]
) -> None:
    assert executor_arguments(order(device, tensor, pipeline)) == expected


@pytest.mark.parametrize(
    ("hosts", "backend"), [((), "mp"), (("a", "a"), "mp"), (("a", "b"), "ray"), (("a", "b", "a"), "ray")]
)
def test_cpus_of_several_nodes_are_reached_over_ray(hosts: tuple[str, ...], backend: str) -> None:
    given = order("cpu", 2, len(hosts) or 2, hosts)
    assert executor_arguments(given) == {"distributed_executor_backend": backend, **PIPELINE}
    assert executors.over_ray(given) is (backend == "ray")


def test_the_configurations_own_executor_goes_first() -> None:
    assert not executors.over_ray(order("gpu", 2, 1, engine={"distributed_executor_backend": "mp"}))


@pytest.mark.parametrize(
    ("tensor", "pipeline", "hosts", "beside"),
    [(2, 2, (), 4), (2, 2, ("a", "b"), 2), (1, 3, ("a", "b", "a"), 2), (1, 1, ("a",), 1)],
)
def test_ranks_share_cores_with_those_of_their_own_node(
    tensor: int, pipeline: int, hosts: tuple[str, ...], beside: int
) -> None:
    assert executors.ranks_beside(order("cpu", tensor, pipeline, hosts)) == beside


def test_ranks_over_ray_need_a_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(WorkerStartFailed, match="in no Ray cluster"):
        inventory.ray_address()
