"""Small clusters of mock engines, simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import config
from orchestrator.core.spec import ClusterSpec, Role
from orchestrator.sim import faults
from orchestrator.sim.offer import Offer
from orchestrator.sim.run import Options, Result, routed, settings_of, simulate
from orchestrator.sim.traces import Limits, offers

SMALL: Mapping[str, Any] = {"block_size": 16, "kv_blocks": 1024, "max_num_seqs": 16, "max_model_len": 4096}


def cluster(*roles: str, engine: Mapping[str, Any] = SMALL, **gateway: Any) -> ClusterSpec:
    """One model, ``m``, on mock pools of these roles."""
    pools = {role: {"replicas": 2, "backend": "mock"} for role in roles or ("serve",)}
    model = {"name": "m", "source": "tiny:llama", "engine": dict(engine), "pools": pools}
    return config.parse({"cluster": {"name": "sim"}, "gateway": gateway, "models": [model]}, "test")


def requests(
    spec: ClusterSpec, trace: str = "generate:poisson", *, replicas: int = 4, seed: int = 0, **limits: Any
) -> list[Offer]:
    size = next(iter(settings_of(spec.models[0]).values())).facts.block_size
    return offers(trace, size, Limits(**limits), seed, replicas)


def play(
    spec: ClusterSpec,
    asked: list[Offer],
    *,
    replicas: Mapping[Role, int] | None = None,
    policy: str | None = None,
    disturbed: str = "",
    **options: Any,
) -> Result:
    """A run whose brains check their books after every step."""
    model = routed(spec.models[0], policy)
    chosen = Options(replicas=replicas or {}, faults=faults.parse(disturbed), **{"deep": True, **options})
    return simulate(spec, model, asked, chosen)
