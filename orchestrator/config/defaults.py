"""Which engine arguments a worker really gets."""

from __future__ import annotations

from typing import Any

from orchestrator.core.spec import Backend, Device, ModelSpec, PoolSpec

# What makes an engine on a CPU start in seconds and leave memory for others. A GPU gets vLLM's own defaults.
CPU_DEFAULTS: dict[str, Any] = {
    "enforce_eager": True,
    "block_size": 32,
    "kv_cache_memory_bytes": 256 << 20,
    "max_num_seqs": 16,
}


def effective_engine_args(model: ModelSpec, pool: PoolSpec) -> dict[str, Any]:
    """Arguments for one replica: the device's defaults, then the model's, then the pool's, then the parallelism.

    For vLLM these are fields of ``AsyncEngineArgs`` without the model itself; for a mock they are the mock's own
    settings, as far as the configuration names them.
    """
    if pool.backend is Backend.MOCK:
        return {**model.engine, **pool.engine}
    defaults = CPU_DEFAULTS if pool.device is Device.CPU else {}
    return {
        **defaults,
        **model.engine,
        **pool.engine,
        "tensor_parallel_size": pool.tensor_parallel,
        "pipeline_parallel_size": pool.pipeline_parallel,
    }
