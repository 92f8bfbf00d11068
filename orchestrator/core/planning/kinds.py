"""The kinds of GPU that pools name, and those that pools which name none leave to others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.devices import Catalogue
from orchestrator.core.planning.places import Node
from orchestrator.core.spec import ClusterSpec, Device, PoolSpec


def check_kinds(spec: ClusterSpec, catalogue: Catalogue) -> None:
    """ConfigError where a pool names a kind of GPU that nobody knows, or one that is none."""
    for model in spec.models:
        for role, pool in model.pools.items():
            for word in pool.gpu:
                where = f"models.{model.name}.pools.{role}.gpu"
                kind = catalogue.find(word, where)
                if kind.kind is not Device.GPU:
                    raise ConfigError(f"{kind.name} is a {kind.kind}, allowed: kinds of GPU", where=where)


def sparing(spec: ClusterSpec, picky: Collection[str], nodes: Sequence[Node], catalogue: Catalogue) -> ClusterSpec:
    """With pools that may run elsewhere kept off the kinds of GPU that pools of the picky models are bound to."""
    words = {word for name in picky for pool in spec.model(name).pools.values() for word in pool.gpu}
    bound = {catalogue.find(word).name for word in words}
    there = dict.fromkeys(node.device for node in nodes if catalogue.find(node.device).kind is Device.GPU)

    def elsewhere(pool: PoolSpec) -> PoolSpec:
        kinds = [catalogue.find(word).name for word in pool.gpu] or there
        others = tuple(kind for kind in kinds if kind in there and kind not in bound)
        return replace(pool, gpu=others) if others and pool.device is Device.GPU else pool

    if not bound:
        return spec
    models = (
        replace(model, pools={role: elsewhere(pool) for role, pool in model.pools.items()}) for model in spec.models
    )
    return replace(spec, models=tuple(models))
