"""A running cluster's hosts as an inventory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.devices import Catalogue, DeviceKind
from orchestrator.core.planning.hosts import CPU, Topology, cpu_parts_of, nodes_of, reachable
from orchestrator.core.planning.places import Node
from orchestrator.core.planning.plan import Inventory
from orchestrator.core.spec import ClusterSpec, Device
from orchestrator.planning import catalogue

GB = 1e9
ALIKE = 1.5  # times the memory of the smallest: hosts that are meant to be the same differ by what else was running
LABEL_HINT = "label the node segue.io/gpu=KIND (ray start --labels), KIND as in `segue plan --help`"


def inventory_of(
    topology: Topology, spec: ClusterSpec, measure: Callable[[int], DeviceKind] = catalogue.this_cpu
) -> Inventory:
    """What those of its hosts have that ``spec``'s workers can be reached on. ``measure``: called for pools on CPUs.

    A CPU elsewhere is taken for one like this machine's, with as much memory as its host says. GPUs of a kind that
    nobody says, or that the catalogue doesn't have, are left out where no pool may run on them.

    Raises:
        ConfigError: there are such GPUs, and a pool that names no kinds.
    """
    topology = reachable(topology, spec)
    known = catalogue.builtin()
    strangers = unknown(topology, known)
    if strangers and takes_any_gpu(spec):
        raise ConfigError(f"GPUs of unknown kind on {', '.join(strangers)}", hint=LABEL_HINT)
    parts = cpu_parts_of(spec, topology)
    nodes = tuple(node for node in nodes_of(topology, parts) if node.device == CPU or node.device in known)
    if not parts:
        return Inventory(nodes, known)
    return _with_cpus(nodes, topology, known, measure(max(parts.values())))


def takes_any_gpu(spec: ClusterSpec) -> bool:
    """Whether a pool may run on GPUs of any kind, also of one that nobody says."""
    pools = [pool for model in spec.models for pool in model.pools.values()]
    return any(pool.device is Device.GPU and not pool.gpu for pool in pools)


def unknown(topology: Topology, known: Catalogue) -> list[str]:
    """The hosts whose GPUs can't be planned with, each with what it says of them."""
    return [
        f"{host.name} ({host.gpu or 'it says nothing of them'})"
        for host in topology.hosts
        if host.gpus and (not host.gpu or host.gpu not in known)
    ]


def _with_cpus(nodes: tuple[Node, ...], topology: Topology, known: Catalogue, cpu: DeviceKind) -> Inventory:
    """A kind of CPU for hosts of about the same memory, which their CPU's parts share."""
    memory = {host.name: host.memory_bytes or cpu.memory_bytes for host in topology.hosts}
    least = _least_alike({memory[_host(node)] for node in nodes if node.device == CPU})
    kinds = {
        size: replace(cpu, name=f"{CPU}-{size / GB:.0f}GB", memory_bytes=size, aliases=()) for size in least.values()
    }
    found = [
        replace(node, device=kinds[least[memory[_host(node)]]].name, shared_bytes=memory[_host(node)])
        if node.device == CPU
        else node
        for node in nodes
    ]
    return Inventory(tuple(found), known.extended(kinds.values()))


def _host(node: Node) -> str:
    return node.name.removesuffix(f" {CPU}")


def _least_alike(sizes: Iterable[int]) -> dict[int, int]:
    """Each size, and the least of those that count as alike with it: stages of one replica are on one kind."""
    least: dict[int, int] = {}
    first = 0
    for size in sorted(sizes):
        if size > ALIKE * first:
            first = size
        least[size] = first
    return least
