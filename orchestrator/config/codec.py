"""A ClusterSpec as JSON and back: how it travels to actors and into the run state. Not a format for people."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from orchestrator.core.spec import (
    Backend,
    Bind,
    ClusterSpec,
    ControllerSpec,
    Device,
    Endpoint,
    GatewaySpec,
    ModelSpec,
    PoolSpec,
    Role,
    TelemetrySpec,
)


def dumps(spec: ClusterSpec) -> str:
    """The whole spec on one line; ``loads`` gives an equal one back."""
    return json.dumps(dataclasses.asdict(spec), allow_nan=False)


def loads(text: str) -> ClusterSpec:
    """The spec that ``dumps`` wrote. Not for text that people wrote: nothing is checked."""
    raw = json.loads(text)
    return ClusterSpec(
        name=raw["name"],
        bind=Bind(raw["bind"]),
        models=tuple(_model(model) for model in raw["models"]),
        gateway=GatewaySpec(**_with_endpoints(raw["gateway"], "http", "grpc")),
        controller=ControllerSpec(**_with_endpoints(raw["controller"], "listen")),
        telemetry=TelemetrySpec(**raw["telemetry"]),
    )


def _with_endpoints(raw: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**raw, **{name: Endpoint(**raw[name]) for name in names}}


def _model(raw: dict[str, Any]) -> ModelSpec:
    return ModelSpec(**{**raw, "pools": {Role(role): _pool(pool) for role, pool in raw["pools"].items()}})


def _pool(raw: dict[str, Any]) -> PoolSpec:
    kinds = {"role": Role(raw["role"]), "device": Device(raw["device"]), "backend": Backend(raw["backend"])}
    return PoolSpec(**{**raw, **kinds})
