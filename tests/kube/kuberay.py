"""KubeRay's part in worker groups, and a kubelet's, for tests: pods come, join Ray and go when a test says so."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from orchestrator.controller.kube.ports import Kind, KubePort
from orchestrator.controller.kube.ray_objects import GROUP, workers_of
from orchestrator.core.planning.hosts import Host

NAME = "r-segue"


def a_group(name: str, role: str, replicas: int, *, least: int = 0, most: int = 9, **more: Any) -> dict[str, Any]:
    """A worker group of model m."""
    template = {
        "metadata": {"labels": {"segue.io/role": role}, "annotations": {"segue.io/model": "m"}},
        "spec": {"containers": [{"name": "ray-worker", "image": "segue"}]},
    }
    counts = {"replicas": replicas, "minReplicas": least, "maxReplicas": most}
    return {"groupName": name, **counts, "numOfHosts": 1, "rayStartParams": {}, "template": template, **more}


def a_ray_cluster(*groups: dict[str, Any], autoscaled: bool = False) -> dict[str, Any]:
    head = {"rayStartParams": {}, "template": groups[0]["template"]}
    spec = {"headGroupSpec": head, "workerGroupSpecs": list(groups), "enableInTreeAutoscaling": autoscaled}
    spec["rayVersion"] = "2"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": NAME, "namespace": "llm"},
        "spec": spec,
    }


class KubeRay:
    """``delete`` ends an object as somebody else would. ``chosen``: pods that KubeRay had to choose itself."""

    def __init__(self, kube: KubePort, delete: Callable[[Kind, str], Awaitable[None]]) -> None:
        self.kube = kube
        self._delete = delete
        self._numbers = itertools.count(1)
        self.chosen: list[str] = []
        self.ended: list[str] = []

    async def spec(self, index: int = 0) -> dict[str, Any]:
        """A worker group as it is."""
        cluster = await self.kube.get(Kind.RAYCLUSTERS, NAME)
        assert cluster is not None
        return dict(cluster["spec"]["workerGroupSpecs"][index])

    async def write(self, changed: Callable[[dict[str, Any]], Any], index: int = 0) -> None:
        """As somebody else who changes a worker group."""
        cluster = await self.kube.get(Kind.RAYCLUSTERS, NAME)
        assert cluster is not None
        group = await self.spec(index)
        changed(group)
        path = f"/spec/workerGroupSpecs/{index}"
        await self.kube.patch(Kind.RAYCLUSTERS, NAME, [{"op": "replace", "path": path, "value": group}])

    async def names(self) -> list[str]:
        found = await self.kube.list(Kind.PODS, workers_of(NAME))
        return sorted(str(pod["metadata"]["name"]) for pod in found.items)

    async def reconcile(self) -> list[str]:
        """Once, for all groups; names of pods that are new."""
        cluster = await self.kube.get(Kind.RAYCLUSTERS, NAME)
        assert cluster is not None
        new = []
        for group in cluster["spec"]["workerGroupSpecs"]:
            pods = (await self.kube.list(Kind.PODS, f"{GROUP}={group['groupName']}")).items
            names = [pod["metadata"]["name"] for pod in pods]
            for name in (group.get("scaleStrategy") or {}).get("workersToDelete", ()):
                if name in names:
                    names.remove(name)
                    await self.end(name)
            expected = min(max(group.get("replicas") or 0, group["minReplicas"]), group["maxReplicas"])
            for name in names[expected:]:
                self.chosen.append(name)
                await self.end(name)
            for _ in range(expected - len(names)):
                new.append(await self._make(group["groupName"]))
        return new

    async def _make(self, group: str) -> str:
        name = f"{group}-{next(self._numbers)}"
        labels = {"ray.io/cluster": NAME, "ray.io/node-type": "worker", GROUP: group}
        container = {"name": "ray-worker", "image": "segue"}
        meta = {"name": name, "namespace": "llm", "labels": labels}
        await self.kube.create(
            Kind.PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}
        )
        await self.tell(name, phase="Pending")
        return name

    async def end(self, name: str) -> None:
        self.ended.append(name)
        await self._delete(Kind.PODS, name)

    async def tell(self, name: str, **status: Any) -> None:
        """What a kubelet or the scheduler says of a pod."""
        await self.kube.patch(Kind.PODS, name, [{"op": "add", "path": "/status", "value": status}])

    async def join(self, name: str, **more: Any) -> Host:
        """It is a node of Ray's from now on."""
        address = f"10.0.0.{name.rpartition('-')[2]}"
        await self.tell(name, podIP=address)
        return Host(f"id-{name}", name, address=address, **more)

    async def is_well(self, name: str) -> None:
        """Its raylet says so to the kubelet."""
        pod = await self.kube.get(Kind.PODS, name)
        assert pod is not None
        await self.tell(name, **pod.get("status", {}), conditions=[{"type": "Ready", "status": "True"}])
