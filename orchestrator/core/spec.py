"""What the operator asked for, after validation: plain frozen values. ``orchestrator.config`` makes them from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

AUTO = 0  # a count that is left to the planner: ``auto`` in YAML
HANG_SECONDS = 120.0  # without a step, that are no hang yet of an engine with requests
SILENCE_SECONDS = 5.0  # after which a gateway goes on without a worker, which speaks every second


class Role(StrEnum):
    """What a pool's workers do with a request."""

    PREFILL = "prefill"
    DECODE = "decode"
    SERVE = "serve"  # both halves in one engine


class Device(StrEnum):
    """What a worker computes on."""

    CPU = "cpu"
    GPU = "gpu"


class Backend(StrEnum):
    """What stands behind a worker's session."""

    VLLM = "vllm"
    MOCK = "mock"  # honest timings, deterministic tokens, no weights: for load tests and tests of everything else


class Bind(StrEnum):
    """Which interface workers listen on."""

    LOOPBACK = "loopback"
    NODE = "node"  # the address that Ray knows the node by


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a TCP port; port 0 asks for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Replicas that are alike. ``engine`` holds this pool's own vLLM arguments, over the model's.

    ``replicas``, ``tensor_parallel`` and ``pipeline_parallel`` may be AUTO.
    """

    role: Role
    replicas: int = 1
    device: Device = Device.CPU
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    backend: Backend = Backend.VLLM
    engine: Mapping[str, Any] = field(default_factory=dict)
    gpu: tuple[str, ...] = ()  # kinds of the catalogue that it may run on, best first; any, if there are none
    share: float = 1.0  # of one GPU; below 1 only with one device

    @property
    def devices_per_replica(self) -> int:
        """0 as long as either size is AUTO."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def open_counts(self) -> tuple[str, ...]:
        """The fields that are AUTO, by name."""
        counts = {
            "replicas": self.replicas,
            "tensor_parallel": self.tensor_parallel,
            "pipeline_parallel": self.pipeline_parallel,
        }
        return tuple(name for name, count in counts.items() if count == AUTO)


class PrefillPlace(StrEnum):
    """Where a model with a prefill pool computes a prompt."""

    AUTO = "auto"  # decided for each request, by what it would cost
    APART = "apart"  # on the prefill pool, wherever that is possible
    IN_PLACE = "in_place"  # where it decodes


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """How workers are chosen: a policy's name (``core.policies`` lists them) and its parameters."""

    policy: str = "cost"
    parameters: Mapping[str, float] = field(default_factory=dict)
    prefill: PrefillPlace = PrefillPlace.AUTO


@dataclass(frozen=True, slots=True)
class SloSpec:
    """What a typical (median) request should take at the model's load; None where it doesn't matter.

    ``ttft_ms`` is the time to the first token, ``itl_ms`` the time between two tokens after it.
    """

    ttft_ms: float | None = None
    itl_ms: float | None = None


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What a model has to serve: how many requests, and the mean lengths of one.

    ``prefix_hit`` is the part of the prompt tokens, from 0 to 1, that a prefix cache is expected to have.
    """

    requests_per_second: float
    prompt_tokens: int
    output_tokens: int
    prefix_hit: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A served model.

    ``pools`` is either {serve} or {prefill, decode}; ``engine`` holds vLLM arguments for all of them, ``frontend``
    options of vLLM's API server (tool_call_parser, chat_template ...). ``slo`` and ``load`` are what is planned for.
    """

    name: str
    source: str
    pools: Mapping[Role, PoolSpec]
    engine: Mapping[str, Any] = field(default_factory=dict)
    frontend: Mapping[str, Any] = field(default_factory=dict)
    routing: RoutingSpec = RoutingSpec()
    slo: SloSpec | None = None
    load: LoadSpec | None = None

    @property
    def disaggregated(self) -> bool:
        return Role.PREFILL in self.pools

    @property
    def target_seconds(self) -> float | None:
        """To the first token, where that is asked for."""
        return self.slo.ttft_ms / 1e3 if self.slo is not None and self.slo.ttft_ms is not None else None


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """A tenant's share of the cluster while requests wait, and its own bounds (None: only the cluster's)."""

    weight: float = 1.0
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None  # prompt tokens and the output that was asked for


