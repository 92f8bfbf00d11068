"""Room for gangs that found none, by placing others elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

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
        self._queues: dict[tuple[str, int], list[Island]] = {}  # what is still to be tried, by kind and size
        self._elsewhere: dict[tuple[object, ...], bool] = {}

    def make(self, gang: Gang) -> bool:
        placed = self._seeker.find(gang, NOTHING)
        if placed and self._ground.occupy(gang, placed):
            return True  # an earlier gang's move left room
        if not self._enough(gang):
            return False
        for kind in gang.devices:
            queue = self._queue(kind, gang.tensor_parallel)
            while queue:
                if self.failures >= MOST_FAILURES:
                    return False
                if self._displace(gang, kind, queue):
                    self._elsewhere.clear()
                    return True
                self.failures += 1
                del queue[0]
        return False

    def _enough(self, gang: Gang) -> bool:
        """Whether as much is free, wherever that is; else one more gang can't be placed."""
        need = parts_of(gang.share) * gang.tensor_parallel * gang.pipeline_parallel
        groups = self._ground.kinds.values()
        free = sum(group.free * WHOLE + sum(left * len(some) for left, some in group.left.items()) for group in groups)
        return free >= need

    def _queue(self, kind: str, size: int) -> list[Island]:
        """Islands that are large enough: first those with gangs that have somewhere to go, then those that lack little.

        Successes keep the order, as it is only a guess.
        """
        if (kind, size) not in self._queues:
            islands = [each for each in self._ground.islands if each.node.device == kind and len(each.devices) >= size]
            islands.sort(key=lambda each: (self._stuck(each), size - len(each.free) % size, -len(each.free)))
            self._queues[kind, size] = islands
        return self._queues[kind, size]

    def _stuck(self, island: Island) -> bool:
        return not any(self._can_go(gangs) for gangs, _ in self._blocks(island))

    def _can_go(self, gang_ids: Iterable[str]) -> bool:
        """Whether each of these would find a place as things are."""
        return all(self._finds_place(self._ground.gangs[gang_id]) for gang_id in gang_ids)

    def _finds_place(self, gang: Gang) -> bool:
        alike = (gang.devices, gang.tensor_parallel, gang.pipeline_parallel, gang.share)
        if alike not in self._elsewhere:
            self._elsewhere[alike] = self._seeker.find(gang, NOTHING) is not None
        return self._elsewhere[alike]

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
        blocks = [(not self._can_go(gangs), len(devices), gangs) for gangs, devices in self._blocks(island)]
        while lacking > 0 and blocks:
            # One that is enough, as small as can be; or else the largest. But first those that have somewhere to go.
            enough = [block for block in blocks if block[1] >= lacking]
            sign = 1 if enough else -1
            block = min(enough or blocks, key=lambda each: (each[0], sign * each[1], len(each[2])))
            blocks.remove(block)
            chosen += sorted(block[2])
            lacking -= block[1]
        return chosen if lacking <= 0 else []

    def _blocks(self, island: Island) -> Iterator[tuple[frozenset[str], tuple[int, ...]]]:
        """Gangs that may go, with the devices that come free when they do."""
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
