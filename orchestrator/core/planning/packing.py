"""The last resort: a search for a packing of everything, blind to preferences, complete within a bound.

Islands with as much free are the same to it, so a state is how many islands there are of each shape; a state that led
nowhere is not entered again. What can't be packed for plain lack of devices is found out by counting, without a search.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from orchestrator.core.planning.islands import Ground, Island
from orchestrator.core.planning.places import WHOLE, Gang, Node, Placed, parts_of

MOST_STEPS = 20_000  # up to half a second
MOST_STAGES = 400  # a step is a stage deeper
MOST_KIND_SETS = 8  # of which all unions are counted

Shape = tuple[str, int, tuple[int, ...]]  # kind, whole devices, what is left of devices in shared use
Choice = tuple[Shape, int]  # an island's shape before, and what is left before of the device: WHOLE if it was free
Tried = dict[frozenset[Placed], bool]


def pack(
    wanted: Sequence[Gang],
    ground: Ground,
    nodes: Sequence[Node],
    kept: Sequence[Placed],
    tried: Tried,
    *,
    movable: bool,
) -> tuple[Ground, bool]:
    """All gangs on a new ground, or else the ground as it is; and whether a search stopped at its bound.

    First with gangs of ``kept`` where they are, then, if they are ``movable``, without regard to that. ``tried`` has
    with which gangs in place there is no packing to be found, and whether a bound was the reason.
    """
    by_id = {gang.gang_id: gang for gang in wanted}
    stay = [placed for placed in kept if ground.placed.get(placed.gang_id) == placed]
    starts = [stay, []] if movable and stay else [stay]
    for fixed in starts:
        if frozenset(fixed) in tried:
            continue
        fresh = Ground(nodes)
        for placed in fixed:
            fresh.occupy(by_id[placed.gang_id], placed)
        rest = [gang for gang in wanted if gang.gang_id not in fresh.placed]
        search = _Search(rest, Counter(map(_shape, fresh.islands)))
        if search.run():
            _carry_out(fresh, rest, search.choices, kept)
            return fresh, False
        tried[frozenset(fixed)] = search.exhausted
    return ground, any(tried[frozenset(fixed)] for fixed in starts)


class _Search:
    """``choices`` has one for each stage, in the order of gangs."""

    def __init__(self, gangs: Sequence[Gang], shapes: Counter[Shape]) -> None:
        self.choices: list[Choice] = []
        self.exhausted = False
        self._gangs = gangs
        self._shapes = shapes
        self._dead: set[tuple[object, ...]] = set()
        self._steps = 0

    def run(self) -> bool:
        if _lacks_devices(self._gangs, self._shapes):
            return False
        if sum(gang.pipeline_parallel for gang in self._gangs) > MOST_STAGES:
            self.exhausted = True
            return False
        return self._fill(0, 0, "")

    def _fill(self, index: int, stage: int, kind: str) -> bool:
        """Choices for this stage of this gang, on this kind if it has one, and for all that follow."""
        if index == len(self._gangs):
            return True
        key = (index, stage, kind, frozenset(self._shapes.items()))
        if key in self._dead:
            return False
        if self._steps == MOST_STEPS:
            self.exhausted = True
            return False
        self._steps += 1
        gang = self._gangs[index]
        last = stage + 1 == gang.pipeline_parallel
        for choice, after in self._options(gang, (kind,) if kind else gang.devices):
            before = choice[0]
            self._replace(before, after)
            self.choices.append(choice)
            if self._fill(index + 1, 0, "") if last else self._fill(index, stage + 1, before[0]):
                return True
            self.choices.pop()
            self._replace(after, before)
        if not self.exhausted:
            self._dead.add(key)
        return False

    def _replace(self, old: Shape, new: Shape) -> None:
        self._shapes[old] -= 1
        if not self._shapes[old]:
            del self._shapes[old]
        self._shapes[new] += 1

    def _options(self, gang: Gang, kinds: tuple[str, ...]) -> list[tuple[Choice, Shape]]:
        """Best fit first. Each with the island's shape after it."""
        parts = parts_of(gang.share)
        found: list[tuple[Choice, Shape]] = []
        for shape in sorted(self._shapes, key=lambda shape: (kinds.index(shape[0]) if shape[0] in kinds else 0, shape)):
            kind, free, lefts = shape
            if kind not in kinds:
                continue
            if parts == WHOLE and free >= gang.tensor_parallel:
                found.append(((shape, WHOLE), (kind, free - gang.tensor_parallel, lefts)))
            if parts < WHOLE:
                for left in sorted({left for left in lefts if left >= parts}):
                    found.append(((shape, left), (kind, free, _replaced(lefts, left, left - parts))))
                if free:
                    found.append(((shape, WHOLE), (kind, free - 1, _replaced(lefts, None, WHOLE - parts))))
        return found


