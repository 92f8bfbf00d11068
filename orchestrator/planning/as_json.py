"""A plan for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.core.planning.choices import Choice, Loser, PoolChoice
from orchestrator.core.planning.differences import Difference
from orchestrator.core.planning.moves import Moves
from orchestrator.core.planning.places import Node, Placed
from orchestrator.core.planning.plan import ClusterPlan, ModelPlan

# Of a model that can't be run they are null.
OF_CHOICE = (
    "ttft_ms",
    "itl_ms",
    "requests_per_second",
    "most_requests_per_second",
    "usd_per_hour",
    "watts",
    "usd_per_million_tokens",
    "wh_per_million_tokens",
)


def as_json(plan: ClusterPlan, differences: Sequence[Difference] | None = None) -> dict[str, Any]:
    """Plain values. Times are in milliseconds; a pool's bytes are those of its fullest device.

    ``differences`` to what runs; None where nothing runs.
    """
    return {
        "fits": plan.fits,
        "reasons": [*plan.reasons, *plan.misses],
        "models": [_model(model, plan) for model in plan.models],
        "skipped": list(plan.skipped),
        "buy": [_node(node) for node in plan.bought],
        "changes": None if differences is None else _changes(plan.moves, differences),
    }


def _changes(moves: Moves, differences: Sequence[Difference]) -> dict[str, Any]:
    return {
        "added": [placed.gang_id for placed in moves.added],
        "removed": [placed.gang_id for placed in moves.removed],
        "moved": [{"id": was.gang_id, "from": _stages(was), "to": _stages(now)} for was, now in moves.moved],
        "kept": [placed.gang_id for placed in moves.kept],
        "settings": [asdict(each) for each in differences],
    }


def _stages(placed: Placed) -> list[list[Any]]:
    return [[node, list(devices)] for node, devices in placed.stages]


def _model(model: ModelPlan, plan: ClusterPlan) -> dict[str, Any]:
    choice = model.choice
    found: dict[str, Any] = {
        "name": model.name,
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "pools": [],
        "losers": [_loser(loser) for loser in choice.losers],
        **{name: getattr(choice, name, None) for name in OF_CHOICE},
    }
    if isinstance(choice, Choice):
        placed = {each.gang_id: each for each in plan.placement.placed}
        gangs = {
            role: [gang.gang_id for gang in plan.gangs if gang.model == model.name and gang.role is role]
            for role in (pool.role for pool in choice.pools)
        }
        found["pools"] = [
            _pool(pool, [placed[gang_id] for gang_id in gangs[pool.role] if gang_id in placed]) for pool in choice.pools
        ]
    return found


def _pool(pool: PoolChoice, placed: list[Placed]) -> dict[str, Any]:
    device = pool.fit.device
    return {
        "role": pool.role.value,
        "replicas": pool.replicas,
        "tensor_parallel": pool.tensor_parallel,
        "pipeline_parallel": pool.pipeline_parallel,
        "device": pool.device.name,
        "share": pool.share,
        "bytes_per_device": {"weights": device.weights, "kv": device.kv, "other": device.other},
        "kv_tokens": pool.fit.kv_tokens,
        "placement": [_stages(each) for each in placed],
        "ttft_ms": pool.ttft_ms,
        "itl_ms": pool.itl_ms,
        "tokens_per_second": pool.tokens_per_second,
        "busy": pool.busy,
        "notes": list(pool.fit.notes),
    }


def _loser(loser: Loser) -> dict[str, Any]:
    return {
        "role": loser.role.value,
        "device": loser.device,
        "tensor_parallel": loser.tensor_parallel,
        "pipeline_parallel": loser.pipeline_parallel,
        "replicas": loser.replicas,
        "usd_per_hour": loser.usd_per_hour,
        "why": loser.why,
    }


def _node(node: Node) -> dict[str, Any]:
    return {"name": node.name, "device": node.device, "count": node.count}
