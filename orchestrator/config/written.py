"""A ClusterSpec as the document that it could have been read from: however one comes, it is held to the same rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.config.document import Document
from orchestrator.config.parse import parse_document
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import AUTO, ClusterSpec, ControllerSpec, GatewaySpec, ModelSpec, PoolSpec, RoutingSpec

_COUNTS = ("replicas", "tensor_parallel", "pipeline_parallel")


def checked(spec: ClusterSpec, origin: str) -> ClusterSpec:
    """The spec itself, if a file could say the same. ``origin`` names it in errors.

    Raises:
        ConfigError: what a file would be refused for.
    """
    parse_document(Document(written(spec), origin))
    for model in spec.models:
        for role, pool in model.pools.items():
            if pool.role is not role:
                what = f"found a pool for {pool.role}, allowed: one for {role}"
                raise ConfigError(what, where=f"{origin}: {model.name}.pools.{role}")
    return spec


def written(spec: ClusterSpec) -> dict[str, Any]:
    """All of it but ``gateway.record``, which only the command line says."""
    return {
        "cluster": {"name": spec.name, "bind": spec.bind},
        "gateway": _gateway(spec.gateway),
        "controller": _controller(spec.controller),
        "telemetry": asdict(spec.telemetry),
        "models": [_model(model) for model in spec.models],
    }


def _gateway(gateway: GatewaySpec) -> dict[str, Any]:
    values = asdict(gateway)
    del values["record"]
    return {**values, "http": str(gateway.http), "grpc": str(gateway.grpc)}


def _controller(controller: ControllerSpec) -> dict[str, Any]:
    return {**asdict(controller), "listen": str(controller.listen)}


def _model(model: ModelSpec) -> dict[str, Any]:
    values = {
        "name": model.name,
        "source": model.source,
        "pools": {role: _pool(pool) for role, pool in model.pools.items()},
        "engine": dict(model.engine),
        "frontend": dict(model.frontend),
        "routing": _routing(model.routing),
    }
    if model.slo is not None:
        values["slo"] = _known(asdict(model.slo))
    if model.load is not None:
        values["load"] = asdict(model.load)
    return values


def _pool(pool: PoolSpec) -> dict[str, Any]:
    values = asdict(pool)
    del values["role"]
    for name in _COUNTS:
        if values[name] == AUTO:
            values[name] = "auto"
    values["gpu"] = list(pool.gpu)
    return {name: value for name, value in values.items() if name != "gpu" or value}


def _routing(routing: RoutingSpec) -> dict[str, Any]:
    return {"policy": routing.policy, "parameters": dict(routing.parameters), "prefill": routing.prefill}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
