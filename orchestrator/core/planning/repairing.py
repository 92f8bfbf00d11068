"""Room for gangs that found none, by placing others elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from orchestrator.core.planning.islands import Ground, Island
from orchestrator.core.planning.places import WHOLE, Gang, Placed, parts_of
from orchestrator.core.planning.seeking import Seeker

MOST_FAILURES = 64  # of attempts in all

NOTHING: Counter[str] = Counter()


def repair(left: Sequence[Gang], ground: Ground, seeker: Seeker, fixed: Collection[str]) -> list[Gang]:
    """Place each of these gangs if those that are in its way, and not ``fixed``, find places elsewhere.

    A gang that was placed stays placed, so each success is one gang more.
    """
    room = _Room(ground, seeker, fixed)
    still: list[Gang] = []
    failed: set[tuple[object, ...]] = set()
    for gang in left:
        alike = (gang.devices, gang.tensor_parallel, gang.pipeline_parallel, gang.share)
        if alike in failed or room.failures >= MOST_FAILURES or not room.make(gang):
            still.append(gang)
            failed.add(alike)
    return still


class _Room:
    def __init__(self, ground: Ground, seeker: Seeker, fixed: Collection[str]) -> None:
        self.failures = 0
        self._ground = ground
        self._seeker = seeker
        self._fixed = fixed

    def make(self, gang: Gang) -> bool:
        placed = self._seeker.find(gang, NOTHING)
        if placed and self._ground.occupy(gang, placed):
            return True  # an earlier gang's move left room
        if not self._enough(gang):
            return False
        for kind in gang.devices:
            islands = self._by_effort(gang, kind)
            for start in range(len(islands)):
                if self.failures >= MOST_FAILURES:
                    return False
                if self._displace(gang, kind, islands[start:]):
                    return True
                self.failures += 1
        return False

    def _enough(self, gang: Gang) -> bool:
        """Whether as much is free, wherever that is; else one more gang can't be placed."""
        need = parts_of(gang.share) * gang.tensor_parallel * gang.pipeline_parallel
        groups = self._ground.kinds.values()
        free = sum(group.free * WHOLE + sum(left * len(some) for left, some in group.left.items()) for group in groups)
        return free >= need

    def _by_effort(self, gang: Gang, kind: str) -> list[Island]:
        """Islands that are large enough, those first that lack the fewest devices for one more stage."""
        size = gang.tensor_parallel
        fitting = (each for each in self._ground.islands if each.node.device == kind and len(each.devices) >= size)
        return sorted(fitting, key=lambda island: (size - len(island.free) % size, -len(island.free)))

    def _displace(self, gang: Gang, kind: str, islands: Sequence[Island]) -> bool:
        """Clear islands until the gang has room, then place those that were there; or leave all as it was."""
        gone: list[tuple[Gang, Placed]] = []
        group = self._ground.kinds[kind]
        for island in islands:
            if group.slots(gang.tensor_parallel) >= gang.pipeline_parallel:
                break
            gone += [self._ground.release(gang_id) for gang_id in self._in_the_way(island, gang.tensor_parallel)]
        arrived: list[str] = []
        here = Gang(gang.gang_id, gang.model, gang.role, (kind,), *_shape(gang))
        for each in (here, *(other for other, _ in sorted(gone, key=_largest_first))):
            placed = self._seeker.find(each, NOTHING)
            if not placed or not self._ground.occupy(gang if each is here else each, placed):
                break
            arrived.append(each.gang_id)
        else:
            return True
        for gang_id in arrived:
            self._ground.release(gang_id)
        for other, before in gone:
            self._ground.occupy(other, before)
        return False

    def _in_the_way(self, island: Island, size: int) -> list[str]:
        """Few gangs whose going frees what the island lacks for one more stage; none if that can't be."""
        lacking = size - len(island.free) % size
        if lacking + len(island.free) > len(island.devices):
            return []
        chosen: list[str] = []
        blocks = list(self._blocks(island))
        while lacking > 0 and blocks:
            # One that is enough, as small as can be; or else the largest. Of those alike the one with the fewest gangs.
            enough = [block for block in blocks if len(block[1]) >= lacking]
            block = min(enough or blocks, key=lambda each: (len(each[1]) if enough else -len(each[1]), len(each[0])))
            blocks.remove(block)
            chosen += [gang_id for gang_id in sorted(block[0]) if gang_id not in chosen]
            lacking -= len(block[1])
        return chosen if lacking <= 0 else []

    def _blocks(self, island: Island) -> Iterator[tuple[frozenset[str], tuple[int, ...]]]:
        """Devices that come free together, with the gangs that have to go for it."""
        devices: dict[frozenset[str], list[int]] = {}
        for device, gangs in island.gangs.items():
            if gangs and not gangs.intersection(self._fixed):
                devices.setdefault(frozenset(gangs), []).append(device)
        for together, some in devices.items():
            yield together, tuple(some)


def _shape(gang: Gang) -> tuple[int, int, float]:
    return gang.tensor_parallel, gang.pipeline_parallel, gang.share


def _largest_first(entry: tuple[Gang, Placed]) -> tuple[int, int, float, str]:
    gang = entry[0]
    return -gang.tensor_parallel, -gang.pipeline_parallel, -gang.share, gang.gang_id
