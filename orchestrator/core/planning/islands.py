"""Devices that are free, counted so that a place is found without looking at every node.

An island is what tensor parallelism can't leave: the devices of one node in one NVLink domain. Islands are kept by how
many of their devices are free, once for each group that they are in: all of a kind, a zone, a rack.
"""

from __future__ import annotations

import re
from bisect import insort
from collections.abc import Iterable, Iterator

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.places import RACK, WHOLE, ZONE, Gang, Node, Placed, domains, parts_of, shared_domain
from orchestrator.core.spec import Role

Site = tuple[str, ...]  # ("zone", zone), ("rack", zone, rack) or ("node", name)


class Island:
    """``free``: whole devices, in order; ``left``: ten-thousandths that are left of devices in shared use."""

    __slots__ = ("devices", "free", "gangs", "groups", "left", "node", "node_site", "rack_site", "zone_site")

    def __init__(self, node: Node, devices: tuple[int, ...]) -> None:
        zone, rack = node.label(ZONE), node.label(RACK)
        self.node = node
        self.devices = devices
        self.free = list(devices)
        self.left: dict[int, int] = {}
        self.gangs: dict[int, set[str]] = {}  # by device
        self.groups: tuple[Group, ...] = ()
        self.zone_site: Site = ("zone", zone)
        self.rack_site: Site = ("rack", zone, rack)
        self.node_site: Site = ("node", node.name)

    @property
    def sites(self) -> tuple[Site, Site, Site]:
        return self.zone_site, self.rack_site, self.node_site


