"""Values that are rendered and looked at, each with the configuration that it serves."""

from __future__ import annotations

from typing import Any

from tests.kube.tools import ROOT

Values = dict[str, Any]
CONFIGS = ROOT / "configs"


def file(name: str) -> Values:
    """The configuration of that name, as ``--set-file clusterFile=...`` gives it."""
    return {"clusterFile": (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")}


def block(**pools: dict[str, Any]) -> Values:
    """A configuration as values, with one model of these pools."""
    model = {"name": "m", "source": "org/Name", "engine": {"kv_cache_memory_bytes": 67108864}, "pools": pools}
    return {"cluster": {"cluster": {"name": "block"}, "models": [model]}}


def gpu(**more: Any) -> Values:
    return {"accelerator": "gpu", "workers": {"resources": {"requests": {"cpu": "16", "memory": "64Gi"}}}} | more


HALF = {"replicas": 3, "device": "gpu", "tensor_parallel": 2}

APART = {
    "prefill": {
        "resources": {"requests": {"cpu": "1500m"}, "limits": {"memory": "32Gi"}},
        "nodeSelector": {"pool": "prefill"},
        "tolerations": [{"key": "prefill", "operator": "Exists"}],
        "topologySpread": [{"topologyKey": "zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}],
    }
}

CASES: dict[str, Values] = {
    "cpu-pd": file("local"),
    "cpu-aggregated": file("aggregated"),
    "cpu-pipeline": file("pipeline-parallel"),
    "two-models": file("two-models"),
    "gpu-pd": gpu(**file("llama-3-70b-pd")),
    "gpu-tp-pp": gpu(**block(serve={"replicas": 3, "device": "gpu", "tensor_parallel": 4, "pipeline_parallel": 2})),
    "gpu-over-nodes": gpu(
        **block(serve={"replicas": 2, "device": "gpu", "tensor_parallel": 8, "pipeline_parallel": 2})
    ),
    "gpu-stages-together": gpu(
        **block(serve={"device": "gpu", "tensor_parallel": 2, "pipeline_parallel": 6}), gpu={"perPod": 4}
    ),
    "gpu-share": gpu(**block(serve={"replicas": 7, "device": "gpu", "share": 0.3})),
    "gpu-kinds": gpu(**block(serve={"gpu": ["H100-80GB", "A100-80GB"], "tensor_parallel": 2})),
    "gpu-apart": gpu(**block(prefill=HALF, decode={**HALF, "replicas": 1, "tensor_parallel": 8}))
    | {
        "gpu": {"runtimeClassName": "nvidia"},
        "workers": {"resources": {"requests": {"cpu": "16"}}, "pools": {"m": APART}},
    },
    "block": block(prefill={}, decode={"replicas": 2}),
    "autoscaled": file("local")
    | {
        "ray": {"autoscaling": {"enabled": True, "maxReplicas": 5}},
        "gateway": {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 9}},
    },
    "ingress": file("local")
    | {
        "gateway": {
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "hosts": ["llm.example.com"],
                "tlsSecret": "llm-tls",
                "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
            }
        }
    },
    "http-route": file("local")
    | {
        "gateway": {
            "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["llm.example.com"]},
            "service": {"type": "LoadBalancer", "httpPort": 80, "annotations": {"internal": "true"}},
        }
    },
    "cache-existing": file("local") | {"cache": {"mode": "existingClaim", "existingClaim": "models"}},
    "cache-pvc": file("local") | {"cache": {"mode": "pvc", "storageClassName": "fast", "prefetch": False}},
    "cache-host": file("local") | {"cache": {"mode": "hostPath", "hostPath": "/var/models"}},
    "token": file("local")
    | {"cache": {"huggingFaceToken": {"secret": "hub"}}, "ray": {"authSecret": "ray"}, "image": {"pullSecrets": ["r"]}},
    "bare": file("local")
    | {
        "networkPolicy": {"enabled": False},
        "kubernetes": {"enabled": False},
        "serviceAccount": {"create": False, "name": "mine"},
        "gateway": {"podDisruptionBudget": {"enabled": False}, "topologySpread": []},
    },
    "closed": file("local")
    | {
        "kubernetes": {"readNodes": False},
        "networkPolicy": {
            "clients": [{"podSelector": {"matchLabels": {"app": "web"}}}],
            "scrapers": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "dashboard": [{"namespaceSelector": {}}],
        },
    },
    "pod-monitor": file("local") | {"monitoring": {"podMonitor": True, "labels": {"release": "prometheus"}}},
    "service-monitor": file("local") | {"monitoring": {"serviceMonitor": True, "dashboards": True}},
    "extras": file("local")
    | {
        "fullnameOverride": "llm",
        "extraEnv": [
            {"name": "NCCL_DEBUG", "value": "INFO"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "beside"}},
            'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "{{ .Release.Name }}-too"}\n',
        ],
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "llm"},
        "workers": {"probes": {"startup": {"failureThreshold": 720}}, "priorityClassName": "high"},
        "gateway": {"probes": {"readiness": {"httpGet": {"path": "/ready"}}}},
    },
    "alike": {
        "cluster": {
            "cluster": {"name": "alike"},
            "models": [
                {"name": name, "source": "tiny:llama", "pools": {"serve": {}}}
                for name in (
                    "m-1",
                    "m.1",
                    "M/1",
                    "of-thirty-letters-and-more-of-them-1",
                    "of-thirty-letters-and-more-of-them-2",
                )
            ],
        }
    },
    "slow-drain": {
        "cluster": {
            "cluster": {"name": "slow"},
            "controller": {"drain_timeout": 600.5, "listen": "0.0.0.0:9200"},
            "models": [{"name": "Tiny.M/x", "source": "tiny:llama", "pools": {"serve": {}}}],
        }
    },
}
