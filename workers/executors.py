"""Which of vLLM's executors runs a replica that takes several devices, and where its ranks meet."""

from __future__ import annotations

import uuid
from typing import Any

from orchestrator.core.spec import Device
from orchestrator.core.types import WorkerAssignment


def executor_arguments(assignment: WorkerAssignment) -> dict[str, Any]:
    """Fields of vLLM's AsyncEngineArgs; none for one device, where vLLM has nothing to choose.

    On GPUs the ranks are Ray actors, one in each bundle of the replica's placement group. On CPUs they are processes
    below the engine core: they share memory instead of a network, and one node has as many of them as are asked for.
    """
    if assignment.tensor_parallel * assignment.pipeline_parallel == 1:
        return {}
    # Said outright: vLLM would count the GPUs that the worker's own process sees, or take any placement group for GPUs.
    if assignment.device is Device.GPU:
        return {"distributed_executor_backend": "ray"}
    chosen = {"distributed_executor_backend": "mp"}
    if assignment.pipeline_parallel > 1:
        chosen["worker_cls"] = "workers.pipeline_cpu.PipelineCpuWorker"
    return chosen


def meet_in(folder: str) -> None:
    """In an engine core's process: its ranks find one another, and one alone itself, by a file in ``folder``.

    vLLM puts that file among the machine's temporary ones, and a rank that is killed leaves it there for ever.
    """
    from vllm.v1.executor import multiproc_executor, uniproc_executor

    # Its name without the folder is also that of the ranks' shared memory (``inventory.shared_memory``).
    where = f"file://{folder}/vllm_dist_{uuid.uuid4().hex}"
    for executor in (multiproc_executor, uniproc_executor):
        executor.get_file_store_init_method = lambda: where  # type: ignore[attr-defined]
