"""Places for replicas where devices can be bought besides those that are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator.core.planning.choices import NODE_DEVICES
from orchestrator.core.planning.devices import Catalogue
from orchestrator.core.planning.places import WHOLE, Gang, Node, Placed, Placement, parts_of
from orchestrator.core.planning.placing import place
from orchestrator.core.spec import Device


def place_or_buy(
    gangs: Sequence[Gang], nodes: Sequence[Node], catalogue: Catalogue, kept: Sequence[Placed]
) -> tuple[tuple[Node, ...], Placement]:
    """Servers with GPUs of kinds that no node has, as few as it takes, and where all gangs then are."""
    owned = {node.device for node in nodes}
    bought: list[Node] = []
    placement = place(gangs, nodes, kept)
    while placement.unplaced:
        wanted = {gang.gang_id: gang for gang in gangs}
        missing = Counter[str]()
        for left in placement.unplaced:
            gang = wanted[left.gang_id]
            missing[gang.devices[0]] += gang.tensor_parallel * gang.pipeline_parallel * parts_of(gang.share)
        buyable = {kind for kind in missing if kind not in owned and catalogue.find(kind).kind is Device.GPU}
        if not buyable:
            break
        for kind in sorted(buyable):
            bought += _servers(kind, max(1, missing[kind] // (NODE_DEVICES * WHOLE)), bought)
        placement = place(gangs, (*nodes, *bought), kept)
    return tuple(bought), placement


def _servers(kind: str, count: int, bought: Sequence[Node]) -> list[Node]:
    first = sum(node.device == kind for node in bought)
    return [Node(f"buy-{kind}-{number}", kind, NODE_DEVICES) for number in range(first, first + count)]