@dataclass(frozen=True, slots=True)
class AdmissionSpec:
    """What may wait in one gateway process, and whose turn it is.

    ``default`` is for tenants that ``tenants`` doesn't name. With ``isolate_caches`` no tenant's prompt finds what
    another's left in a prefix cache.
    """

    max_queued_requests: int = 4096
    max_queued_tokens: int = 16_000_000
    default: TenantSpec = TenantSpec()
    tenants: Mapping[str, TenantSpec] = field(default_factory=dict)
    isolate_caches: bool = False


@dataclass(frozen=True, slots=True)
class HealthSpec:
    """When a worker is taken out of its pool by evidence from its own requests, and for how long.

    ``slow``: times its peers' median. ``failing``: share of its requests. ``most_out``: share of a pool. Backoffs in
    seconds.
    """

    enabled: bool = True
    slow: float = 3.0
    failing: float = 0.2
    most_out: float = 0.3
    backoff_initial: float = 5.0
    backoff_max: float = 60.0


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """Where clients come in.

    ``processes`` share the ports by SO_REUSEPORT; with 0 all gateways are others' to start. ``queue_seconds`` bounds a
    request's wait for a worker, ``silence_seconds`` how long a worker may say nothing before its requests go on
    elsewhere. ``record`` is the file that ``segue up --record`` names, no part of what people write.
    """

    http: Endpoint = Endpoint("127.0.0.1", 8000)
    grpc: Endpoint = Endpoint("127.0.0.1", 9000)
    processes: int = 1
    max_body_bytes: int = 32 << 20
    queue_seconds: float = 30.0
    silence_seconds: float = SILENCE_SECONDS
    admission: AdmissionSpec = AdmissionSpec()
    health: HealthSpec = HealthSpec()
    record: str = ""

    def recording(self, gateway_id: str) -> str:
        """The file of one gateway process; empty where nothing is recorded."""
        return f"{self.record}.{gateway_id}" if self.record and self.processes > 1 else self.record


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """How a pool's replicas are replaced while it serves.

    ``surge`` more than it has may be there, ``unavailable`` of them may be missing; a new one has to stay sound for
    ``health_seconds`` before the next is replaced.
    """

    surge: int = 1
    unavailable: int = 0
    health_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class ControllerSpec:
    """Where gateways watch the fleet, and how hard the controller tries to keep it whole (all in seconds).

    An engine that has requests and makes no step for longer than ``hang_seconds`` (0: for ever), and than any step that
    it may have to make can explain, is replaced.
    """

    listen: Endpoint = Endpoint("127.0.0.1", 9100)
    restart_backoff_initial: float = 1.0
    restart_backoff_max: float = 60.0
    start_timeout: float = 600.0
    drain_timeout: float = 30.0
    rollout: RolloutSpec = RolloutSpec()
    hang_seconds: float = HANG_SECONDS


@dataclass(frozen=True, slots=True)
class TelemetrySpec:
    """Spans go to ``otlp_endpoint`` (OTLP over gRPC, http://host:4317) if there is one; metrics always show."""

    otlp_endpoint: str | None = None
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """The whole configuration."""

    name: str
    models: tuple[ModelSpec, ...]
    bind: Bind = Bind.LOOPBACK
    gateway: GatewaySpec = GatewaySpec()
    controller: ControllerSpec = ControllerSpec()
    telemetry: TelemetrySpec = TelemetrySpec()

    @property
    def open(self) -> bool:
        """Whether a count is left to the planner."""
        return any(pool.open_counts for model in self.models for pool in model.pools.values())

    def model(self, name: str) -> ModelSpec:
        """The model of that name; KeyError if there is none."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)
