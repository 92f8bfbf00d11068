"""Why a gang has no place: which constraint failed on which nodes, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.core.planning.islands import Ground, Island
from orchestrator.core.planning.places import WHOLE, Constraint, Gang, Node, Shortfall, Unplaced, domains, parts_of

MOST_NAMED = 4  # nodes in words; the reason has them all


def hopeless(gang: Gang, sizes: Sizes) -> bool:
    """Whether the gang would find no place if all nodes were empty and no other gang there."""
    if _wrong_shape(gang):
        return True
    return all(sizes.slots(kind, gang.tensor_parallel) < gang.pipeline_parallel for kind in gang.devices)


class Sizes:
    """How many devices the islands of each kind have, if all are free."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._islands: dict[str, Counter[int]] = {}
        for node in nodes:
            self._islands.setdefault(node.device, Counter()).update(len(devices) for devices in domains(node))

    def slots(self, kind: str, size: int) -> int:
        return sum(count * (devices // size) for devices, count in self._islands.get(kind, {}).items())


def unplaced(gangs: Sequence[Gang], ground: Ground, beyond: Collection[str]) -> tuple[Unplaced, ...]:
    """Every gang with its reasons. Why those ``beyond`` hope have none is told of empty nodes, as others don't matter.

    Reasons of gangs that are alike are found once.
    """
    known: dict[tuple[object, ...], tuple[Shortfall, ...]] = {}
    empty = Ground(ground.nodes.values()) if beyond else ground
    found = []
    for gang in gangs:
        key = (gang.devices, gang.tensor_parallel, gang.pipeline_parallel, gang.share)
        if key not in known:
            known[key] = tuple(_reasons(gang, empty if gang.gang_id in beyond else ground))
        found.append(Unplaced(gang.gang_id, known[key]))
    return tuple(found)


def _wrong_shape(gang: Gang) -> bool:
    devices, parts = gang.tensor_parallel * gang.pipeline_parallel, parts_of(gang.share)
    counts = min(gang.tensor_parallel, gang.pipeline_parallel, len(gang.devices)) >= 1
    return not counts or not 0 < parts <= WHOLE or (parts < WHOLE and devices > 1)


def _reasons(gang: Gang, ground: Ground) -> Iterator[Shortfall]:
    if _wrong_shape(gang):
        yield _of_shape(gang)
        return
    by_kind: dict[str, dict[str, _OnNode]] = {}
    for island in ground.islands:
        by_kind.setdefault(island.node.device, {}).setdefault(island.node.name, _OnNode(island.node)).add(
            island, gang.tensor_parallel
        )
    missing = [kind for kind in gang.devices if kind not in by_kind]
    if missing:
        there = ", ".join(f"{len(nodes)} with {kind}" for kind, nodes in sorted(by_kind.items()))
        words = (
            f"0 of {sum(map(len, by_kind.values()))} nodes have {' or '.join(missing)} (there are {there or 'none'})"
        )
        yield Shortfall(Constraint.DEVICE, (), gang.tensor_parallel * gang.pipeline_parallel, 0, words)
    for kind in gang.devices:
        if kind in by_kind:
            yield from _on_kind(gang, kind, list(by_kind[kind].values()))


def _of_shape(gang: Gang) -> Shortfall:
    devices = gang.tensor_parallel * gang.pipeline_parallel
    if gang.tensor_parallel < 1 or gang.pipeline_parallel < 1:
        words = (
            f"tensor_parallel {gang.tensor_parallel} and pipeline_parallel {gang.pipeline_parallel}, allowed: 1 or more"
        )
    elif not gang.devices:
        words = "found 0 kinds of devices that it may run on, allowed: 1 or more"
    elif devices > 1 and 0 < gang.share < 1:
        words = (
            f"a share of {gang.share:g} is of 1 device, and tensor_parallel {gang.tensor_parallel} x pipeline_parallel "
            f"{gang.pipeline_parallel} are {devices}: leave the share at 1, or use 1 device"
        )
    else:
        words = f"a share of {gang.share:g}, allowed: from {1 / WHOLE:g} to 1"
    return Shortfall(Constraint.SHARE, (), 1, devices, words)


@dataclass(slots=True)
class _OnNode:
    """What one node has to offer: devices, and those of its largest island, in all and free."""

    node: Node
    domain: int = 0
    free: int = 0
    together: int = 0  # free in one island
    part: int = 0  # the most that is left of one device
    slots: int = 0  # stages that find room

    def add(self, island: Island, size: int) -> None:
        self.domain = max(self.domain, len(island.devices))
        self.free += len(island.free)
        self.together = max(self.together, len(island.free))
        self.slots += len(island.free) // size
        self.part = max([self.part, WHOLE if island.free else 0, *island.left.values()])


def _on_kind(gang: Gang, kind: str, nodes: Sequence[_OnNode]) -> Iterator[Shortfall]:
    """Each node of the kind goes to the first constraint that fails on it."""
    size = gang.tensor_parallel
    if gang.share < 1:
        yield _of_parts(gang, kind, nodes)
        return
    small = [each for each in nodes if each.node.count < size]
    split = [each for each in nodes if each.domain < size <= each.node.count]
    full = [each for each in nodes if each.together < size <= each.domain]
    some = [each for each in nodes if each.together >= size]
    stage = "" if gang.pipeline_parallel == 1 else "a stage of "
    needs = f"{stage}tensor_parallel {size} needs {size} {kind} in one node"
    if small:
        most = max(each.node.count for each in small)
        yield _reason(Constraint.NODE, small, size, most, f"{needs}, {_these(small)} {_have(small)} {most} at most")
    if split:
        most = max(each.domain for each in split)
        words = f"{needs} and NVLink domain, those of {_these(split)} have {most} at most"
        yield _reason(Constraint.DOMAIN, split, size, most, words)
    if full:
        most = max(each.together for each in full)
        where = " in one NVLink domain" if any(each.free > each.together for each in full) else ""
        words = f"{needs}, {_these(full)} {_have(full)} {most} free{where} at most"
        yield _reason(Constraint.FREE, full, size, most, words)
    if some:
        yield _of_stages(gang, kind, some)


def _of_stages(gang: Gang, kind: str, nodes: Sequence[_OnNode]) -> Shortfall:
    size, found = gang.tensor_parallel, sum(each.slots for each in nodes)
    stages = gang.pipeline_parallel
    needs = f"pipeline_parallel {stages} needs {stages} x {size} {kind}"
    free = " free" if any(each.free < each.node.count for each in nodes) else ""
    words = f"{needs}, {_these(nodes)} {_have(nodes)} {found} x {size}{free} in all"
    return _reason(Constraint.STAGES, nodes, stages, found, words)


def _of_parts(gang: Gang, kind: str, nodes: Sequence[_OnNode]) -> Shortfall:
    most = max(each.part for each in nodes) / WHOLE
    needs = f"a share of {gang.share:g} needs as much of one {kind}"
    words = f"{needs}, {_these(nodes)} {_have(nodes)} {most:g} left of one at most"
    return _reason(Constraint.FREE, nodes, gang.share, most, words)


def _reason(constraint: Constraint, nodes: Sequence[_OnNode], needed: float, found: float, words: str) -> Shortfall:
    return Shortfall(constraint, tuple(each.node.name for each in nodes), needed, found, words)


def _these(nodes: Sequence[_OnNode]) -> str:
    names = [each.node.name for each in nodes[:MOST_NAMED]]
    more = len(nodes) - len(names)
    return " and ".join(filter(None, [", ".join(names), f"{more} more nodes" if more else ""]))


def _have(nodes: Sequence[_OnNode]) -> str:
    return "has" if len(nodes) == 1 else "have"