def _replaced(lefts: tuple[int, ...], old: int | None, new: int) -> tuple[int, ...]:
    rest = list(lefts)
    if old is not None:
        rest.remove(old)
    return tuple(sorted([*rest, new]))


def _shape(island: Island) -> Shape:
    return island.node.device, len(island.free), tuple(sorted(island.left.values()))


def _lacks_devices(gangs: Sequence[Gang], shapes: Mapping[Shape, int]) -> bool:
    """Whether counting alone shows that these gangs can't all be packed.

    Gangs that can't leave a set of kinds need no more than its islands have; see ``_needs_more``.
    """
    alike = Counter(
        (frozenset(gang.devices), gang.tensor_parallel, gang.pipeline_parallel, parts_of(gang.share)) for gang in gangs
    )
    sets = {kinds for kinds, *_ in alike}
    unions = {frozenset[str]().union(*sets)}
    if len(sets) <= MOST_KIND_SETS:
        for count in range(1, len(sets)):
            unions |= {frozenset[str]().union(*some) for some in itertools.combinations(sets, count)}
    for union in unions:
        needs = [(count, *shape) for (kinds, *shape), count in alike.items() if kinds <= union]
        islands = [(count, free, sum(lefts)) for (kind, free, lefts), count in shapes.items() if kind in union]
        if _needs_more(needs, islands):
            return True
    return False


def _needs_more(needs: Sequence[tuple[int, ...]], islands: Sequence[tuple[int, int, int]]) -> bool:
    """``needs``: how many gangs, size, stages, parts; ``islands``: how many, free, left of devices in shared use.

    A stage of t devices takes the room of at least t // s stages of s, whichever island it is on.
    """
    for size in {size for _, size, _, _ in needs}:
        wanted = sum(count * stages * (each // size) for count, each, stages, parts in needs if parts == WHOLE)
        if wanted > sum(count * (free // size) for count, free, _ in islands):
            return True
    parts_wanted = sum(count * size * stages * parts for count, size, stages, parts in needs)
    return parts_wanted > sum(count * (free * WHOLE + left) for count, free, left in islands)


def _carry_out(ground: Ground, gangs: Sequence[Gang], choices: Sequence[Choice], before: Iterable[Placed]) -> None:
    """Real islands for the shapes that were chosen: those where a gang is already, if that is one of them."""
    homes = {placed.gang_id: placed.stages for placed in before}
    claimed = {(name, device): gang_id for gang_id, stages in homes.items() for name, some in stages for device in some}
    turn = iter(choices)
    for gang in gangs:
        staged = [next(turn) for _ in range(gang.pipeline_parallel)]
        taken: set[tuple[str, int]] = set()
        stages = []
        for choice, home in itertools.zip_longest(staged, homes.get(gang.gang_id, ())[: len(staged)]):
            stage = _real(ground, gang, choice, home, taken, claimed)
            taken.update((stage[0], device) for device in stage[1])
            stages.append(stage)
        ground.occupy(gang, Placed(gang.gang_id, tuple(stages)))


def _real(
    ground: Ground,
    gang: Gang,
    choice: Choice,
    home: tuple[str, tuple[int, ...]] | None,
    taken: set[tuple[str, int]],
    claimed: Mapping[tuple[str, int], str],
) -> tuple[str, tuple[int, ...]]:
    """``taken``: by earlier stages of this gang, which are not on the ground yet."""

    def candidates() -> Iterator[tuple[bool, int, str, tuple[int, ...]]]:
        (kind, free, lefts), left = choice
        for island in ground.islands:
            name = island.node.name
            whole = [device for device in island.free if (name, device) not in taken]
            if (island.node.device, len(whole), tuple(sorted(island.left.values()))) != (kind, free, lefts):
                continue
            fitting = whole if left == WHOLE else [each for each, rest in island.left.items() if rest == left]
            others = {device for device in fitting if claimed.get((name, device), gang.gang_id) != gang.gang_id}
            fitting.sort(key=lambda device: (not (home and device in home[1]), device in others, device))
            some = tuple(sorted(fitting[: gang.tensor_parallel]))
            yield (name, some) != home, len(others.intersection(some)), name, some

    return min(candidates())[2:]
