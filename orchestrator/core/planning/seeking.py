"""The best place for one gang, on the ground as it is.

Best, the earlier the more it counts:

1. its best kind of device that has room, but not at the expense of gangs that can run on nothing else;
2. stages near each other: in an island, a node, an NVLink domain, a rack, a zone;
3. no zone, rack or node with more of a pool than its part, if the pool is spread over ``SPREAD`` of them (or as many
   as there are): a lost node takes a quarter of a large pool, and one replica of a small one;
4. the halves of a model near each other: in a zone, then in a rack. The half with fewer replicas sets how many zones
   the other is spread over, because a replica that is alone in a zone would move each prompt's KV between zones;
5. best fit: the island with the fewest free devices that are enough, so that whole nodes stay free for large gangs.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from orchestrator.core.planning.islands import Ground, Group, Island, Site, Tally
from orchestrator.core.planning.places import WHOLE, Gang, Placed, parts_of
from orchestrator.core.spec import Role

SPREAD = 4
OTHER_HALF = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}

Pool = tuple[str, Role]
Pick = tuple[Island, int]  # and how many stages go there
Finder = Callable[[Group, "Wish"], list[Pick] | None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What gangs of a pool that are alike want. Limits are of a pool's gangs at one site."""

    size: int  # devices of a stage
    stages: int
    own: Tally
    other: Tally | None
    zone_limit: int
    rack_limit: int
    node_limit: int

    def crowded(self, island: Island) -> bool:
        """Whether the island's node or rack has its part of the pool already."""
        at = self.own.at
        return at.get(island.node_site, 0) >= self.node_limit or at.get(island.rack_site, 0) >= self.rack_limit

    def tier(self, zone: Group) -> tuple[bool, bool]:
        """Whether the zone has its part of the pool already, and whether it lacks the model's other half."""
        return self.own.at.get(zone.site, 0) >= self.zone_limit, not self.other or zone.site not in self.other.at


