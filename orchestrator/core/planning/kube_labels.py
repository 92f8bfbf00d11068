"""What Kubernetes says of the machines below a cluster's hosts, which are pods there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.planning.places import NVLINK_DOMAIN, RACK, ZONE, is_split

# The first of these labels that a machine has says what its GPUs are.
GPU_KINDS = ("segue.io/gpu", "nvidia.com/gpu.product")
OF_USE = (*ZONE, *RACK, *NVLINK_DOMAIN, *GPU_KINDS)


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of Kubernetes: its labels, and how many GPUs it has in all."""

    name: str
    labels: Mapping[str, str]
    gpus: int = 0


def labelled(topology: Topology, below: Mapping[str, Machine], kind: Callable[[str], str]) -> Topology:
    """The same hosts with the labels that placement goes by. ``below``: by address the machine of each pod.

    What a host says itself stands. ``kind``: the name of a kind of GPU by what a label calls it. A label that splits a
    machine into NVLink domains by the numbers of its GPUs says nothing of a pod that has some of them, under numbers of
    its own; nor do labels that are other names of what the host says.
    """
    hosts = tuple(_labelled(host, below.get(host.address), kind) for host in topology.hosts)
    return replace(topology, hosts=hosts) if hosts != topology.hosts else topology


def _labelled(host: Host, machine: Machine | None, kind: Callable[[str], str]) -> Host:
    if machine is None:
        return host
    found = {name: value for name, value in machine.labels.items() if name in OF_USE and value}
    if host.gpus < machine.gpus:
        found = {name: value for name, value in found.items() if name not in NVLINK_DOMAIN or not is_split(value)}
    for names in (ZONE, RACK, NVLINK_DOMAIN):
        if any(host.labels.get(name) for name in names):
            found = {name: value for name, value in found.items() if name not in names}
    labels = {**found, **host.labels}
    word = next((labels[name] for name in GPU_KINDS if labels.get(name)), "")
    return replace(host, labels=labels, gpu=kind(word) if host.gpus and word else host.gpu)
