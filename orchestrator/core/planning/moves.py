"""From one placement to the next: who comes, who goes, who moves, who stays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.core.planning.places import Placed


@dataclass(frozen=True, slots=True)
class Moves:
    """In buckets, each in the order of gang ids. ``moved`` holds where from and where to."""

    added: tuple[Placed, ...] = ()
    removed: tuple[Placed, ...] = ()
    moved: tuple[tuple[Placed, Placed], ...] = ()
    kept: tuple[Placed, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.added or self.removed or self.moved)


def moves(before: Iterable[Placed], after: Iterable[Placed]) -> Moves:
    """What turns one set of placed gangs into another. The order of devices within a stage makes no difference."""
    old = {placed.gang_id: placed for placed in before}
    new = {placed.gang_id: placed for placed in after}
    both = sorted(old.keys() & new.keys())
    stays = {gang_id for gang_id in both if _plain(old[gang_id]) == _plain(new[gang_id])}
    return Moves(
        added=tuple(new[gang_id] for gang_id in sorted(new.keys() - old.keys())),
        removed=tuple(old[gang_id] for gang_id in sorted(old.keys() - new.keys())),
        moved=tuple((old[gang_id], new[gang_id]) for gang_id in both if gang_id not in stays),
        kept=tuple(new[gang_id] for gang_id in both if gang_id in stays),
    )


def apply(before: Iterable[Placed], change: Moves) -> tuple[Placed, ...]:
    """What is placed after a change, in the order of gang ids. ``moves`` from it to where the change led is empty."""
    gone = {placed.gang_id for placed in change.removed} | {old.gang_id for old, _ in change.moved}
    stays = [placed for placed in before if placed.gang_id not in gone]
    return tuple(sorted([*stays, *change.added, *(new for _, new in change.moved)], key=lambda each: each.gang_id))


def _plain(placed: Placed) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((node, tuple(sorted(devices))) for node, devices in placed.stages)
