"""A running cluster's machines, as what runs actors on them knows them, and what is reserved there now.

What runs the actors says how many GPUs a reservation holds on a host, and not which: their numbers here are made up, so
that no two reservations have the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heapreplace
from typing import Any

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.gangs import gangs_on
from orchestrator.core.planning.islands import natural
from orchestrator.core.planning.owners import Owner, owner_for, owner_of
from orchestrator.core.planning.places import NVLINK_DOMAIN, WHOLE, Gang, Node, Placed, domains, parts_of
from orchestrator.core.spec import Bind, ClusterSpec, Device, PoolSpec

CPU = "cpu"  # the kind of every CPU here; also what is behind a host's name where its GPUs have the name itself
ANY_GPU = "gpu"  # the kind of GPUs of which nobody says what they are


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of a running cluster. What others hold of it is already taken off."""

    host_id: str  # Ray's id of the node
    name: str  # for people; no two hosts of a topology have the same
    gpus: int = 0  # free, or held by reservations of this very cluster
    gpu: str = ""  # their kind, by its name in the catalogue where that knows it; empty if nobody says
    cpus: float = 0.0
    memory_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    here: bool = True  # on the machine of whoever asks, which is that of the gateways
    address: str = ""  # by which other hosts reach it; of a pod its own


@dataclass(frozen=True, slots=True)
class Topology:
    """All hosts that are alive, and where this cluster's replicas have their devices."""

    hosts: tuple[Host, ...]
    reserved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # slot id: host id a device, stage by stage


def reachable(topology: Topology, spec: ClusterSpec) -> Topology:
    """Without hosts on other machines where workers listen on loopback only: no gateway would reach them there."""
    if spec.bind is not Bind.LOOPBACK:
        return topology
    return replace(topology, hosts=tuple(host for host in topology.hosts if host.here))


def owners_of(topology: Topology) -> frozenset[Owner]:
    """Those that hosts are for."""
    return frozenset(owner_of(host.labels) for host in topology.hosts)


def nodes_of(topology: Topology, cpu_parts: int | Mapping[str, int]) -> tuple[Node, ...]:
    """Hosts as nodes: one with GPUs by its name, and its CPU, in ``cpu_parts`` parts (0: without), beside it.

    ``cpu_parts`` is for all of them, or by host id (``cpu_parts_of``).
    """
    found = []
    for host in topology.hosts:
        parts = cpu_parts if isinstance(cpu_parts, int) else cpu_parts.get(host.host_id, 0)
        if host.gpus > 0:
            found.append(_whole_if_wrong(Node(host.name, host.gpu or ANY_GPU, host.gpus, host.labels)))
        if host.cpus > 0 and parts > 0:
            found.append(Node(_cpu_name(host), CPU, parts, _without_domains(host.labels)))
    return tuple(found)


def cpu_parts_of(spec: ClusterSpec, topology: Topology) -> dict[str, int]:
    """Into how many parts each host's CPU goes, by its id: just as many as let the replicas on CPUs spread evenly over
    the hosts that are theirs, those that are there staying where they are. Of sizes and counts that are open, one.
    Empty without pools on CPUs.
    """
    loads = {
        owner: {host.host_id: 0 for host in topology.hosts if host.cpus > 0 and owner_of(host.labels) == owner}
        for owner in owners_of(topology)
    }
    stages: dict[Owner, list[int]] = {}
    for gang in _cpu_gangs(spec):
        owner = owner_for(gang.model, gang.role, loads)
        own = loads.get(owner, {})
        there = topology.reserved.get(gang.gang_id, ())
        if len(there) == gang.tensor_parallel * gang.pipeline_parallel and own.keys() >= set(there):
            for host_id in there:
                own[host_id] += 1
        else:
            stages.setdefault(owner, []).extend([gang.tensor_parallel] * gang.pipeline_parallel)
    parts = {owner: _evenly(own.values(), stages.get(owner, ())) for owner, own in loads.items()}
    return {host_id: parts[owner] for owner, own in loads.items() if parts[owner] for host_id in own}


def _evenly(loads: Iterable[int], sizes: Iterable[int]) -> int:
    """The most that any host has once these are there too, each where least is."""
    heap = list(loads)
    if not heap:
        return 0
    heapify(heap)
    for size in sorted(sizes, reverse=True):
        heapreplace(heap, heap[0] + size)
    return max(heap)


def gangs_of(spec: ClusterSpec, nodes: Iterable[Node]) -> list[Gang]:
    """A gang for each worker slot of a closed specification.

    A pool that names no kinds of GPU may run on all that there are, preferably on what there is most of.
    """
    counts: Counter[str] = Counter()
    for node in nodes:
        if node.device != CPU:
            counts[node.device] += node.count
    every = tuple(sorted(counts, key=lambda kind: (-counts[kind], kind))) or (ANY_GPU,)
    return list(_gangs(spec, every))


def kept_of(topology: Topology, gangs: Sequence[Gang], nodes: Iterable[Node]) -> tuple[Placed, ...]:
    """Where gangs are by their reservations, in the order of gangs.

    The devices of a stage are of one NVLink domain if one has room; shares go together as far as there is room. Left
    out: what is on a host that is gone, is not of the gang's size or kind, or is for other pools.
    """
    by_name = {node.name: _Numbers(node) for node in nodes}
    hosts = {
        host.host_id: [by_name[name] for name in (host.name, _cpu_name(host)) if name in by_name]
        for host in topology.hosts
    }
    owners = owners_of(topology)
    kept: dict[str, Placed] = {}
    for gang in sorted(gangs, key=_large_first):
        owner = owner_for(gang.model, gang.role, owners)
        there = [
            next(
                (
                    each
                    for each in hosts.get(host_id, ())
                    if each.node.device in gang.devices and owner_of(each.node.labels) == owner
                ),
                None,
            )
            for host_id in topology.reserved.get(gang.gang_id, ())
        ]
        placed = _numbered(gang, there)
        if placed is not None:
            kept[gang.gang_id] = placed
    return tuple(kept[gang.gang_id] for gang in gangs if gang.gang_id in kept)


