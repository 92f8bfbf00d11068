"""What placement's tests have in common: checks that know nothing of how places are found."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.core.planning.places import Gang, Node, Placed, Placement, domains
from orchestrator.core.spec import Role

Taken = dict[tuple[str, int], float]


def gang(
    gang_id: str,
    tp: int = 1,
    pp: int = 1,
    share: float = 1.0,
    *,
    model: str = "m",
    role: Role = Role.SERVE,
    devices: tuple[str, ...] = ("H100",),
) -> Gang:
    return Gang(gang_id, model, role, devices, tp, pp, share)


def node(name: str, count: int = 8, device: str = "H100", **labels: str) -> Node:
    return Node(name, device, count, labels)


def cluster(zones: str = "ab", racks: int = 2, nodes: int = 2, count: int = 8) -> list[Node]:
    """Nodes a00, a01, a10 ...: zone, rack, number."""
    return [
        node(f"{zone}{rack}{number}", count, zone=zone, rack=f"{zone}{rack}")
        for zone in zones
        for rack in range(racks)
        for number in range(nodes)
    ]


def check(placement: Placement, gangs: Sequence[Gang], nodes: Iterable[Node]) -> None:
    """Every promise that holds for any placement: each gang once, whole, where it may be, and no device over 1."""
    by_name = {each.name: each for each in nodes}
    by_id = {each.gang_id: each for each in gangs}
    ids = [each.gang_id for each in (*placement.placed, *placement.unplaced)]
    assert sorted(ids) == sorted(by_id)
    taken: Taken = {}
    for placed in placement.placed:
        wanted = by_id[placed.gang_id]
        assert len(placed.stages) == wanted.pipeline_parallel
        assert len({by_name[name].device for name, _ in placed.stages}) == 1
        for name, devices in placed.stages:
            assert by_name[name].device in wanted.devices
            assert len(set(devices)) == len(devices) == wanted.tensor_parallel
            assert any(set(devices) <= set(domain) for domain in domains(by_name[name]))
            for device in devices:
                taken[name, device] = taken.get((name, device), 0.0) + wanted.share
    assert all(share <= 1 + 1e-3 for share in taken.values()), taken


def can_all_be_placed(gangs: Sequence[Gang], nodes: Sequence[Node]) -> bool:
    """By trying everything, device by device."""
    return _fill(list(gangs), nodes, {})


def _fill(gangs: list[Gang], nodes: Sequence[Node], taken: Taken) -> bool:
    if not gangs:
        return True
    first, *rest = gangs
    for kind in first.devices:
        for stages in _stages(first, kind, nodes, taken, first.pipeline_parallel):
            more = dict(taken)
            for place in stages:
                more[place] = more.get(place, 0.0) + first.share
            if _fill(rest, nodes, more):
                return True
    return False


def _stages(
    gang: Gang, kind: str, nodes: Sequence[Node], taken: Taken, stages: int
) -> Iterator[tuple[tuple[str, int], ...]]:
    if stages == 0:
        yield ()
        return
    for each in nodes:
        for domain in domains(each) if each.device == kind else ():
            fitting = [device for device in domain if taken.get((each.name, device), 0.0) + gang.share <= 1 + 1e-3]
            for some in itertools.combinations(fitting, gang.tensor_parallel):
                stage = tuple((each.name, device) for device in some)
                more = {**taken, **dict.fromkeys(stage, 1.0)}
                for others in _stages(gang, kind, nodes, more, stages - 1):
                    yield stage + others


def where(placement: Placement, gang_id: str) -> list[str]:
    """The nodes of a gang, stage by stage."""
    placed = next(each for each in placement.placed if each.gang_id == gang_id)
    return [name for name, _ in placed.stages]


def words(placement: Placement) -> str:
    return "; ".join(reason.words for each in placement.unplaced for reason in each.reasons)


def on(gang_id: str, *stages: tuple[str, tuple[int, ...]]) -> Placed:
    return Placed(gang_id, stages)
