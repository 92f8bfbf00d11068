"""A running cluster's machines, as what runs actors on them knows them, and what is reserved there now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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


@dataclass(frozen=True, slots=True)
class Topology:
    """All hosts that are alive, and where this cluster's replicas have their devices."""

    hosts: tuple[Host, ...]
    reserved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # slot id: host id a device, stage by stage
