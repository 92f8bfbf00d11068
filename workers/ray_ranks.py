"""A replica's ranks as Ray actors, one in each bundle of its placement group: on GPUs, and on CPUs of several nodes.

vLLM's Ray executor does the work. What is added here: an engine core, itself no Ray process, joins its worker's
cluster; a rank takes from its worker only what is true on the rank's own node too; and ranks, which Ray ends without a
last word, hold nothing by then that would stay behind.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

import ray
from torch import distributed
from vllm.distributed.parallel_state import get_tp_group, model_parallel_is_initialized
from vllm.platforms import current_platform
from vllm.v1.executor import ray_executor_v2, ray_utils
from vllm.v1.executor.multiproc_executor import WorkerProc

from workers import inventory, restoring
from workers.plugin import WORKER_PID, WORKER_STARTED
from workers.transfer import NIXL_PROGRESS_THREAD, apply_progress_choice

# True of the worker's node or process only.
_NOT_CARRIED = {WORKER_PID, WORKER_STARTED, "VLLM_RPC_BASE_PATH"}
# Read when torch, huggingface_hub or vLLM are imported, which is before a rank is told its environment.
_BEFORE_IMPORTS = (
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "VLLM_CONFIGURE_LOGGING",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_LOGGING_CONFIG_PATH",
    "VLLM_LOGGING_LEVEL",
    NIXL_PROGRESS_THREAD,
)

_MEMORY = "vllm_dist_"  # what ranks on CPUs share begins with it, as ``inventory.shared_memory`` expects


class Rank(ray_executor_v2.RayWorkerProc):
    """A rank in its actor. Its sockets are in a folder of its own, as its node may be another than the worker's."""

    def initialize_worker(
        self, local_rank: int, env_vars: dict[str, str], distributed_init_method: str, *args: Any, **kwargs: Any
    ) -> None:
        apply_progress_choice()
        restoring.install()
        self._folder = inventory.make_run_folder()
        here = {"VLLM_RPC_BASE_PATH": str(self._folder), "VLLM_HOST_IP": inventory.ray_host()}
        super().initialize_worker(local_rank, {**env_vars, **here}, distributed_init_method, *args, **kwargs)

    @staticmethod
    def setup_proc_title_and_log_prefix(enable_ep: bool) -> None:
        # When vLLM comes here again, the ranks have met; next are the weights, and a stop may well come meanwhile.
        WorkerProc.setup_proc_title_and_log_prefix(enable_ep)
        if model_parallel_is_initialized():  # type: ignore[no-untyped-call]
            _forget_names(get_tp_group().mq_broadcaster)

    def _init_message_queues(self, *given: Any) -> None:
        self._queues_of = given  # they are made once all ranks have their weights, and so are soon without names

    def wait_for_init(self) -> dict[str, Any]:
        super()._init_message_queues(*self._queues_of)
        ready: dict[str, Any] = super().wait_for_init()
        return ready

    def run(self) -> None:
        _forget_names(self.worker_response_mq)
        shutil.rmtree(self._folder, ignore_errors=True)
        super().run()


class CpuRank(Rank):
    """A rank without a GPU. Nothing of it listens beyond the address that Ray knows its node by."""

    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        return ray.get_runtime_context().get_node_id(), []

    def create_dist_init_method(self) -> str:
        host = inventory.ray_host()
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self._dist_init_store = distributed.TCPStore(  # type: ignore[attr-defined]
            host_name=host,
            port=port,
            world_size=self._parallel_config.world_size,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listener.detach(),
        )
        return f"tcp://{host}:{port}?name=:{_MEMORY}{uuid.uuid4().hex}"

    def initialize_worker(
        self, local_rank: int, env_vars: dict[str, str], distributed_init_method: str, *args: Any, **kwargs: Any
    ) -> None:
        interface = inventory.interface_of(inventory.ray_host())
        if interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        # Torch takes no notice of the name. vLLM calls the ranks' shared memory by what follows the last colon, and
        # takes ranks that call it the same for ranks of one machine.
        method = f"{distributed_init_method}_{ray.get_runtime_context().get_node_id()[:16]}"
        super().initialize_worker(local_rank, env_vars, method, *args, **kwargs)


class RayExecutor(ray_executor_v2.RayExecutorV2):
    """vLLM's, with the ranks of this module."""

    rank_class: type[Rank] = Rank

    def _init_executor(self) -> None:
        if self.parallel_config.placement_group is None:
            raise RuntimeError("its ranks need a placement group, and the worker is in none")
        ray_executor_v2.RayWorkerProc = self.rank_class  # type: ignore[misc]
        ray_utils.WORKER_SPECIFIC_ENV_VARS.update(_NOT_CARRIED)
        # Its ranks are this job's: Ray ends them whenever this process ends. Their output comes out of this one.
        ray.init(os.environ["RAY_ADDRESS"], logging_level=logging.WARNING, log_to_driver=True)
        super()._init_executor()
        _forget_memory(self.rpc_broadcast_mq)

    def _build_runtime_env(self) -> dict[str, Any]:
        runtime_env: dict[str, Any] = super()._build_runtime_env()
        told = {name: os.environ[name] for name in _BEFORE_IMPORTS if name in os.environ}
        runtime_env["env_vars"] = {**told, **runtime_env["env_vars"]}
        return runtime_env

    def _join_monitor_thread(self) -> None:
        # It looks up every five seconds, but at once when a rank ends.
        for handle in getattr(self, "ray_worker_handles", ()):
            ray.kill(handle.actor)
        super()._join_monitor_thread()

    def shutdown(self) -> None:
        super().shutdown()
        if not getattr(self, "is_failed", True):
            atexit.register(_leave)


class CpuRayExecutor(RayExecutor):
    """Bundles of CPUs instead of GPUs. What a bundle books is a share, so its rank takes none of it."""

    rank_class = CpuRank

    def _init_executor(self) -> None:
        type(current_platform).ray_device_key = "CPU"
        super()._init_executor()

    @staticmethod
    def _get_actor_resource_kwargs() -> dict[str, Any]:
        return {}


def _leave() -> None:
    """Ends this process. Ray would take seconds for it; that its driver is gone it sees just as well."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _forget_names(queue: Any) -> None:
    """Of all that this rank shares by now: whoever needs it has it open."""
    _forget_memory(queue)
    mapped = inventory.shared_memory([os.getpid()])
    inventory.remove_files(path for path in mapped if path.name.startswith(_MEMORY))
    folder = Path(os.environ["VLLM_RPC_BASE_PATH"])
    inventory.remove_files(path for path in folder.iterdir() if path.is_socket())


def _forget_memory(queue: Any) -> None:
    buffer = getattr(queue, "buffer", None)
    if buffer is not None and buffer.is_creator:
        buffer.shared_memory.unlink()
        buffer.is_creator = False
