"""Values: what is wrong is told by its key, every key is explained, and the README's table is current."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from tests.kube.cases import block, file, gpu
from tests.kube.conftest import CHART
from tests.kube.tools import HELMS, ROOT

VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
LOCAL = file("local")
AUTO = {"replicas": "auto"}

# Values that the schema refuses: the key's last part, and words that say what to do.
REFUSED = {
    "a typo": ({"gateway": {"replica": 2}}, "replica"),
    "a type": ({"gateway": {"replicas": "many"}}, "replicas"),
    "too few": ({"gateway": {"replicas": 0}}, "replicas"),
    "a choice": ({"cache": {"mode": "nfs"}}, "emptyDir"),
    "a quantity": ({"workers": {"sharedMemory": "2 GB"}}, "sharedMemory"),
    "a port": ({"gateway": {"service": {"httpPort": 70000}}}, "httpPort"),
    "a section of the configuration": ({"cluster": {"model": []}}, "model"),
    "a pool's role": ({"workers": {"pools": {"m": {"decoder": {}}}}}, "decoder"),
    "a pool's key": ({"workers": {"pools": {"m": {"decode": {"gpus": 4}}}}}, "gpus"),
    "another chart's replicas": ({"replicaCount": 2}, "use gateway.replicas"),
    "another chart's resources": ({"resources": {}}, "use gateway.resources, workers.resources or head.resources"),
    "another chart's storage": ({"persistence": {"enabled": True}}, "use cache"),
    "another chart's environment": ({"env": []}, "use extraEnv"),
    "workers' replicas": ({"workers": {"replicas": 2}}, "`replicas` in the configuration says"),
    "a secret in values": ({"cache": {"huggingFaceToken": {"token": "hf_x"}}}, "put it into a Secret"),
    "a drain beside the configuration's": ({"drain": {"seconds": 9}}, "controller.drain_timeout"),
    "a margin that cuts requests off": ({"drain": {"marginSeconds": 5}}, "marginSeconds"),
}

# What only the templates can see, being about several values at once.
CONTRADICTIONS = {
    "nothing": ({}, "cluster: nothing to serve"),
    "both": (LOCAL | block(serve={}), "clusterFile and cluster: set one of them"),
    "no YAML": ({"clusterFile": "a: [b"}, "clusterFile: not valid YAML"),
    "no name": ({"clusterFile": "models: []"}, "cluster.cluster.name"),
    "no models": ({"clusterFile": "cluster: {name: x}"}, "cluster.models"),
    "a count left open": (block(serve=AUTO), "cluster.models[0].pools.serve.replicas: `auto`"),
    "no count": (block(serve={"replicas": 1.5}), "cluster.models[0].pools.serve.replicas: 1.5"),
    "GPUs without an accelerator": (block(serve={"device": "gpu"}), "accelerator: it is cpu"),
    "a folder of the laptop": (
        {"clusterFile": "cluster: {name: x}\nmodels: [{name: m, source: ./mine, pools: {serve: {}}}]"},
        "cluster.models[0].source: ./mine",
    ),
    "a stage over a pod": (gpu(**block(serve={"gpu": "H100-80GB", "tensor_parallel": 16})), "gpu.perPod"),
    "fewer cores than GPUs": (
        {"accelerator": "gpu", **block(serve={"device": "gpu", "tensor_parallel": 8})},
        "workers.resources.requests.cpu: 4 cores for 8 GPUs",
    ),
    "a request over its limit": (
        LOCAL | {"workers": {"resources": {"requests": {"memory": "1Ti"}, "limits": {"memory": "900Gi"}}}},
        "workers.resources.requests.memory: 1Ti is over limits.memory, 900Gi",
    ),
    "a pool's limit under its request": (
        block(serve={}) | {"workers": {"pools": {"m": {"serve": {"resources": {"limits": {"cpu": "1500m"}}}}}}},
        "workers.pools.m.serve.resources.requests.cpu: 4 is over limits.cpu, 1500m",
    ),
    "a gateway's limit under its request": (
        LOCAL | {"gateway": {"resources": {"limits": {"memory": 2147483648}}}},
        "gateway.resources.requests.memory: 3Gi is over limits.memory",
    ),
    "a pool that is not there": (LOCAL | {"workers": {"pools": {"gpt": {"serve": {}}}}}, "workers.pools.gpt.serve"),
    "bounds of gateways": (
        LOCAL | {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}}},
        "gateway.autoscaling.minReplicas: 5 is over maxReplicas, 2",
    ),
    "bounds of workers": (
        block(serve={"replicas": 4}) | {"ray": {"autoscaling": {"enabled": True, "maxReplicas": 3}}},
        "ray.autoscaling.maxReplicas: 3",
    ),
    "no claim": (LOCAL | {"cache": {"mode": "existingClaim"}}, "cache.existingClaim"),
    "no folder": (LOCAL | {"cache": {"mode": "hostPath"}}, "cache.hostPath"),
    "no host": (LOCAL | {"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.hosts"),
    "no Gateway": (LOCAL | {"gateway": {"httpRoute": {"enabled": True}}}, "gateway.httpRoute.parentRefs"),
    "no account": (LOCAL | {"serviceAccount": {"create": False}}, "serviceAccount.name"),
    "scraped twice": (
        LOCAL | {"monitoring": {"podMonitor": True, "serviceMonitor": True}},
        "monitoring.serviceMonitor",
    ),
    "any port": (
        {"clusterFile": "cluster: {name: x}\ncontroller: {listen: '0.0.0.0:0'}\nmodels: []"},
        "cluster.controller.listen",
    ),
}


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("what", REFUSED)
def test_wrong_values_name_their_key(charts, helm, what):
    values, words = REFUSED[what]
    refusal = charts(helm).refusal(LOCAL | values)
    assert "values don't meet the specifications of the schema" in refusal
    assert words in refusal


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_contradictions_name_their_key(charts, helm, what):
    values, words = CONTRADICTIONS[what]
    assert words in charts(helm).refusal(values)


def test_an_old_kubernetes_is_turned_down(chart):
    done = chart.template(LOCAL, "--kube-version", "1.30.0")
    assert "chart requires kubeVersion: >=1.31.0" in done.stderr


def test_values_are_short_and_each_has_a_comment():
    lines = VALUES.splitlines()
    assert len(lines) < 200
    bare = []
    for number, line in enumerate(lines):
        above = lines[number - 1].strip() if number else ""
        key = line.strip().partition(":")[0]
        explained = "#" in line or above.startswith("#")
        inside = key in ("requests", "limits", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "seccompProfile")
        inside = inside or key in ("allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities", "runAsNonRoot")
        opens = line.rstrip().endswith(":")  # what is below it has comments
        if line.strip() and not line.strip().startswith("-") and not (explained or inside or opens):
            bare.append(line)
    assert not bare


def test_the_schema_knows_every_value_and_no_other():
    """So that a key that is new in one is not forgotten in the other."""

    def keys(values, schema, path):
        schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        allowed = {name: part for name, part in schema.get("properties", {}).items() if "const" not in part}
        if schema.get("type") != "object" or not allowed:
            return
        assert schema["additionalProperties"] is False, path
        if isinstance(values, dict) and values:
            assert set(values) <= set(allowed), path
            optional = {"global"} | ({"claims", "limits"} if "requests" in allowed else set())
            assert set(allowed) - set(values) <= optional, path
            for name in values:
                keys(values[name], allowed[name], f"{path}.{name}")

    keys(yaml.safe_load(VALUES), SCHEMA, "values")


def test_the_readme_is_current():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "chart_readme.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
