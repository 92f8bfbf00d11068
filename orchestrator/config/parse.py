"""Values of a document -> ClusterSpec, section by section. ``checks`` then looks at how they go together."""

from __future__ import annotations

import re
from typing import Any

from orchestrator.config import arguments, checks, planning
from orchestrator.config.admission import admission
from orchestrator.config.cursor import Cursor, closest
from orchestrator.config.document import Document
from orchestrator.config.endpoints import endpoint, otlp_endpoint
from orchestrator.config.health import health
from orchestrator.config.routing import routing
from orchestrator.core import source
from orchestrator.core.spec import (
    Backend,
    Bind,
    ClusterSpec,
    ControllerSpec,
    GatewaySpec,
    ModelSpec,
    PoolSpec,
    Role,
    RolloutSpec,
    RoutingSpec,
    TelemetrySpec,
)

CLUSTER_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MODEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:/-]{0,126}[A-Za-z0-9])?")
# Far above what makes sense: a slip of the finger is told instead of obeyed.
MOST_PROCESSES = 1000
MOST_REPLICAS = 10_000
LEAST_SILENCE = 2.0  # workers speak every second, and one word that is late is no silence
LOG_LEVELS = ("debug", "info", "warning", "error")


def parse_document(document: Document) -> ClusterSpec:
    """The whole configuration; ConfigError at the first place that is wrong."""
    top = Cursor(document)
    sections = top.fields("cluster", "gateway", "controller", "telemetry", "models")
    if "cluster" not in sections:
        raise top.error("found no cluster section, allowed: cluster: {name: ...}")
    if "models" not in sections:
        raise top.error("found no models, allowed: at least one")
    name, bind = _cluster(sections["cluster"])
    spec = ClusterSpec(
        name=name,
        bind=bind,
        models=_models(sections["models"]),
        gateway=_gateway(sections["gateway"]) if "gateway" in sections else GatewaySpec(),
        controller=_controller(sections["controller"]) if "controller" in sections else ControllerSpec(),
        telemetry=_telemetry(sections["telemetry"]) if "telemetry" in sections else TelemetrySpec(),
    )
    checks.ports(top, spec)
    return spec


def _required(cursor: Cursor, fields: dict[str, Cursor], name: str, allowed: str) -> Cursor:
    if name not in fields:
        raise cursor.error(f"found no {name}, allowed: {allowed}")
    return fields[name]


def _cluster(cursor: Cursor) -> tuple[str, Bind]:
    fields = cursor.fields("name", "bind")
    allowed = "1 to 63 of a-z, 0-9 and -, not - at either end"
    named = _required(cursor, fields, "name", allowed)
    name = named.text(allowed)
    if not CLUSTER_NAME.fullmatch(name):
        raise named.wrong(allowed)
    return name, fields["bind"].choice(Bind) if "bind" in fields else Bind.LOOPBACK


def _gateway(cursor: Cursor) -> GatewaySpec:
    times = ("queue_seconds", "silence_seconds")
    fields = cursor.fields("http", "grpc", "processes", "max_body_bytes", *times, "admission", "health")
    values: dict[str, Any] = {name: endpoint(fields[name]) for name in ("http", "grpc") if name in fields}
    counts = (("processes", 0, MOST_PROCESSES), ("max_body_bytes", 1, None))
    values |= {name: fields[name].integer(least, most) for name, least, most in counts if name in fields}
    values |= {name: fields[name].seconds(zero=name == "queue_seconds") for name in times if name in fields}
    if values.get("silence_seconds", LEAST_SILENCE) < LEAST_SILENCE:
        raise fields["silence_seconds"].wrong(f"{LEAST_SILENCE:g} seconds or more")
    if "admission" in fields:
        values["admission"] = admission(fields["admission"])
    if "health" in fields:
        values["health"] = health(fields["health"])
    return GatewaySpec(**values)


def _controller(cursor: Cursor) -> ControllerSpec:
    times = ("restart_backoff_initial", "restart_backoff_max", "start_timeout", "drain_timeout", "hang_seconds")
    fields = cursor.fields("listen", *times, "rollout")
    values: dict[str, Any] = {
        name: fields[name].seconds(zero=name in ("drain_timeout", "hang_seconds")) for name in times if name in fields
    }
    if "listen" in fields:
        values["listen"] = endpoint(fields["listen"])
    if "rollout" in fields:
        values["rollout"] = _rollout(fields["rollout"])
    spec = ControllerSpec(**values)
    if spec.restart_backoff_max < spec.restart_backoff_initial:
        place = fields.get("restart_backoff_max") or fields["restart_backoff_initial"]
        raise place.wrong(
            "restart_backoff_initial <= restart_backoff_max",
            f"they are {spec.restart_backoff_initial:g} and {spec.restart_backoff_max:g} seconds",
        )
    return spec


