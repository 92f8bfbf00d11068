"""Which kinds of objects there are, what they are called and what they look like."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from tests.kube.schemas import foreign_kinds
from tests.kube.tools import NEWEST, Tools

Schema = dict[str, Any]
SCALED = ("deployments", "replicasets", "statefulsets")


@dataclass(frozen=True)
class Kind:
    group: str
    version: str
    plural: str
    name: str
    namespaced: bool = True
    short: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full(self) -> str:
        """As messages call it: deployments.apps."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def subresources(self) -> tuple[str, ...]:
        return ("status", "scale") if self.plural in SCALED else ("status",)


KINDS = (
    Kind("", "v1", "namespaces", "Namespace", False, ("ns",)),
    Kind("", "v1", "configmaps", "ConfigMap", short=("cm",)),
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "services", "Service", short=("svc",)),
    Kind("", "v1", "serviceaccounts", "ServiceAccount", short=("sa",)),
    Kind("", "v1", "pods", "Pod", short=("po",)),
    Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", short=("pvc",)),
    Kind("apps", "v1", "deployments", "Deployment", short=("deploy",)),
    Kind("apps", "v1", "replicasets", "ReplicaSet", short=("rs",)),
    Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", short=("hpa",)),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", short=("pdb",)),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short=("netpol",)),
    Kind("networking.k8s.io", "v1", "ingresses", "Ingress", short=("ing",)),
    Kind("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute"),
    Kind("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),
    Kind("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor"),
    Kind("", "v1", "nodes", "Node", False, ("no",)),
    Kind("coordination.k8s.io", "v1", "leases", "Lease"),
    Kind("events.k8s.io", "v1", "events", "Event", short=("ev",)),
    Kind("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    Kind("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
    Kind("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", False),
    Kind("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", False),
    Kind("ray.io", "v1", "rayclusters", "RayCluster"),
)


class Schemas:
    """Of every kind, with references resolved a step at a time."""

    def __init__(self, tools: Tools) -> None:
        schemas = tools.packages / "kubernetes_validate" / "kubernetes-json-schema"
        text = (schemas / f"v{NEWEST}.0-local-strict" / "_definitions.json").read_text(encoding="utf-8")
        whole = json.loads(text)
        self._definitions: dict[str, Schema] = whole["$defs"] if "$defs" in whole else whole["definitions"]
        self._by_kind = {
            (each["group"], each["version"], each["kind"]): name
            for name, schema in self._definitions.items()
            for each in schema.get("x-kubernetes-group-version-kind", [])
        }

    @functools.cache  # noqa: B019 - one of these a session
    def of(self, kind: Kind) -> Schema:
        own = foreign_kinds().get(kind.name)
        return own if own is not None else self._definitions[self._by_kind[kind.group, kind.version, kind.name]]

    def resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[1]
            schema = {**self._definitions[name], **{key: value for key, value in schema.items() if key != "$ref"}}
        return schema

    def below(self, schema: Schema, key: str) -> Schema:
        """Of a field of an object; empty where nothing is known."""
        extra = schema.get("additionalProperties")
        found = schema.get("properties", {}).get(key) or (extra if isinstance(extra, dict) else {})
        return self.resolved(found)

    def item(self, schema: Schema) -> Schema:
        return self.resolved(schema.get("items") or {})
