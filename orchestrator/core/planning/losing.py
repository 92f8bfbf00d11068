"""Why the others lost, in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from orchestrator.core.planning.candidates import Candidates
from orchestrator.core.planning.choices import Loser
from orchestrator.core.planning.serving import MOST_BUSY, MOST_REPLICAS, Option
from orchestrator.core.planning.weighing import Goal, Plan, Weighing, apart, without_load
from orchestrator.core.spec import Role

MOST_LOSERS = 12  # of a pool
ALIKE = 0.005  # a difference that isn't told


@dataclass(frozen=True, slots=True)
class _Lost:
    """A loser, and how near it was: 0 where it would do, 1 where it would miss, 2 where it doesn't fit; and by what."""

    near: tuple[int, float]
    loser: Loser


def losers(pool: Candidates, weighing: Weighing, plan: Plan) -> list[Loser]:
    """The best of each kind of device but the winner, and of the winner's kind the nearest other cuts.

    The plan's other pool stays as it is.
    """
    role = pool.pool.role
    winner = next(part.option for part in plan.parts if part.option.role is role)
    lost = [_judged(pool, option, weighing, plan) for option in _rivals(pool, weighing, plan) if option is not winner]
    lost += [
        _Lost((2, -float(each.cut.tensor)), Loser(role, each.device, each.cut.tensor, each.cut.pipeline, each.why))
        for each in pool.refused
    ]
    lost.sort(key=lambda each: (*each.near, each.loser.pipeline_parallel, each.loser.tensor_parallel))
    return [each.loser for each in _telling(lost, winner)][:MOST_LOSERS]


def _rivals(pool: Candidates, weighing: Weighing, plan: Plan) -> Iterator[Option]:
    """All options; of kinds that take another second half the cheapest only, as each means a search of its own."""
    seen = set()
    for option in sorted(pool.options, key=lambda each: (weighing.fewest(each) or MOST_REPLICAS) * each.cost):
        far = apart([option, *(part.option for part in plan.parts if part.option.role is not option.role)])
        if not far or option.kind.name not in seen:
            yield option
        seen.add(option.kind.name)


def _telling(lost: Sequence[_Lost], winner: Option) -> Iterator[_Lost]:
    """The nearest of each kind; of the winner's own the nearest with fewer devices and with more."""
    seen: set[tuple[str, bool]] = set()
    for each in lost:
        loser = each.loser
        more = loser.tensor_parallel * loser.pipeline_parallel > winner.cut.devices
        key = (loser.device, more and loser.device == winner.kind.name)
        if key not in seen:
            seen.add(key)
            yield each


def _judged(pool: Candidates, option: Option, weighing: Weighing, plan: Plan) -> _Lost:
    options = tuple(option if part.option.role is option.role else part.option for part in plan.parts)
    cut, name = option.cut, option.kind.name
    other = weighing.best(option) if apart(options) else weighing.plan(options)
    if other is not None:
        replicas = next(part.replicas for part in other.parts if part.option is option)
        why = _dearer(other, plan) + _beside(other, options)
        loser = Loser(option.role, name, cut.tensor, cut.pipeline, why, replicas, other.usd_per_hour)
        return _Lost((0, other.usd_per_hour), loser)
    over, why = _missing(pool, option, options, weighing)
    return _Lost((1, over), Loser(option.role, name, cut.tensor, cut.pipeline, why))


def _beside(other: Plan, options: tuple[Option, ...]) -> str:
    """What else is another one where it can't work with the plan's."""
    changed = [part.option for part in other.parts if all(part.option is not each for each in options)]
    return "".join(f", with {each.role} on {each.kind.name} {each.cut}" for each in changed)


def _dearer(other: Plan, plan: Plan) -> str:
    if other.usd_per_hour > plan.usd_per_hour * (1 + ALIKE):
        times = f"{other.usd_per_hour / plan.usd_per_hour:.3g}x" if plan.usd_per_hour else "above"
        return f"{times} the cost, ${other.usd_per_hour:.2f} an hour over ${plan.usd_per_hour:.2f}"
    if other.watts > plan.watts * (1 + ALIKE):
        return f"costs as much and draws {other.watts:.0f} W over {plan.watts:.0f} W"
    devices = [sum(part.replicas * part.option.devices for part in each.parts) for each in (other, plan)]
    if devices[0] > devices[1]:
        return f"costs as much with {devices[0]} devices over {devices[1]}"
    return (
        f"costs as much; first token after {milliseconds(other.first)} over {milliseconds(plan.first)}, "
        f"{milliseconds(other.between)} between tokens over {milliseconds(plan.between)}"
    )


def _missing(pool: Candidates, option: Option, options: tuple[Option, ...], weighing: Weighing) -> tuple[float, str]:
    """By how much it misses, and what: at best, without any load, or with all replicas that there may be."""
    goal = weighing.goal
    unlike = apart(options)
    if unlike:
        return inf, f"{unlike}, and it doesn't do beside any other"
    alone = without_load(options)
    if alone.over(goal) > 1:
        return alone.over(goal), "; ".join(misses(alone, goal)) + ", even without load"
    plan = weighing.stable(options)
    if plan is None or plan.meets(goal):
        stock = pool.stock[option.kind.name]
        return inf, f"a replica takes {counted(option.devices, 'device')}, and of {stock.devices} not enough are free"
    return plan.over(goal), "; ".join(misses(plan, goal))


def misses(plan: Plan, goal: Goal) -> list[str]:
    """Each wish that a plan doesn't meet, in numbers."""
    found = []
    for part in plan.parts:
        if part.estimate.busy > MOST_BUSY:
            found.append(_overloaded(part.option.role, part.replicas, part.estimate.busy, goal.rate))
    if goal.first < plan.first < inf:
        found.append(f"first token after {milliseconds(plan.first)} over {milliseconds(goal.first)}")
    if goal.between < plan.between < inf:
        found.append(f"{milliseconds(plan.between)} between tokens over {milliseconds(goal.between)}")
    return found


def _overloaded(role: Role, replicas: int, busy: float, rate: float) -> str:
    many = counted(replicas, f"{role} replica")
    if busy < 1:
        return f"{many} busy {100 * busy:.0f}% of the time at {rate:g} requests/s, over {100 * MOST_BUSY:.0f}%"
    return f"{rate:g} requests/s are {busy:.3g} times what {many} can do"


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{1e3 * seconds:.0f} ms"
