"""Devices that are parts of one machine's CPU have one memory: what all replicas there take together has to fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.core.planning.choices import Choice, NoChoice
from orchestrator.core.planning.places import Gang, Node, Placement

GB = 1e9


def crowded(
    choices: Mapping[str, Choice | NoChoice], gangs: Iterable[Gang], placement: Placement, nodes: Sequence[Node]
) -> list[str]:
    """A reason for each node whose devices share a memory that is too small; ``choices`` by the name of the model."""
    by_id = {gang.gang_id: gang for gang in gangs}
    memory = {node.name: node.shared_bytes for node in nodes if node.shared_bytes}
    needed, replicas = Counter[str](), Counter[str]()
    for placed in placement.placed:
        gang = by_id[placed.gang_id]
        choice = choices[gang.model]
        if not isinstance(choice, Choice):
            continue
        stages = choice.pool(gang.role).fit.stages
        for (node, devices), held in zip(placed.stages, stages, strict=True):
            needed[node] += held.total * len(devices)
        replicas.update({node for node, _ in placed.stages})
    return [
        f"{node}: {replicas[node]} replicas need {needed[node] / GB:.1f} GB of memory together, it has "
        f"{there / GB:.1f} GB; take fewer replicas, or a smaller kv_cache_memory_bytes"
        for node, there in memory.items()
        if needed[node] > there
    ]