class Seeker:
    """Finds places for the gangs of one run; it changes nothing."""

    def __init__(self, ground: Ground, gangs: Iterable[Gang]) -> None:
        self._ground = ground
        self._sizes = Counter[Pool]((gang.model, gang.role) for gang in gangs)
        self._wishes: dict[tuple[object, ...], Wish] = {}
        self._sites: dict[tuple[tuple[str, ...], int], tuple[int, int, int]] = {}

    def find(self, gang: Gang, reserved: Counter[str]) -> Placed | None:
        """``reserved``: by kind, devices that gangs want which are still to come and can run on no other."""
        wish = self._wish(gang)
        need = wish.size * wish.stages
        kinds = [self._ground.kinds[kind] for kind in gang.devices if kind in self._ground.kinds]
        own = gang.devices[0] if len(gang.devices) == 1 else ""
        spare = [kind for kind in kinds if kind.site[1] == own or kind.free - reserved[kind.site[1]] >= need]
        for kind in [*spare, *(kind for kind in kinds if kind not in spare)]:
            placed = self._place(gang, kind, wish)
            if placed:
                return placed
        return None

    def _place(self, gang: Gang, kind: Group, wish: Wish) -> Placed | None:
        parts = parts_of(gang.share)
        if parts < WHOLE:
            found = self._part(kind, wish, parts)
            return Placed(gang.gang_id, ((found[0].node.name, (found[1],)),)) if found else None
        if kind.slots(wish.size) < wish.stages:
            return None
        picks = self._one_island(kind, wish)
        if picks is None and wish.stages > 1:
            picks = self._several_islands(kind, wish)
        return Placed(gang.gang_id, tuple(_stages(picks, wish.size))) if picks else None

    # One island, or one device

    def _one_island(self, kind: Group, wish: Wish) -> list[Pick] | None:
        need = wish.size * wish.stages
        for island in self._in_order(kind, wish, lambda group: group.at_least(need)):
            return [(island, wish.stages)]
        return None

    def _part(self, kind: Group, wish: Wish, parts: int) -> tuple[Island, int] | None:
        """A device that has so much left, or a new one where all such are crowded."""

        def candidates(group: Group) -> Iterator[Island]:
            yield from (island for island, _ in group.shared_at_least(parts))
            yield from group.at_least(1)

        for island in self._in_order(kind, wish, candidates):
            fitting = [(left, device) for device, left in island.left.items() if left >= parts]
            return island, min(fitting)[1] if fitting else island.free[0]
        return None

    def _in_order(self, kind: Group, wish: Wish, candidates: Callable[[Group], Iterator[Island]]) -> Iterator[Island]:
        """Islands by what counts; in zones that are equally good, first without any that is crowded."""
        for _, tier in itertools.groupby(self._zones(kind, wish), key=wish.tier):
            zones = list(tier)
            for strict in (True, False):
                for zone in zones:
                    for group in [*self._racks_with_other_half(zone, wish), zone]:
                        for island in candidates(group):
                            if not (strict and wish.crowded(island)):
                                yield island

    def _zones(self, kind: Group, wish: Wish) -> list[Group]:
        zones = (zone for zone in kind.zones.values() if zone.free or zone.left)
        return sorted(zones, key=lambda zone: (wish.tier(zone), zone.site not in wish.own.at, -zone.slots(wish.size)))

    def _racks_with_other_half(self, zone: Group, wish: Wish) -> list[Group]:
        if wish.other is None or len(zone.racks) == 1:
            return []
        other = wish.other.at
        return [rack for site, rack in zone.racks.items() if site in other and (rack.free or rack.left)]

    # Several islands

    def _several_islands(self, kind: Group, wish: Wish) -> list[Pick] | None:
        finders: tuple[Finder, ...] = (self._one_node, self._one_domain, self._one_rack, self._one_zone)
        zones = self._zones(kind, wish)
        for finder in finders:
            for zone in zones:
                picks = finder(zone, wish)
                if picks:
                    return picks
        return _gather((group for zone in _roomiest(zones, wish.size) for group in _racks(zone, wish.size)), wish)

    def _one_node(self, zone: Group, wish: Wish) -> list[Pick] | None:
        return _gather_in_one(zone.split.values(), wish)

    def _one_domain(self, zone: Group, wish: Wish) -> list[Pick] | None:
        return _gather_in_one(zone.domains.values(), wish)

    def _one_rack(self, zone: Group, wish: Wish) -> list[Pick] | None:
        at, other = wish.own.at, wish.other.at if wish.other else {}
        racks = sorted(
            zone.racks.values(), key=lambda rack: (at.get(rack.site, 0) >= wish.rack_limit, rack.site not in other)
        )
        return _gather_in_one(racks, wish)

    def _one_zone(self, zone: Group, wish: Wish) -> list[Pick] | None:
        return _gather(_racks(zone, wish.size), wish) if zone.slots(wish.size) >= wish.stages else None

    # Limits

    def _wish(self, gang: Gang) -> Wish:
        key = (gang.model, gang.role, gang.devices, gang.tensor_parallel, gang.pipeline_parallel)
        wish = self._wishes.get(key)
        if wish is None:
            wish = self._wishes[key] = self._new_wish(gang)
        return wish

    def _new_wish(self, gang: Gang) -> Wish:
        zones, racks, nodes = self._sites_for(gang)
        count = self._sizes[gang.model, gang.role]
        half = OTHER_HALF.get(gang.role)
        others = self._sizes[gang.model, half] if half else 0
        used = max(1, min(SPREAD, zones, count, others or count))
        in_zone, apart = -(-count // used), -(-SPREAD // used)
        return Wish(
            size=gang.tensor_parallel,
            stages=gang.pipeline_parallel,
            own=self._ground.tally(gang.model, gang.role),
            other=self._ground.tally(gang.model, half) if half and others else None,
            zone_limit=in_zone,
            rack_limit=-(-in_zone // max(1, min(apart, racks // max(1, zones)))),
            node_limit=-(-in_zone // max(1, min(apart, nodes // max(1, zones)))),
        )

    def _sites_for(self, gang: Gang) -> tuple[int, int, int]:
        """How many zones, racks and nodes could have the gang if all were free."""
        key = (gang.devices, gang.tensor_parallel)
        if key not in self._sites:
            sites: tuple[set[Site], set[Site], set[Site]] = (set(), set(), set())
            for island in self._ground.islands:
                if island.node.device in gang.devices and len(island.devices) >= gang.tensor_parallel:
                    for known, site in zip(sites, island.sites, strict=True):
                        known.add(site)
            zones, racks, nodes = (len(known) for known in sites)
            self._sites[key] = (zones, racks, nodes)
        return self._sites[key]


def _roomiest(groups: Iterable[Group], size: int) -> list[Group]:
    return sorted(groups, key=lambda group: -group.slots(size))


def _racks(zone: Group, size: int) -> list[Group]:
    return _roomiest(zone.racks.values(), size)


def _gather_in_one(groups: Iterable[Group], wish: Wish) -> list[Pick] | None:
    """All stages in the first of these groups that has room for them."""
    need = wish.size * wish.stages
    for group in groups:
        if group.free >= need and group.slots(wish.size) >= wish.stages:
            return _gather([group], wish)
    return None


def _gather(groups: Iterable[Group], wish: Wish) -> list[Pick] | None:
    """Islands for all stages, from one group after the other; few islands: large ones, then one that just fits."""
    picks: list[Pick] = []
    missing = wish.stages
    for group in groups:
        taken: set[Island] = set()
        while missing:
            island = _island_for(group, wish.size, missing, taken)
            if island is None:
                break
            stages = min(missing, len(island.free) // wish.size)
            picks.append((island, stages))
            taken.add(island)
            missing -= stages
    return picks if not missing else None


def _island_for(group: Group, size: int, stages: int, taken: set[Island]) -> Island | None:
    """The smallest that has room for all these stages, or else the largest."""
    for island in group.at_least(size * stages):
        if island not in taken:
            return island
    for free in sorted(group.whole, reverse=True):
        if free < size:
            return None
        for island in group.whole[free]:
            if island not in taken:
                return island
    return None


def _stages(picks: Iterable[Pick], size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for island, stages in picks:
        for stage in range(stages):
            yield island.node.name, tuple(island.free[stage * size : (stage + 1) * size])
