"""Where gangs may go and where they went: nodes with their labels, gangs, and what became of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import Role

# A label's plain name first, then what Kubernetes, Ray, NVIDIA's device plugin and its topograph call it.
ZONE = ("zone", "topology.kubernetes.io/zone", "ray.io/availability-zone")
RACK = (
    "rack",
    "topology.kubernetes.io/rack",
    "network.topology.nvidia.com/leaf",
    "network.topology.nvidia.com/block",
    "fabric.topograph.run/tier-0",
)
NVLINK_DOMAIN = (
    "nvlink_domain",
    "nvidia.com/gpu.clique",
    "network.topology.nvidia.com/accelerator",
    "accelerator.topograph.run/domain",
)

WHOLE = 10_000  # parts of a device that shares are counted in, as Ray counts them

_SPAN = r"\d+(?:-\d+)?"
_DOMAINS = re.compile(rf"{_SPAN}(?:\+{_SPAN})*(?:,{_SPAN}(?:\+{_SPAN})*)+")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with ``count`` devices of one kind, numbered from 0; ``device`` is the kind's name in the catalogue.

    ``shared_bytes``: the memory that its devices have together, where each could have all of it (parts of a CPU).
    """

    name: str
    device: str
    count: int
    labels: Mapping[str, str] = field(default_factory=dict)
    shared_bytes: int = 0

    def label(self, names: tuple[str, ...]) -> str:
        """The first of these labels that the node has; empty if it has none."""
        return next((self.labels[name] for name in names if name in self.labels), "")


@dataclass(frozen=True, slots=True)
class Gang:
    """One replica: ``pipeline_parallel`` stages of ``tensor_parallel`` devices, all of one kind, all or nothing."""

    gang_id: str  # the replica's slot
    model: str
    role: Role
    devices: tuple[str, ...]  # kinds that it may run on, best first
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    share: float = 1.0  # of one device; below 1 only with one device


@dataclass(frozen=True, slots=True)
class Placed:
    """A gang's devices: per pipeline stage a node's name and the devices' numbers on it."""

    gang_id: str
    stages: tuple[tuple[str, tuple[int, ...]], ...]


class Constraint(StrEnum):
    """What kept a gang off nodes."""

    SHARE = "share"  # a part of a device and more than one device, or a part that is none
    DEVICE = "device"  # no node has a kind that it may run on
    NODE = "node"  # a stage needs more devices than a node has
    DOMAIN = "nvlink_domain"  # a stage needs more devices than one NVLink domain of a node has
    FREE = "free"  # a stage finds too few that are free together
    STAGES = "stages"  # some stages find room, not all
    OWNER = "owner"  # nodes that are for other pools alone


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One constraint that failed, the nodes on which it did, and what was needed and found there at best."""

    constraint: Constraint
    nodes: tuple[str, ...]
    needed: float  # devices, or a share of one; for STAGES: stages; for SHARE: the devices that a share may be of
    found: float
    words: str


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A gang that has no place, with every reason; together they name each node that could matter."""

    gang_id: str
    reasons: tuple[Shortfall, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """All gangs, each either placed or not, in the order in which they were asked for.

    ``exhausted``: the search for a tighter packing stopped at its bound, so that one may exist for what is unplaced.
    """

    placed: tuple[Placed, ...]
    unplaced: tuple[Unplaced, ...] = ()
    exhausted: bool = False


def domains(node: Node) -> tuple[tuple[int, ...], ...]:
    """A node's devices by NVLink domain, from its label ``nvlink_domain``.

    Without the label all of a node's devices are one domain. ``0-3,4-7`` splits a node: a domain between commas, with
    ``+`` between numbers that are not in a row (``0+2,1+3``); a device in none of them is alone. Any other value is the
    name of one domain, which nodes share that have the same value (an NVL72 rack).

    Raises:
        ConfigError: a split names a device twice, or what is no device of the node.
    """
    everything = tuple(range(node.count))
    value = node.label(NVLINK_DOMAIN).replace(" ", "")
    if not _DOMAINS.fullmatch(value):
        if "," in value:
            raise _wrong_split(node, "something that is no device")
        return (everything,)
    taken: set[int] = set()
    parts = tuple(_members(part, node, taken) for part in value.split(","))
    return parts + tuple((number,) for number in everything if number not in taken)


def _members(part: str, node: Node, taken: set[int]) -> tuple[int, ...]:
    """One domain of a split. Its devices go to ``taken``."""
    members: list[int] = []
    for span in part.split("+"):
        first, last = (int(number) for number in (span.split("-") * 2)[:2])
        if last >= node.count or first > last:
            raise _wrong_split(node, f"{span}, of devices 0 to {node.count - 1}")
        again = sorted(taken.intersection(range(first, last + 1)))
        if again:
            raise _wrong_split(node, f"device {again[0]} twice")
        taken.update(range(first, last + 1))
        members.extend(range(first, last + 1))
    return tuple(members)


def _wrong_split(node: Node, found: str) -> ConfigError:
    value = node.label(NVLINK_DOMAIN)
    return ConfigError(
        f"nvlink_domain {value!r} names {found}", where=f"node {node.name}", hint="name each device once, as in 0-3,4-7"
    )


def is_split(value: str) -> bool:
    """Whether a label ``nvlink_domain`` of this value splits a node, rather than name a domain."""
    return _DOMAINS.fullmatch(value.replace(" ", "")) is not None


def shared_domain(node: Node) -> str:
    """The name of the NVLink domain that the whole node is in; empty if its label names none or splits the node."""
    value = node.label(NVLINK_DOMAIN).replace(" ", "")
    return "" if is_split(value) else value


def parts_of(share: float) -> int:
    """A share of a device in ten-thousandths."""
    return round(share * WHOLE)
