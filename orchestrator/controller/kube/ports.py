"""What is asked of Kubernetes' API server. ``client`` is the real one; tests bring a fake.

One contract suite (tests/kube/test_client_contract.py) holds both to the same behaviour. Objects are the API's own
JSON. Every call is bounded in time and is tried once: whoever calls knows whether to come again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from orchestrator.core.errors import SegueError

Object = Mapping[str, Any]
Operation = Mapping[str, Any]  # one of a JSON patch: op, path, value


class Kind(Enum):
    """What is asked for, as (group, version, plural, kind, whether it is in a namespace)."""

    PODS = ("", "v1", "pods", "Pod", True)
    NODES = ("", "v1", "nodes", "Node", False)
    CONFIGMAPS = ("", "v1", "configmaps", "ConfigMap", True)
    LEASES = ("coordination.k8s.io", "v1", "leases", "Lease", True)
    EVENTS = ("events.k8s.io", "v1", "events", "Event", True)
    RAYCLUSTERS = ("ray.io", "v1", "rayclusters", "RayCluster", True)

    @property
    def group(self) -> str:
        return self.value[0]

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.value[1]}" if self.group else self.value[1]

    @property
    def plural(self) -> str:
        return self.value[2]

    @property
    def kind(self) -> str:
        return self.value[3]

    @property
    def namespaced(self) -> bool:
        return self.value[4]

    @property
    def full(self) -> str:
        """As Kubernetes' own messages call it: leases.coordination.k8s.io."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


class KubeConflict(SegueError):  # noqa: N818 - a condition, as in core.errors
    """Somebody wrote the object in between, or it is there already: look again."""

    code, http_status, grpc_code = "kube_conflict", 409, "ABORTED"


class KubeForbidden(SegueError):  # noqa: N818
    """The pod's ServiceAccount lacks a right. It won't have it a moment later."""

    code, http_status, grpc_code = "kube_forbidden", 403, "PERMISSION_DENIED"


class KubeUnreachable(SegueError):  # noqa: N818
    """The API server gave no answer in time, or none that is one; ``retry_after`` is its own word."""

    code, http_status, grpc_code = "kube_unreachable", 503, "UNAVAILABLE"


class KubeRefused(SegueError):  # noqa: N818
    """The API server won't take this request, and won't take it again."""

    code, http_status, grpc_code = "kube_refused", 400, "INVALID_ARGUMENT"


class Expired(SegueError):  # noqa: N818
    """The server has forgotten what happened since then: list again."""

    code, http_status, grpc_code = "kube_expired", 410, "OUT_OF_RANGE"


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects of one kind, and the version to watch from."""

    items: tuple[Object, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Change:
    """``type`` is ADDED, MODIFIED or DELETED, then with the object's last state; or BOOKMARK, then a version alone."""

    type: str
    object: Object

    @property
    def version(self) -> str:
        return str(self.object["metadata"]["resourceVersion"])


class KubePort(Protocol):
    """The objects of one namespace, and of the kinds that are in none.

    Every method raises KubeForbidden, KubeUnreachable, or KubeRefused for what is wrong in itself.
    """

    @property
    def namespace(self) -> str: ...

    async def get(self, kind: Kind, name: str) -> Object | None:
        """None where there is none."""

    async def list(self, kind: Kind, selector: str = "") -> Listing:
        """``selector`` goes by labels: ``a=b,c in (d,e)``."""

    async def create(self, kind: Kind, body: Object) -> Object:
        """Raises KubeConflict where that name is taken."""

    async def patch(self, kind: Kind, name: str, operations: Sequence[Operation]) -> Object:
        """A JSON patch. Raises KubeConflict where a ``test`` in it fails, or somebody wrote in between."""

    async def replace(self, kind: Kind, body: Object) -> Object:
        """The whole object. Raises KubeConflict where it is not of the ``resourceVersion`` in the body any more."""

    def watch(self, kind: Kind, selector: str, since: str) -> AsyncIterator[Change]:
        """What happened after that version, and happens; ends when the server ends it. Raises Expired."""
