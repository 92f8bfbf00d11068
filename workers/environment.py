"""The environment of an engine's processes. It has to stand before vLLM is imported: vLLM reads it once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.core.spec import Bind, Device
from orchestrator.core.types import WorkerAssignment
from workers import inventory
from workers.executors import over_ray, ranks_beside
from workers.plugin import mark_environment
from workers.transfer import NIXL_PROGRESS_THREAD

_THREADS = "OMP_NUM_THREADS"


def prepare(assignment: WorkerAssignment, model: str, host: str, run_folder: Path) -> None:
    """Sets this process's environment for the engine that it is about to start.

    What Segue relies on is set; what an operator may know better (threads, transports) is left as it is if it is there.
    """
    mark_environment()
    os.environ.update(_fixed(assignment, model, host, run_folder))
    if assignment.device is Device.CPU and inventory.added_by_ray(_THREADS):
        # It goes by the CPUs that the actor booked, which say nothing of those it may use.
        del os.environ[_THREADS]
    for name, value in _suggested(assignment).items():
        os.environ.setdefault(name, value)


def _fixed(assignment: WorkerAssignment, model: str, host: str, run_folder: Path) -> Mapping[str, str]:
    fixed = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # the worker has threads and an event loop: a fork would copy locks
        "VLLM_RPC_BASE_PATH": str(run_folder),
        "VLLM_HOST_IP": host,
        # A rank that lost its peer waits for it for ever: the sooner it is ended, the sooner the loss is known.
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
    }
    if assignment.kv_transfer:
        fixed["VLLM_NIXL_SIDE_CHANNEL_HOST"] = host
        fixed["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(inventory.free_port(host))
        if assignment.device is Device.CPU and assignment.bind is Bind.LOOPBACK:
            # Peers share this machine's memory; over a network, the passive side has to help and keeps the thread.
            fixed[NIXL_PROGRESS_THREAD] = "0"
    if over_ray(assignment):
        fixed.update(_ray(assignment))
    if Path(model).is_dir():
        fixed["HF_HUB_OFFLINE"] = "1"
    if assignment.device is Device.CPU:
        # Several workers share the machine: none may claim cores for itself.
        fixed["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if assignment.tensor_parallel * assignment.pipeline_parallel == 1:
            # The engine core computes by itself: on a CPU a worker process below it would cost 0.6 GB for nothing.
            fixed["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return fixed


def _ray(assignment: WorkerAssignment) -> Mapping[str, str]:
    told = {
        "RAY_ADDRESS": inventory.ray_address(),
        # Ranks' lines come out of the engine core, each as it was written.
        "RAY_COLOR_PREFIX": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # an engine core is told to end by a signal: that is no failure
    }
    if assignment.hosts:
        # Bundles are in the order of the stages. Where Ray chose their nodes, vLLM's order by node suits better.
        ranks = assignment.tensor_parallel * assignment.pipeline_parallel
        told["VLLM_RAY_BUNDLE_INDICES"] = ",".join(str(rank) for rank in range(ranks))
    return told


def _suggested(assignment: WorkerAssignment) -> Mapping[str, str]:
    suggested: dict[str, str] = {}
    if assignment.device is Device.CPU:
        # Half of the cores, as there is often a second worker; ranks compute at the same time and have to share them.
        suggested[_THREADS] = str(max(1, (os.cpu_count() or 1) // (2 * ranks_beside(assignment))))
    if assignment.kv_transfer and assignment.bind is Bind.LOOPBACK:
        suggested["UCX_NET_DEVICES"] = "lo"
    return suggested
