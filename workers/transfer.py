"""KV hand-over as NIXL does it: how its connector is set up, and what its statistics say."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.core.spec import Device
from orchestrator.core.types import EngineFacts
from workers.ports import Transfers

if TYPE_CHECKING:
    from vllm.config import VllmConfig

NIXL_PROGRESS_THREAD = "SEGUE_NIXL_PROGRESS_THREAD"


def connector_settings(device: Device, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of vLLM's KVTransferConfig; ``chosen`` is the configuration's own and goes first."""
    settings: dict[str, Any] = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        # A prefill worker that died between the halves costs a second prefill, not the request.
        "kv_load_failure_policy": "recompute",
    }
    if device is Device.CPU:
        settings["kv_buffer_device"] = "cpu"
    return {**settings, **chosen}


def kv_format(config: VllmConfig, facts: EngineFacts, source: str) -> str:
    """A short hash of what has to be equal for one engine's blocks to be another's. How they are cut need not be.

    ``source`` names the model: where its files are differs from node to node.
    """
    import vllm

    model, cache, transfer = config.model_config, config.cache_config, config.kv_transfer_config
    parts = [
        source,
        model.revision,
        str(model.dtype),
        model.quantization,
        str(cache.cache_dtype),
        facts.block_size,
        transfer.kv_connector if transfer is not None else None,
        vllm.__version__,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def apply_progress_choice() -> None:
    """In an engine's process: keeps NIXL from starting its progress thread, where the environment says so.

    That thread polls without a pause: on a CPU it takes most of a core from the model, for ever. Without it a transfer
    makes progress whenever its engine looks, which an engine does every millisecond while it waits for one.
    """
    if os.environ.get(NIXL_PROGRESS_THREAD) != "0":
        return
    from vllm.distributed import nixl_utils

    nixl_utils.nixl_agent_config = partial(nixl_utils.nixl_agent_config, enable_prog_thread=False)


def transfers_of(stats: Mapping[str, Any] | None) -> Transfers:
    """What NixlKVConnectorStats counted in a step: one list entry a transfer, seconds and bytes."""
    if not stats:
        return Transfers()
    durations = stats.get("transfer_duration", ())
    return Transfers(
        count=len(durations),
        bytes=sum(stats.get("bytes_transferred", ())),
        seconds=sum(durations),
        failed=len(stats.get("num_failed_transfers", ())) + len(stats.get("num_failed_handshakes", ())),
    )