def _rollout(cursor: Cursor) -> RolloutSpec:
    fields = cursor.fields("surge", "unavailable", "health_seconds")
    values: dict[str, Any] = {
        name: fields[name].integer(0, MOST_REPLICAS) for name in ("surge", "unavailable") if name in fields
    }
    if "health_seconds" in fields:
        values["health_seconds"] = fields["health_seconds"].seconds(zero=True)
    spec = RolloutSpec(**values)
    if not (spec.surge or spec.unavailable):
        raise fields["surge"].wrong("1 or more where unavailable is 0", "nothing could ever be replaced")
    return spec


def _telemetry(cursor: Cursor) -> TelemetrySpec:
    fields = cursor.fields("otlp_endpoint", "log_level")
    values: dict[str, Any] = {}
    if "otlp_endpoint" in fields and fields["otlp_endpoint"].value is not None:
        values["otlp_endpoint"] = otlp_endpoint(fields["otlp_endpoint"])
    if "log_level" in fields:
        level = fields["log_level"]
        if level.value not in LOG_LEVELS:
            raise level.wrong(" or ".join(LOG_LEVELS), closest(level.value, LOG_LEVELS))
        values["log_level"] = level.value
    return TelemetrySpec(**values)


def _models(cursor: Cursor) -> tuple[ModelSpec, ...]:
    models: list[ModelSpec] = []
    for item in cursor.items():
        model = _model(item)
        if any(model.name == other.name for other in models):
            raise item.child("name").wrong("a name that no other model has")
        models.append(model)
    if not models:
        raise cursor.wrong("at least one model")
    return tuple(models)


def _model(cursor: Cursor) -> ModelSpec:
    fields = cursor.fields("name", "source", "engine", "frontend", "pools", "routing", "slo", "load")
    allowed = "1 to 128 letters, digits and . _ : / -, with a letter or digit at either end"
    named = _required(cursor, fields, "name", allowed)
    name = named.text(allowed)
    if not MODEL_NAME.fullmatch(name):
        raise named.wrong(allowed)
    source_at = _required(cursor, fields, "source", source.FORMS)
    if source.kind_of(source_at.text(source.FORMS)) is None:
        raise source_at.wrong(source.FORMS)
    pools_at = _required(cursor, fields, "pools", "prefill and decode, or serve")
    pools = _pools(pools_at)
    backend = checks.one_backend(pools_at, pools)
    engine = _engine(fields["engine"], backend) if "engine" in fields else {}
    options = arguments.frontend(fields["frontend"]) if "frontend" in fields else {}
    if "frontend" in fields:
        checks.frontend(fields["frontend"], options)
    routed = routing(fields["routing"], disaggregated=Role.PREFILL in pools) if "routing" in fields else RoutingSpec()
    slo = planning.slo(fields["slo"]) if "slo" in fields else None
    load = planning.load(fields["load"]) if "load" in fields else None
    model = ModelSpec(name, source_at.value, pools, engine, options, routed, slo, load)
    planning.known_load(pools_at, model)
    checks.batches(pools_at, model)
    checks.hand_over(pools_at, model)
    return model


def _pools(cursor: Cursor) -> dict[Role, PoolSpec]:
    roles = tuple(role.value for role in Role)
    pools = {Role(name): _pool(Role(name), entry) for name, entry in cursor.fields(*roles).items()}
    if set(pools) not in ({Role.SERVE}, {Role.PREFILL, Role.DECODE}):
        raise cursor.error(f"found {', '.join(pools) or 'no pool'}, allowed: prefill and decode, or serve alone")
    return pools


def _pool(role: Role, cursor: Cursor) -> PoolSpec:
    counts = {"replicas": MOST_REPLICAS, "tensor_parallel": None, "pipeline_parallel": None}
    fields = cursor.fields(*counts, "device", "gpu", "share", "backend", "engine")
    backend = fields["backend"].choice(Backend) if "backend" in fields else Backend.VLLM
    values: dict[str, Any] = {
        name: planning.count(fields[name], most, backend) for name, most in counts.items() if name in fields
    }
    engine = _engine(fields["engine"], backend) if "engine" in fields else {}
    pool = PoolSpec(role, backend=backend, engine=engine, **values, **planning.hardware(fields, backend))
    if "share" in fields:
        planning.one_device(fields["share"], pool)
    return pool


def _engine(cursor: Cursor, backend: Backend) -> dict[str, Any]:
    return arguments.mock(cursor) if backend is Backend.MOCK else arguments.engine(cursor)
