"""The machines below Ray's nodes, as Kubernetes knows them: host -> pod, by its address, -> node -> labels."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.controller.kinds import kind_called
from orchestrator.controller.kube.mirror import Mirror
from orchestrator.controller.kube.ports import Kind, KubeForbidden, KubePort, Object
from orchestrator.controller.kube.ray_objects import address_of
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.planning.kube_labels import Machine, labelled

_GPU = "nvidia.com/gpu"  # the extended resource of the device plugin


class Machines:
    """``pods`` is a list that is kept. Where nodes may not be read, hosts are as Ray knows them, which is said once."""

    def __init__(self, kube: KubePort, pods: Mirror) -> None:
        self.nodes = Mirror(kube, Kind.NODES)
        self._pods = pods

    def seen(self, topology: Topology) -> Topology:
        """The topology with what is known of the machines now."""
        return labelled(topology, below(self._pods.items, self.nodes.items), kind_called)

    @property
    def forbidden(self) -> bool:
        """Whether nodes may not be read."""
        return isinstance(self.nodes.error, KubeForbidden)


def below(pods: Iterable[Object], nodes: Iterable[Object]) -> dict[str, Machine]:
    """By a pod's address its machine.."""
    known = {node["metadata"]["name"]: _machine(node) for node in nodes}
    found: dict[str, Machine] = {}
    for pod in pods:
        machine = known.get(pod["spec"].get("nodeName", ""))
        if machine is not None and address_of(pod):
            found[address_of(pod)] = machine
    return found


def _machine(node: Object) -> Machine:
    status = node.get("status") or {}
    gpus = (status.get("capacity") or {}).get(_GPU, 0)
    return Machine(node["metadata"]["name"], node["metadata"].get("labels") or {}, int(gpus))