class Group:
    """Islands that have a kind, and a zone, a rack or less in common, by what is free. Dicts are sets with an order."""

    __slots__ = ("domains", "free", "left", "racks", "site", "split", "whole", "zones")

    def __init__(self, site: Site) -> None:
        self.site = site
        self.free = 0  # whole devices
        self.whole: dict[int, dict[Island, None]] = {}  # by the number of free devices, which is above 0
        self.left: dict[int, dict[tuple[Island, int], None]] = {}  # devices in shared use, by what is left of them
        self.zones: dict[Site, Group] = {}  # of a kind
        self.racks: dict[Site, Group] = {}  # of a zone
        self.domains: dict[Site, Group] = {}  # of a zone: NVLink domains over several nodes
        self.split: dict[Site, Group] = {}  # of a zone: nodes with several islands

    def slots(self, size: int) -> int:
        """How many stages of so many devices find room."""
        return sum(len(islands) * (free // size) for free, islands in self.whole.items())

    def at_least(self, size: int) -> Iterator[Island]:
        """Islands with so many free devices, those with the fewest first."""
        for free in sorted(free for free in self.whole if free >= size):
            yield from self.whole[free]

    def shared_at_least(self, parts: int) -> Iterator[tuple[Island, int]]:
        """Devices in shared use that have so much left, those with the least first."""
        for left in sorted(left for left in self.left if left >= parts):
            yield from self.left[left]


class Tally:
    """How many of a pool's gangs are at each site."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at: dict[Site, int] = {}

    def add(self, sites: Iterable[Site], count: int) -> None:
        for site in sites:
            total = self.at.get(site, 0) + count
            if total:
                self.at[site] = total
            else:
                del self.at[site]


class Ground:
    """All nodes, and the gangs on them."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        """ConfigError where two nodes have one name, or a label splits a node wrongly."""
        self.nodes: dict[str, Node] = {}
        self.kinds: dict[str, Group] = {}
        self.placed: dict[str, Placed] = {}
        self.gangs: dict[str, Gang] = {}
        self.islands: list[Island] = []
        self._by_device: dict[str, dict[int, Island]] = {}
        self._tallies: dict[tuple[str, Role], Tally] = {}
        for node in sorted(nodes, key=lambda node: natural(node.name)):
            if node.name in self.nodes:
                raise ConfigError(f"two nodes have the name {node.name}", hint="give each a name of its own")
            self.nodes[node.name] = node
            islands = [Island(node, devices) for devices in domains(node) if devices]
            self._by_device[node.name] = {device: island for island in islands for device in island.devices}
            for island in islands:
                self._join(island, len(islands) > 1)
        self.largest = max((len(island.devices) for island in self.islands), default=0)

    def _join(self, island: Island, split: bool) -> None:
        node = island.node
        kind = self.kinds.setdefault(node.device, Group(("kind", node.device)))
        zone = kind.zones.setdefault(island.zone_site, Group(island.zone_site))
        groups = [kind, zone, zone.racks.setdefault(island.rack_site, Group(island.rack_site))]
        if domain := shared_domain(node):
            site = ("domain", domain)
            groups.append(zone.domains.setdefault(site, Group(site)))
        if split:
            groups.append(zone.split.setdefault(island.node_site, Group(island.node_site)))
        island.groups = tuple(groups)
        self.islands.append(island)
        for group in groups:
            group.free += len(island.free)
            group.whole.setdefault(len(island.free), {})[island] = None

    def tally(self, model: str, role: Role) -> Tally:
        return self._tallies.setdefault((model, role), Tally())

    def occupy(self, gang: Gang, placed: Placed) -> bool:
        """Put a gang where it was or is to be; False, and nothing done, where that can't be."""
        islands = self._valid(gang, placed)
        if islands is None:
            return False
        parts = parts_of(gang.share)
        for island, (_, devices) in zip(islands, placed.stages, strict=True):
            for device in devices:
                island.gangs.setdefault(device, set()).add(gang.gang_id)
            if parts < WHOLE:
                self._take_part(island, devices[0], parts)
            else:
                self._set_free(island, [device for device in island.free if device not in devices])
        self.placed[gang.gang_id], self.gangs[gang.gang_id] = placed, gang
        self.tally(gang.model, gang.role).add({site for island in islands for site in island.sites}, 1)
        return True

    def release(self, gang_id: str) -> tuple[Gang, Placed]:
        """Take a gang away."""
        gang, placed = self.gangs.pop(gang_id), self.placed.pop(gang_id)
        parts = parts_of(gang.share)
        islands = [self._by_device[name][devices[0]] for name, devices in placed.stages]
        for island, (_, devices) in zip(islands, placed.stages, strict=True):
            for device in devices:
                island.gangs[device].remove(gang_id)
            if parts < WHOLE:
                self._take_part(island, devices[0], -parts)
            else:
                self._set_free(island, sorted([*island.free, *devices]))
        self.tally(gang.model, gang.role).add({site for island in islands for site in island.sites}, -1)
        return gang, placed

    def _valid(self, gang: Gang, placed: Placed) -> list[Island] | None:
        """The island of each stage; None where the gang doesn't fit there."""
        islands: list[Island] = []
        taken: set[tuple[str, int]] = set()
        parts = parts_of(gang.share)
        if len(placed.stages) != gang.pipeline_parallel:
            return None
        for name, devices in placed.stages:
            by_device = self._by_device.get(name, {})
            island = by_device.get(devices[0]) if devices else None
            if island is None or len(devices) != gang.tensor_parallel or island.node.device not in gang.devices:
                return None
            if parts < WHOLE:
                if island.left.get(devices[0], WHOLE if devices[0] in island.free else 0) < parts:
                    return None
            elif any(device not in island.free for device in devices):
                return None
            taken.update((name, device) for device in devices)
            islands.append(island)
        whole = len(taken) == gang.tensor_parallel * gang.pipeline_parallel
        return islands if whole and len({island.node.device for island in islands}) == 1 else None

    def _set_free(self, island: Island, free: list[int]) -> None:
        before, after = len(island.free), len(free)
        island.free = free
        for group in island.groups:
            group.free += after - before
            if before:
                del group.whole[before][island]
                if not group.whole[before]:
                    del group.whole[before]
            if after:
                group.whole.setdefault(after, {})[island] = None

    def _take_part(self, island: Island, device: int, parts: int) -> None:
        """``parts`` below 0 gives back. A device of which all is left again is free as a whole."""
        if device in island.left:
            left = island.left.pop(device)
            for group in island.groups:
                del group.left[left][island, device]
                if not group.left[left]:
                    del group.left[left]
        else:
            left = WHOLE
            self._set_free(island, [each for each in island.free if each != device])
        left -= parts
        if left == WHOLE:
            free = list(island.free)
            insort(free, device)
            self._set_free(island, free)
            return
        island.left[device] = left
        for group in island.groups:
            group.left.setdefault(left, {})[island, device] = None


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """n2 before n10; no two names are equal."""
    parts = ((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part)
    return (*parts, (-1, name))
