"""Which arguments are Segue's own business, and what to write instead. Data only."""

from __future__ import annotations

from typing import Any

_REPLICAS = "use replicas: each is an engine of its own, and Segue balances between them"
_PLACED = "Segue places engines by itself"
_LOGS = "use telemetry.log_level"
_PLUGIN = "parser plugins are not loaded yet: use one of vLLM's own parsers"
_HAND_OVER = "Segue sets it for the pools prefill and decode"

# vLLM engine arguments that would pull against the orchestrator.
ENGINE_INSTEAD = {
    "model": "use source",
    "served_model_name": "use the model's name",
    "tensor_parallel_size": "use tensor_parallel of the pool",
    "pipeline_parallel_size": "use pipeline_parallel of the pool",
    "prefill_context_parallel_size": "a replica's devices are tensor_parallel x pipeline_parallel",
    "distributed_executor_backend": "Segue chooses it by device and parallelism",
    "worker_cls": "Segue chooses it by device and parallelism",
    "device_ids": _PLACED,
    "nnodes": _PLACED,
    "node_rank": _PLACED,
    "master_addr": _PLACED,
    "master_port": _PLACED,
    "data_parallel_size": _REPLICAS,
    "data_parallel_rank": _REPLICAS,
    "data_parallel_start_rank": _REPLICAS,
    "data_parallel_size_local": _REPLICAS,
    "data_parallel_address": _REPLICAS,
    "data_parallel_rpc_port": _REPLICAS,
    "data_parallel_hybrid_lb": _REPLICAS,
    "data_parallel_external_lb": _REPLICAS,
    "data_parallel_multi_port_external_lb": _REPLICAS,
    "data_parallel_backend": _REPLICAS,
    "enable_elastic_ep": _REPLICAS,
    "elastic_ep_max_dp_size": _REPLICAS,
    "kv_transfer_config": _HAND_OVER,
    "ec_transfer_config": _HAND_OVER,
    "kv_events_config": "Segue always takes KV events, for its router",
    "disable_log_stats": "Segue routes by these statistics",
    "otlp_traces_endpoint": "use telemetry.otlp_endpoint",
    "log_level": _LOGS,
    "log_config_file": _LOGS,
    "logging_config": _LOGS,
    "enable_log_requests": "prompts are never logged",
    "shutdown_timeout": "use controller.drain_timeout",
    "reasoning_parser_plugin": _PLUGIN,
    "skip_tokenizer_init": "the gateway tokenizes; workers never do",
    "tokens_only": "the gateway tokenizes; workers never do",
    "_api_process_count": "use gateway.processes",
    "_api_process_rank": "use gateway.processes",
}

# Options of vLLM's API server that one model of several can have for itself.
FRONTEND_ALLOWED = (
    "chat_template",
    "chat_template_content_format",
    "default_chat_template_kwargs",
    "trust_request_chat_template",
    "trust_request_mm_kwargs",
    "response_role",
    "return_tokens_as_token_ids",
    "enable_auto_tool_choice",
    "tool_call_parser",
    "tool_strict_level",
    "exclude_tools_when_tool_choice_none",
    "enable_prompt_tokens_details",
    "enable_per_request_metrics",
    "enable_force_include_usage",
    "sse_keep_alive_interval",
    "fingerprint_mode",
    "fingerprint_value",
    "cohere_is_reasoning_model",
    "cohere_format",
    "anthropic_disabled_thinking_effort",
)

_GATEWAY = "it belongs to the gateway, not to a model"
_UNLOGGED = "prompts and completions are never logged"

FRONTEND_INSTEAD = {
    "reasoning_parser": "it is an engine argument in vLLM: write it under engine",
    "reasoning_parser_plugin": "it is an engine argument in vLLM: write it under engine",
    "tool_parser_plugin": _PLUGIN,
    "lora_modules": "adapters are not served yet",
    "tool_server": "tools are the client's to run",
    "max_log_len": _UNLOGGED,
    "enable_log_outputs": _UNLOGGED,
    "enable_log_deltas": _UNLOGGED,
    "host": "use gateway.http",
    "port": "use gateway.http",
    "uds": "use gateway.http",
    "grpc_port": "use gateway.grpc",
    "enable_tokenizer_info_endpoint": "operator routes are not for clients",
    "enable_scale_out": "operator routes are not for clients",
    "enable_server_load_tracking": "load is in the metrics segue_running and segue_waiting",
    "api_key": _GATEWAY,
    "ssl_keyfile": _GATEWAY,
    "ssl_certfile": _GATEWAY,
    "ssl_ca_certs": _GATEWAY,
    "root_path": _GATEWAY,
    "middleware": _GATEWAY,
    "allowed_origins": _GATEWAY,
}

# The mock engine's settings and their types, written as in vllm_fields.json.
MOCK_FIELDS: dict[str, list[Any]] = {
    "prefill_tokens_per_second": ["float"],
    "step_seconds": ["float"],
    "transfer_bytes_per_second": ["float"],
    "start_seconds": ["float"],
    "lease_seconds": ["float"],
    "block_size": ["int"],
    "kv_blocks": ["int"],
    "kv_block_bytes": ["int"],
    "max_num_seqs": ["int"],
    "max_model_len": ["int"],
    "enable_prefix_caching": ["bool"],
    "first_token": ["int"],
    "vocabulary": ["int"],
    "eos_one_in": ["int"],
    "restores": ["bool"],
}
