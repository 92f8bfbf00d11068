"""A rank of a pipeline on CPUs. vLLM makes one by its name (``executors``)."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker  # first: it replaces parts of torch that the rest takes hold of

# isort: split
from vllm.distributed import get_pp_group
from vllm.v1.worker.worker_base import CompilationTimes


class PipelineCpuWorker(CPUWorker):
    """Has room for what the stage before sends, also where nothing was warmed up.

    vLLM makes that room in a first run on made-up tokens, which an eager engine on a CPU leaves out.
    """

    def compile_or_warm_up_model(self) -> CompilationTimes:
        times = super().compile_or_warm_up_model()
        runner = self.model_runner
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            model: Any = runner.model
            runner.intermediate_tensors = model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
        return times
