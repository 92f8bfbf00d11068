"""The machines of a Ray cluster, and what a cluster of ours has reserved on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray._private.state import available_resources_per_node  # what ray.util.state has needs Ray's dashboard
from ray.util.placement_group import placement_group_table

from orchestrator.controller.kinds import ACCELERATOR, GPU, kind_called
from orchestrator.controller.ports import belongs, slot_and_epoch
from orchestrator.controller.resources import Machine
from orchestrator.core.planning.hosts import Host, Topology

# The first of these labels that a node has says what its GPUs are.
GPU_LABELS = (GPU, "nvidia.com/gpu.product", ACCELERATOR)
_TYPE = "accelerator_type:"  # of a resource that Ray makes for nodes with GPUs
_ID_PART = 6  # digits of a node's id behind a name that several have, if they are enough

Row = Mapping[str, Any]


def topology(cluster: str) -> Topology:
    """Hosts and reservations of the cluster of that name; Ray must be initialised.

    What is free is read first: a reservation that is made meanwhile is then not taken for somebody else's.
    """
    nodes = _alive()
    available = available_resources_per_node()  # type: ignore[no-untyped-call]
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return topology_of(nodes, available, placement_group_table().values(), cluster, here)


def machines() -> list[Machine]:
    """The nodes that are alive, with all that they have."""
    nodes = _alive()
    names = host_names(nodes)
    return [Machine(node["NodeID"], names[node["NodeID"]], node["Resources"]) for node in nodes]


def topology_of(
    nodes: Sequence[Row], available: Mapping[str, Mapping[str, float]], groups: Iterable[Row], cluster: str, here: str
) -> Topology:
    """From the rows of Ray's tables: its nodes that are alive, what is free of each by id, and placement groups.

    ``here`` is this machine's address.
    """
    newest = _newest(groups, cluster)
    ours: Counter[str] = Counter()
    for row in newest.values():
        for index, node_id in row["bundles_to_node_id"].items():
            ours[node_id] += row["bundles"][index].get("GPU", 0)
    names = host_names(nodes)
    hosts = [
        replace(
            _host(node, names, available.get(node["NodeID"], {}), ours[node["NodeID"]]),
            here=node["NodeManagerAddress"] == here,
        )
        for node in nodes
    ]
    reserved = {slot_id: tuple(_devices(row)) for slot_id, row in newest.items()}
    return Topology(tuple(sorted(hosts, key=lambda host: host.name)), reserved)


def _alive() -> list[Row]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def host_names(nodes: Iterable[Row]) -> dict[str, str]:
    """By id a name for each node that no other has: the one that it was given, or its machine's."""
    plain = {node["NodeID"]: _name(node) for node in nodes}
    shared = Counter(plain.values())
    alike = [node_id for node_id, name in plain.items() if shared[name] > 1]
    part = _ID_PART
    while len({node_id[:part] for node_id in alike}) < len(alike):
        part += 1
    return {node_id: f"{name}-{node_id[:part]}" if shared[name] > 1 else name for node_id, name in plain.items()}


def _name(node: Row) -> str:
    """Ray's name of a node is its address where nobody gave it one. Blanks would make it two words."""
    given = node.get("NodeName", "")
    name = given if given and given != node["NodeManagerAddress"] else node["NodeManagerHostname"]
    return "-".join(name.split())


def _newest(groups: Iterable[Row], cluster: str) -> dict[str, Row]:
    """By slot the group of its newest filling. What an older one still holds is not the slot's any more."""
    found: dict[str, tuple[int, Row]] = {}
    for row in groups:
        if row["state"] == "CREATED" and belongs(row["name"], cluster):
            slot_id, epoch = slot_and_epoch(row["name"])
            if slot_id not in found or found[slot_id][0] < epoch:
                found[slot_id] = epoch, row
    return {slot_id: row for slot_id, (_, row) in found.items()}


def _devices(row: Row) -> Iterable[str]:
    """The node of each device of a group: of a bundle one for each GPU, or one where it has none or a share."""
    for index, node_id in sorted(row["bundles_to_node_id"].items()):
        yield from [node_id] * max(1, math.ceil(row["bundles"][index].get("GPU", 0)))


def _host(node: Row, names: Mapping[str, str], available: Mapping[str, float], ours: float) -> Host:
    total, labels = node["Resources"], node.get("Labels") or {}
    gpus = total.get("GPU", 0)
    free_or_ours = min(gpus, available.get("GPU", 0) + ours)
    return Host(
        host_id=node["NodeID"],
        name=names[node["NodeID"]],
        gpus=math.floor(round(free_or_ours, 4)),  # Ray counts in ten-thousandths
        gpu=_gpu(labels, total) if gpus else "",
        cpus=total.get("CPU", 0.0),
        memory_bytes=int(total.get("memory", 0)),
        labels=dict(labels),
        address=node["NodeManagerAddress"],
    )


def _gpu(labels: Mapping[str, str], total: Mapping[str, float]) -> str:
    words = [labels[name] for name in GPU_LABELS if labels.get(name)]
    words += [name.removeprefix(_TYPE) for name in total if name.startswith(_TYPE)]
    return kind_called(words[0]) if words else ""
