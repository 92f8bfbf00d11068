"""What a modelled engine is: a mock's own settings, or a vLLM engine's arguments with stated guesses for the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config import effective_engine_args
from orchestrator.core.cost import CostModel
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import Backend, Device, ModelSpec, PoolSpec
from orchestrator.core.types import EngineFacts

# A mock's settings, by the names and defaults that `workers.mock_settings` has.
MOCK_DEFAULTS: Mapping[str, Any] = {
    "prefill_tokens_per_second": 20_000.0,
    "step_seconds": 0.01,
    "transfer_bytes_per_second": 10e9,
    "lease_seconds": 30.0,
    "block_size": 16,
    "kv_blocks": 4096,
    "kv_block_bytes": 1 << 16,
    "max_num_seqs": 64,
    "max_model_len": 8192,
    "enable_prefix_caching": True,
}
# What is assumed of a vLLM engine where the configuration does not say: vLLM's own defaults, and a KV cache as of 80
# layers with 8 KV heads of 128 for each 70 billion parameters, in 16 bits.
_BLOCK_SIZE = {Device.GPU: 16, Device.CPU: 32}
_MAX_NUM_SEQS = {Device.GPU: 256, Device.CPU: 16}
_MAX_MODEL_LEN = 131_072
_BATCHED_TOKENS = 8192
_DEVICE_BYTES = {Device.GPU: 80 << 30, Device.CPU: 4 << 30}
_KV_BYTES_PER_TOKEN_AND_PARAMETER = 2 * 80 * 8 * 128 * 2 / 70e9
_PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
_UNKNOWN_PARAMETERS = 8e9


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One pool's engines. A step takes ``step_seconds`` and ``sequence_seconds`` for each decoding sequence, and

    ``prefill_seconds`` (a token) and ``context_seconds`` (a token and a token before it) for prompts.
    """

    facts: EngineFacts
    caching: bool
    lease_seconds: float
    batched_tokens: int  # prompt tokens that one step computes at most; a mock knows no bound
    step_seconds: float
    sequence_seconds: float
    prefill_seconds: float
    context_seconds: float
    handover_seconds: float  # to fetch a prompt's KV,
    block_seconds: float  # and for each of its blocks
    spread: float  # a worker's speed is off by up to this share, for good
    noise: float  # and each of its steps by up to this one


def engine_settings(model: ModelSpec, pool: PoolSpec, spread: float | None, noise: float | None) -> EngineSettings:
    """The settings of a pool's engines. ``spread`` and ``noise``: None for 0 (a mock) or 0.05 (anything else).

    Raises:
        ConfigError: a mock's setting has the wrong type.
    """
    arguments = effective_engine_args(model, pool)
    if pool.backend is Backend.MOCK:
        return _mock(arguments, spread or 0.0, noise or 0.0)
    return _modelled(model, pool, arguments, 0.05 if spread is None else spread, 0.05 if noise is None else noise)


def _mock(arguments: Mapping[str, Any], spread: float, noise: float) -> EngineSettings:
    chosen = dict(MOCK_DEFAULTS)
    for name, default in MOCK_DEFAULTS.items():
        value = arguments.get(name)
        if value is None:
            continue
        if not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
            raise ConfigError(f"{value!r} is no {type(default).__name__}", where=f"engine.{name}")
        chosen[name] = value
    facts = EngineFacts(
        block_size=chosen["block_size"],
        kv_blocks_total=chosen["kv_blocks"],
        kv_block_bytes=chosen["kv_block_bytes"],
        max_model_len=chosen["max_model_len"],
        max_num_seqs=chosen["max_num_seqs"],
        kv_events=chosen["enable_prefix_caching"],
    )
    return EngineSettings(
        facts=facts,
        caching=chosen["enable_prefix_caching"],
        lease_seconds=chosen["lease_seconds"],
        batched_tokens=1 << 60,
        step_seconds=chosen["step_seconds"],
        sequence_seconds=0.0,
        prefill_seconds=1 / chosen["prefill_tokens_per_second"],
        context_seconds=0.0,
        handover_seconds=0.0,
        block_seconds=chosen["kv_block_bytes"] / chosen["transfer_bytes_per_second"],
        spread=spread,
        noise=noise,
    )


def _modelled(
    model: ModelSpec, pool: PoolSpec, arguments: Mapping[str, Any], spread: float, noise: float
) -> EngineSettings:
    """A vLLM engine that takes what the cost model's roofline says, as straight lines through a few of its points.

    A replica's devices share the work evenly and without a loss.
    """
    facts = _facts(model, pool, arguments)
    cost = CostModel(facts)
    few, many = cost.step_seconds(1), cost.step_seconds(facts.max_num_seqs)
    each = (many - few) / max(1, facts.max_num_seqs - 1)
    chunk, context = 2048, 16_384
    alone, both, later = (cost.prefill_seconds(*of) for of in ((chunk, 0), (2 * chunk, 0), (chunk, context)))
    deeper = max(0.0, later - alone) / (chunk * context)
    first = max(1e-9, (both - alone) / chunk - deeper * 1.5 * chunk)  # without what each step costs
    devices = pool.devices_per_replica
    return EngineSettings(
        facts=facts,
        caching=bool(arguments.get("enable_prefix_caching", True)),
        lease_seconds=30.0,
        batched_tokens=int(arguments.get("max_num_batched_tokens") or _BATCHED_TOKENS),
        step_seconds=(few - each) / devices,
        sequence_seconds=each / devices,
        prefill_seconds=first / devices,
        context_seconds=deeper / devices,
        block_seconds=cost.transfer_seconds(1024 + facts.block_size) - cost.transfer_seconds(1024),
        handover_seconds=cost.transfer_seconds(0),
        spread=spread,
        noise=noise,
    )


def _facts(model: ModelSpec, pool: PoolSpec, arguments: Mapping[str, Any]) -> EngineFacts:
    block_size = int(arguments.get("block_size") or _BLOCK_SIZE[pool.device])
    parameters = parameters_of(model)
    weights = int(2 * parameters)
    block_bytes = max(1, int(block_size * parameters * _KV_BYTES_PER_TOKEN_AND_PARAMETER))
    room = arguments.get("kv_cache_memory_bytes")
    if room is None:
        share = float(arguments.get("gpu_memory_utilization") or 0.9)
        room = max(0.1 * weights, pool.devices_per_replica * _DEVICE_BYTES[pool.device] * share - weights)
    return EngineFacts(
        block_size=block_size,
        kv_blocks_total=int(arguments.get("num_gpu_blocks_override") or max(64, room // block_bytes)),
        kv_block_bytes=block_bytes,
        max_model_len=int(arguments.get("max_model_len") or _MAX_MODEL_LEN),
        max_num_seqs=int(arguments.get("max_num_seqs") or _MAX_NUM_SEQS[pool.device]),
        kv_events=bool(arguments.get("enable_prefix_caching", True)),
        weight_bytes=weights,
        device=pool.device,
    )


def parameters_of(model: ModelSpec) -> float:
    """A model's parameters by the number in its name (135m, 70B), 8 billion where it has none."""
    for text in (model.name, model.source):
        if found := _PARAMETERS.search(text):
            return float(found[1]) * (1e9 if found[2] in "bB" else 1e6)
    return _UNKNOWN_PARAMETERS
