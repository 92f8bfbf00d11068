"""What would change in a cluster that runs is told value by value."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.planning.differences import NOTHING, Difference, differences
from orchestrator.core.spec import (
    AdmissionSpec,
    Bind,
    ClusterSpec,
    Device,
    Endpoint,
    GatewaySpec,
    ModelSpec,
    PoolSpec,
    Role,
    RoutingSpec,
    SloSpec,
    TelemetrySpec,
)


def cluster(*models: ModelSpec) -> ClusterSpec:
    return ClusterSpec("c", models)


POOL = PoolSpec(Role.SERVE, 2, Device.GPU, engine={"max_num_seqs": 64})
MODEL = ModelSpec("m", "org/m", {Role.SERVE: POOL}, engine={"dtype": "bfloat16"})


def test_nothing_differs_from_itself() -> None:
    assert differences(cluster(MODEL), cluster(MODEL)) == ()


def test_each_value_that_differs_is_told_with_its_place() -> None:
    pool = replace(POOL, replicas=3, tensor_parallel=2, gpu=("H200",), engine={"block_size": 32})
    after = replace(MODEL, source="org/m2", pools={Role.SERVE: pool}, engine={"dtype": "float16"})
    assert differences(cluster(MODEL), cluster(after)) == (
        Difference("m source", "org/m", "org/m2"),
        Difference("m engine.dtype", "bfloat16", "float16"),
        Difference("m serve replicas", "2", "3"),
        Difference("m serve tensor_parallel", "1", "2"),
        Difference("m serve engine.block_size", NOTHING, "32"),
        Difference("m serve engine.max_num_seqs", "64", NOTHING),
        Difference("m serve gpu", NOTHING, "H200"),
    )


def test_what_is_no_pools_is_told_too() -> None:
    gateway = GatewaySpec(Endpoint("127.0.0.1", 8001), processes=2, admission=AdmissionSpec(max_queued_requests=1))
    model = replace(MODEL, routing=RoutingSpec(policy="random"), frontend={"tool_call_parser": "hermes"})
    after = replace(cluster(model), bind=Bind.NODE, gateway=gateway, telemetry=TelemetrySpec("http://t:4317"))
    assert differences(cluster(MODEL), after) == (
        Difference("bind", "loopback", "node"),
        Difference("gateway.http", "127.0.0.1:8000", "127.0.0.1:8001"),
        Difference("gateway.processes", "1", "2"),
        Difference("gateway.admission.max_queued_requests", "4096", "1"),
        Difference("telemetry.otlp_endpoint", NOTHING, "http://t:4317"),
        Difference("m frontend.tool_call_parser", NOTHING, "hermes"),
        Difference("m routing.policy", RoutingSpec().policy, "random"),
    )


def test_what_is_only_planned_for_or_recorded_changes_nothing_that_runs() -> None:
    after = replace(cluster(replace(MODEL, slo=SloSpec(ttft_ms=1.0))), gateway=GatewaySpec(record="/r"))
    assert differences(cluster(MODEL), after) == ()


def test_models_and_pools_come_and_go() -> None:
    halves = {role: PoolSpec(role) for role in (Role.PREFILL, Role.DECODE)}
    other = ModelSpec("n", "org/n", {Role.SERVE: PoolSpec(Role.SERVE)})
    assert differences(cluster(MODEL), cluster(replace(MODEL, pools=halves), other)) == (
        Difference("m prefill", NOTHING, "there"),
        Difference("m decode", NOTHING, "there"),
        Difference("m serve", "there", NOTHING),
        Difference("n", NOTHING, "org/n"),
    )
    assert differences(cluster(MODEL, other), cluster(MODEL)) == (Difference("n", "org/n", NOTHING),)
