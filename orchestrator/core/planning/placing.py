"""Gangs onto nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning import packing, reasons, repairing
from orchestrator.core.planning.islands import Ground, natural
from orchestrator.core.planning.owners import NOBODY, Owner, owner_for, owner_of
from orchestrator.core.planning.places import Constraint, Gang, Node, Placed, Placement, Shortfall, Unplaced, parts_of
from orchestrator.core.planning.seeking import Seeker


def place(
    gangs: Sequence[Gang], nodes: Iterable[Node], kept: Iterable[Placed] = (), *, movable: bool = True
) -> Placement:
    """Where each gang goes, given where gangs are now.

    Always: no device has more than one gang, or shares that together are more than it; a gang is placed whole or not at
    all, each stage in one node and NVLink domain, all stages on one kind and on nodes of one owner, its own
    (``owners``). A gang of ``kept`` whose place is still valid
    stays there; others of ``kept`` are placed anew. With ``movable`` gangs are moved where that lets one more be placed
    without displacing any. The same input in any order gives the same result, and placing again with the result as
    ``kept`` changes nothing. ``seeking`` has what is preferred.

    How tight it packs: gangs go large first, which for one kind of device and sizes that divide each other (1, 2, 4, 8)
    places all whenever all can be placed. Otherwise what is left over is retried with gangs moved out of its way, and
    then by a search that is complete if it ends within ``packing.MOST_STEPS``; if it doesn't, the placement says so.

    Raises:
        ConfigError: two gangs or two nodes have one name, or a label splits a node wrongly.
    """
    twice = [gang_id for gang_id, count in Counter(gang.gang_id for gang in gangs).items() if count > 1]
    if twice:
        raise ConfigError(f"two gangs have the name {twice[0]}", hint="give each a name of its own")
    every = tuple(nodes)
    owners = {owner_of(node.labels) for node in every}
    if owners <= {NOBODY}:
        return _place(gangs, every, tuple(kept), movable=movable)
    return _apart(gangs, every, tuple(kept), owners, movable=movable)


def _apart(
    gangs: Sequence[Gang], nodes: Sequence[Node], kept: Sequence[Placed], owners: set[Owner], *, movable: bool
) -> Placement:
    """Each owner's gangs on its nodes, as if there were no others."""
    whose = {gang.gang_id: owner_for(gang.model, gang.role, owners) for gang in gangs}
    placed: dict[str, Placed] = {}
    unplaced: dict[str, Unplaced] = {}
    exhausted = False
    for owner in sorted(set(whose.values())):
        own = [node for node in nodes if owner_of(node.labels) == owner]
        found = _place([gang for gang in gangs if whose[gang.gang_id] == owner], own, kept, movable=movable)
        others = _of_others(nodes, own)
        placed.update((each.gang_id, each) for each in found.placed)
        unplaced.update((each.gang_id, Unplaced(each.gang_id, (*each.reasons, *others))) for each in found.unplaced)
        exhausted = exhausted or found.exhausted
    ids = [gang.gang_id for gang in gangs]
    return Placement(
        tuple(placed[gang_id] for gang_id in ids if gang_id in placed),
        tuple(unplaced[gang_id] for gang_id in ids if gang_id in unplaced),
        exhausted,
    )


def _of_others(nodes: Sequence[Node], own: Sequence[Node]) -> tuple[Shortfall, ...]:
    names = {node.name for node in own}
    others = tuple(node.name for node in nodes if node.name not in names)
    if not others:
        return ()
    words = f"{len(others)} of {len(nodes)} nodes are for other pools, by their labels segue.io/model and segue.io/role"
    return (Shortfall(Constraint.OWNER, others, 1, 0, words),)


def _place(gangs: Sequence[Gang], every: Sequence[Node], kept: Sequence[Placed], *, movable: bool) -> Placement:
    """``place`` on nodes of one owner."""
    sizes = reasons.Sizes(every)
    hopeless = {gang.gang_id for gang in gangs if reasons.hopeless(gang, sizes)}
    wanted = sorted((gang for gang in gangs if gang.gang_id not in hopeless), key=_order)
    before = tuple(kept)
    tried: packing.Tried = {}
    while True:
        ground, exhausted = _attempt(wanted, every, before, tried, movable=movable)
        now = tuple(ground.placed[gang_id] for gang_id in sorted(ground.placed))
        # Where room was made, it may now be enough for others. Each round places more than the last, or is the last.
        if len(now) == len(wanted) or now == before:
            break
        before = now
    return Placement(
        placed=tuple(ground.placed[gang.gang_id] for gang in gangs if gang.gang_id in ground.placed),
        unplaced=reasons.unplaced([gang for gang in gangs if gang.gang_id not in ground.placed], ground, hopeless),
        exhausted=exhausted,
    )


def _attempt(
    wanted: Sequence[Gang], nodes: Sequence[Node], kept: Sequence[Placed], tried: packing.Tried, *, movable: bool
) -> tuple[Ground, bool]:
    """One round, and whether the search for a tighter packing stopped at its bound."""
    ground = Ground(nodes)
    by_id = {gang.gang_id: gang for gang in wanted}
    for placed in sorted(kept, key=lambda each: natural(each.gang_id)):
        if placed.gang_id in by_id and placed.gang_id not in ground.placed:
            ground.occupy(by_id[placed.gang_id], placed)
    fixed = frozenset() if movable else frozenset(ground.placed)
    seeker = Seeker(ground, wanted)
    left = _greedy([gang for gang in wanted if gang.gang_id not in ground.placed], ground, seeker)
    left = repairing.repair(left, ground, seeker, fixed)
    if not left:
        return ground, False
    return packing.pack(wanted, ground, nodes, kept, tried, movable=movable)


def _greedy(gangs: Sequence[Gang], ground: Ground, seeker: Seeker) -> list[Gang]:
    """Place these in this order; those that find no place."""
    reserved = Counter[str]()
    for gang in gangs:
        if len(gang.devices) == 1:
            reserved[gang.devices[0]] += gang.tensor_parallel * gang.pipeline_parallel
    left = []
    for gang in gangs:
        if len(gang.devices) == 1:
            reserved[gang.devices[0]] -= gang.tensor_parallel * gang.pipeline_parallel
        placed = seeker.find(gang, reserved)
        if placed is None or not ground.occupy(gang, placed):
            left.append(gang)
    return left


def _order(gang: Gang) -> tuple[object, ...]:
    """Large ones first, as they find room in fewer places; of those alike in size the ones with fewer choices."""
    return (
        -gang.tensor_parallel,
        -gang.pipeline_parallel,
        -parts_of(gang.share),
        len(gang.devices),
        gang.model,
        gang.role,
        natural(gang.gang_id),
    )
