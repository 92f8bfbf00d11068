"""vLLM's engine interface is internal to vLLM: when it moves, this fails before anything else does."""

from __future__ import annotations

import ast
import inspect
import textwrap

import vllm
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.output_processor import RequestState

from orchestrator.gateway.cluster_core import ClusterCore

# What a front end may ask of its core while it serves the routes that clients can reach.
SERVED = {
    "add_request_async",
    "abort_requests_async",
    "get_output_async",
    "get_supported_tasks_async",
    "reset_mm_cache_async",
    "is_sleeping_async",
    "get_kv_event_sources",
    "dp_engines_running",
    "engine_ranks_managed",
    "resources",
    "shutdown",
}
# What only operators' routes ask for; those are not on the gateway's list.
OPERATORS = {
    "add_lora_async",
    "collective_rpc_async",
    "commit_elastic_ep",
    "compute_weight_checksums_async",
    "get_status",
    "get_weight_version_async",
    "handle_fault",
    "is_scheduler_paused_async",
    "list_loras_async",
    "pause_scheduler_async",
    "pin_lora_async",
    "prepare_elastic_ep",
    "profile_async",
    "release_kv_cache_memory_async",
    "remove_lora_async",
    "reset_encoder_cache_async",
    "reset_prefix_cache_async",
    "resume_scheduler_async",
    "set_weight_version_async",
    "sleep_async",
    "wake_up_async",
}


def asked_of_the_core() -> set[str]:
    """Each ``engine_core.NAME`` in AsyncLLM's source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(AsyncLLM)))

    def is_core(node: ast.expr) -> bool:
        return getattr(node, "attr", getattr(node, "id", None)) == "engine_core"

    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_core(node.value)}


def test_version_is_the_one_that_the_seam_was_made_for() -> None:
    assert vllm.__version__.startswith("0.32.")


def test_front_end_asks_nothing_new_of_its_core() -> None:
    assert asked_of_the_core() == SERVED | OPERATORS


def test_all_that_serving_asks_for_is_there() -> None:
    missing = {name for name in SERVED if getattr(ClusterCore, name) is getattr(EngineCoreClient, name, None)}
    assert missing == set()


def test_frames_have_the_fields_that_both_sides_count_on() -> None:
    """Structs are sent as arrays: a field that moves is read as another."""
    assert EngineCoreRequest.__struct_fields__[:7] == (
        "request_id",
        "prompt_token_ids",
        "mm_features",
        "sampling_params",
        "pooling_params",
        "arrival_time",
        "lora_request",
    )
    assert {"abort_immediately", "prompt_embeds", "trace_headers"} <= set(EngineCoreRequest.__struct_fields__)
    assert EngineCoreOutput.__struct_fields__[:2] == ("request_id", "new_token_ids")
    wanted = {"finish_reason", "kv_transfer_params", "prefill_stats", "events", "stop_reason"}
    assert wanted <= set(EngineCoreOutput.__struct_fields__)
    assert {"outputs", "scheduler_stats", "timestamp"} <= set(EngineCoreOutputs.__struct_fields__)


def test_a_request_can_be_failed_by_its_state() -> None:
    parameters = inspect.signature(RequestState.__init__).parameters
    assert {"queue", "parent_req"} <= set(parameters)
