"""Numbers that no engine can work with, as data: vLLM would tell of most of them too, but minutes later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from orchestrator.config.cursor import Cursor


class Bound(NamedTuple):
    """Numbers from ``least`` to ``most``, and ``also`` where one more has a meaning of its own."""

    allowed: str
    least: float
    most: float = math.inf
    also: float | None = None

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most or value == self.also


MEBIBYTE = 1 << 20
_ABOVE_ZERO = math.ulp(0.0)
_BELOW_ONE = math.nextafter(1.0, 0.0)

SOME = Bound("1 or more", 1)
ANY = Bound("0 or more", 0)
POSITIVE = Bound("a number above 0", _ABOVE_ZERO)
SHARE = Bound("a number above 0, at most 1", _ABOVE_ZERO, 1)
PART = Bound("a number from 0, below 1", 0, _BELOW_ONE)

# vLLM's engine arguments. What is not here may be any number of its type.
ENGINE: dict[str, Bound] = {
    "max_model_len": Bound("1 or more, or -1 for as much as fits", 1, also=-1),
    "kv_cache_memory_bytes": Bound(f"{MEBIBYTE} (1 MiB) or more", MEBIBYTE),
    "max_logprobs": Bound("0 or more, or -1 for the whole vocabulary", 0, also=-1),
    **dict.fromkeys(("gpu_memory_utilization", "kv_cache_metrics_sample"), SHARE),
    **dict.fromkeys(("watermark", "video_pruning_rate"), PART),
    **dict.fromkeys(
        (
            "block_size",
            "cp_kv_cache_interleave_size",
            "cpu_distributed_timeout_seconds",
            "dcp_kv_cache_interleave_size",
            "decode_context_parallel_size",
            "distributed_timeout_seconds",
            "dp_sync_interval",
            "mamba_block_size",
            "max_lora_cls_labels",
            "max_loras",
            "max_num_active_seqs",
            "max_num_batched_tokens",
            "max_num_scheduled_tokens",
            "max_num_seqs",
            "max_parallel_loading_workers",
            "num_gpu_blocks_override",
            "offload_num_in_group",
            "prefill_schedule_interval",
            "prefix_match_unit",
            "renderer_num_workers",
            "replayssm_buffer_len",
            "safetensors_prefetch_block_size",
            "safetensors_prefetch_num_threads",
            "stream_interval",
        ),
        SOME,
    ),
    **dict.fromkeys(
        (
            "cpu_offload_gb",
            "dbo_decode_token_threshold",
            "dbo_prefill_token_threshold",
            "kv_offloading_size",
            "long_prefill_token_threshold",
            "max_num_queued_reqs",
            "max_num_queued_tokens",
            "mm_ipc_gpu_memory_gb",
            "mm_processor_cache_gb",
            "mm_shm_cache_max_object_size_mb",
            "offload_group_size",
            "offload_prefetch_step",
            "prefix_cache_retention_interval",
            "ubatch_size",
        ),
        ANY,
    ),
}

FRONTEND: dict[str, Bound] = {"sse_keep_alive_interval": ANY}

MOCK: dict[str, Bound] = {
    **dict.fromkeys(("block_size", "kv_blocks", "kv_block_bytes", "max_num_seqs", "max_model_len", "vocabulary"), SOME),
    **dict.fromkeys(("step_seconds", "start_seconds", "lease_seconds", "first_token", "eos_one_in"), ANY),
    **dict.fromkeys(("prefill_tokens_per_second", "transfer_bytes_per_second"), POSITIVE),
}


def check(cursor: Cursor, bounds: Mapping[str, Bound]) -> None:
    """ConfigError at the first number of a mapping that is out of its bounds."""
    for name, entry in cursor.entries().items():
        bound, value = bounds.get(name), entry.value
        if bound and isinstance(value, int | float) and not bound.holds(value):
            raise entry.wrong(bound.allowed)
