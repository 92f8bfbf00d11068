"""KV hand-over as NIXL does it: how its connector is set up, and what its statistics say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from orchestrator.core.spec import Device
from workers.ports import Transfers

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
