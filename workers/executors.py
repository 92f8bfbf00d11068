"""Which of vLLM's executors runs a replica that takes several devices, and where its ranks meet."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from orchestrator.core.spec import Device
from orchestrator.core.types import WorkerAssignment

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.executor import Executor


def executor_arguments(assignment: WorkerAssignment) -> dict[str, Any]:
    """Fields of vLLM's AsyncEngineArgs; none for one device, where vLLM has nothing to choose.

    On GPUs the ranks are Ray actors, one in each bundle of the replica's placement group; so they are on CPUs of
    several nodes. On the CPUs of one they are processes below the engine core: they share memory instead of a network,
    and a node has as many of them as are asked for.
    """
    if assignment.tensor_parallel * assignment.pipeline_parallel == 1:
        return {}
    over_ray = assignment.device is Device.GPU or len(set(assignment.hosts)) > 1
    # Said outright: vLLM would count the GPUs that the worker's own process sees, or take any placement group for GPUs.
    chosen = {"distributed_executor_backend": "ray" if over_ray else "mp"}
    if assignment.device is Device.CPU and assignment.pipeline_parallel > 1:
        chosen["worker_cls"] = "workers.pipeline_cpu.PipelineCpuWorker"
    return chosen


def over_ray(assignment: WorkerAssignment) -> bool:
    """Whether the ranks are Ray actors, by the arguments above and those of the configuration, which go first."""
    arguments = {**executor_arguments(assignment), **assignment.engine}
    return arguments.get("distributed_executor_backend") == "ray"


def ranks_beside(assignment: WorkerAssignment) -> int:
    """Ranks on the worker's own node, itself included: those of the stages that are there with the first."""
    stages = assignment.hosts.count(assignment.hosts[0]) if assignment.hosts else assignment.pipeline_parallel
    return assignment.tensor_parallel * stages


def executor_class(config: VllmConfig, device: Device) -> type[Executor]:
    """The executor that vLLM would take; in place of its Ray executor, ours."""
    from vllm.v1.executor import Executor

    if config.parallel_config.distributed_executor_backend != "ray":
        found: type[Executor] = Executor.get_class(config)
        return found
    from workers import ray_ranks

    return ray_ranks.CpuRayExecutor if device is Device.CPU else ray_ranks.RayExecutor


def meet_in(folder: str) -> None:
    """In an engine core's process: its ranks find one another, and one alone itself, by a file in ``folder``.

    vLLM puts that file among the machine's temporary ones, and a rank that is killed leaves it there for ever.
    """
    from vllm.v1.executor import multiproc_executor, uniproc_executor

    # Its name without the folder is also that of the ranks' shared memory (``inventory.shared_memory``).
    where = f"file://{folder}/vllm_dist_{uuid.uuid4().hex}"
    for executor in (multiproc_executor, uniproc_executor):
        executor.get_file_store_init_method = lambda: where  # type: ignore[attr-defined]
