"""What we write into Kubernetes belongs to the RayCluster: it goes with it, and events are found at it."""

from __future__ import annotations

from typing import Any

from orchestrator.controller.kube.ports import Kind, KubeForbidden, KubePort
from orchestrator.controller.kube.trouble import Trouble

COMPONENT = "segue.io/controller"


class Owner:
    """The RayCluster of that name, asked for once."""

    def __init__(self, kube: KubePort, name: str) -> None:
        self._kube = kube
        self.name = name
        self._uid = ""
        self._trouble = Trouble(f"raycluster_{name}")

    async def uid(self) -> str:
        """Empty where there is none, or where it may not be asked for: what is written then belongs to nothing.

        Raises KubeUnreachable.
        """
        if not self._uid:
            try:
                cluster = await self._kube.get(Kind.RAYCLUSTERS, self.name)
            except KubeForbidden as error:
                self._trouble.hit(error)
                return ""
            self._uid = cluster["metadata"]["uid"] if cluster is not None else ""
        return self._uid

    async def meta(self, name: str) -> dict[str, Any]:
        """``metadata`` of an object of ours."""
        uid = await self.uid()
        kind = Kind.RAYCLUSTERS
        reference = {"apiVersion": kind.api_version, "kind": kind.kind, "name": self.name, "uid": uid}
        labels = {"app.kubernetes.io/part-of": "segue", "ray.io/cluster": self.name}
        meta = {"name": name, "namespace": self._kube.namespace, "labels": labels}
        return meta | ({"ownerReferences": [reference]} if uid else {})