def misfits(topology: Topology, gangs: Iterable[Gang], kept: Iterable[Placed]) -> list[Gang]:
    """Those that hold something on a host, and are not among what could be kept."""
    known, hosts = {placed.gang_id for placed in kept}, {host.host_id for host in topology.hosts}
    return [
        gang
        for gang in gangs
        if gang.gang_id not in known and hosts.intersection(topology.reserved.get(gang.gang_id, ()))
    ]


def without(topology: Topology, gangs: Iterable[Gang]) -> Topology:
    """These gangs' reservations as if they were others', who hold whole GPUs."""
    gangs = list(gangs)
    held = Counter(
        host_id for gang in gangs if gang.devices != (CPU,) for host_id in topology.reserved.get(gang.gang_id, ())
    )
    hosts = tuple(replace(host, gpus=max(0, host.gpus - held[host.host_id])) for host in topology.hosts)
    gone = {gang.gang_id for gang in gangs}
    return Topology(hosts, {slot: ids for slot, ids in topology.reserved.items() if slot not in gone})


def hosts_by_node(topology: Topology) -> dict[str, str]:
    """The ids of hosts by the names of their nodes."""
    return {name: host.host_id for host in topology.hosts for name in (host.name, _cpu_name(host))}


def _cpu_name(host: Host) -> str:
    return f"{host.name} {CPU}" if host.gpus > 0 else host.name


def _whole_if_wrong(node: Node) -> Node:
    """Without its NVLink domains where they name devices that it doesn't have, as when others hold some."""
    try:
        domains(node)
    except ConfigError:
        return replace(node, labels=_without_domains(node.labels))
    return node


def _without_domains(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name not in NVLINK_DOMAIN}


def _gangs(spec: ClusterSpec, gpus: tuple[str, ...]) -> tuple[Gang, ...]:
    pools = {(model.name, role): pool for model in spec.models for role, pool in model.pools.items()}
    kinds = {key: (CPU,) if pool.device is Device.CPU else pool.gpu or gpus for key, pool in pools.items()}
    return gangs_on(spec, kinds)


def _cpu_gangs(spec: ClusterSpec) -> Iterator[Gang]:
    """Those on CPUs; what is open is one."""
    models = [replace(model, pools={role: _least(pool) for role, pool in model.pools.items()}) for model in spec.models]
    return (gang for gang in _gangs(replace(spec, models=tuple(models)), (ANY_GPU,)) if gang.devices == (CPU,))


def _least(pool: PoolSpec) -> PoolSpec:
    counts: dict[str, Any] = dict.fromkeys(pool.open_counts, 1)
    return replace(pool, **counts) if counts else pool


def _large_first(gang: Gang) -> tuple[object, ...]:
    """What has fewest places first, and wholes before shares."""
    return parts_of(gang.share) < WHOLE, -gang.tensor_parallel, -parts_of(gang.share), natural(gang.gang_id)


class _Numbers:
    """The devices of a node that no reservation has been given."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._free = [list(domain) for domain in domains(node)]
        self._left: dict[int, int] = {}  # ten-thousandths of devices in shared use

    def take(self, size: int) -> tuple[int, ...]:
        """The lowest numbers of the domain with the fewest that are enough, or of all; empty if too few are left."""
        enough = [domain for domain in self._free if len(domain) >= size]
        pool = min(enough, key=len) if enough else sorted(number for domain in self._free for number in domain)
        taken = tuple(pool[:size]) if len(pool) >= size else ()
        for domain in self._free:
            domain[:] = [number for number in domain if number not in taken]
        return taken

    def give_back(self, taken: Iterable[int]) -> None:
        numbers = set(taken)
        for domain, every in zip(self._free, domains(self.node), strict=True):
            domain[:] = sorted({*domain, *numbers.intersection(every)})

    def take_part(self, parts: int) -> tuple[int, ...]:
        """A device in shared use that has just enough left, or else a new one; empty if there is none."""
        fitting = [(left, number) for number, left in self._left.items() if left >= parts]
        taken = (min(fitting)[1],) if fitting else self.take(1)
        for number in taken:
            self._left[number] = self._left.get(number, WHOLE) - parts
        return taken


def _numbered(gang: Gang, there: Sequence[_Numbers | None]) -> Placed | None:
    """The gang on these nodes, one for each device; None, and nothing taken, where it can't be."""
    size = gang.tensor_parallel
    known = [node for node in there if node is not None]
    if not known or len(known) != len(there) or len(there) != size * gang.pipeline_parallel:
        return None
    stages = [known[first : first + size] for first in range(0, len(known), size)]
    if any(len(set(map(id, stage))) > 1 for stage in stages) or len({node.node.device for node in known}) > 1:
        return None
    parts = parts_of(gang.share)
    if parts < WHOLE and len(known) > 1:
        return None
    taken: list[tuple[_Numbers, tuple[int, ...]]] = []
    for node, *_ in stages:
        numbers = node.take(size) if parts == WHOLE else node.take_part(parts)
        if not numbers:
            for other, given in taken:
                other.give_back(given)
            return None
        taken.append((node, numbers))
    return Placed(gang.gang_id, tuple((node.node.name, numbers) for node, numbers in taken))
