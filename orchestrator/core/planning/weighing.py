"""Which replicas of which options do what is asked, and which of those that do is the cheapest.

The search is exhaustive where it matters: for any two options the fewest replicas that do are found, decode pools may
have more than the fewest where that saves prefill replicas, and nothing is passed over but what must cost more. So a
tighter goal or a higher load never makes a plan cheaper, and another kind of device never makes one dearer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import ceil, inf, log

from orchestrator.core.planning.candidates import Candidates, together
from orchestrator.core.planning.hand_over import Half, Unlike, unlike
from orchestrator.core.planning.roofline import transfer_seconds
from orchestrator.core.planning.serving import MOST_BUSY, MOST_REPLICAS, Estimate, Option, least
from orchestrator.core.spec import Role

ROUNDING = 1e-12
SHARE_HALVINGS = 20  # of a load that is too much for the devices


@dataclass(frozen=True, slots=True)
class Goal:
    """Seconds to the first token and between others, inf where they don't matter, and requests a second."""

    first: float
    between: float
    rate: float


@dataclass(frozen=True, slots=True)
class Part:
    """Replicas of one option, and what one of them reaches with its part of the load."""

    option: Option
    replicas: int
    estimate: Estimate

    @property
    def usd_per_hour(self) -> float:
        return self.replicas * self.option.usd_per_hour

    @property
    def cost(self) -> float:
        return self.replicas * self.option.cost

    @property
    def watts(self) -> float:
        return self.replicas * self.option.watts


@dataclass(frozen=True, slots=True)
class Plan:
    """Pools that serve a model together; ``transfer`` is the seconds of a hand-over, 0 without one."""

    parts: tuple[Part, ...]
    transfer: float = 0.0

    @property
    def usd_per_hour(self) -> float:
        return sum(part.usd_per_hour for part in self.parts)

    @property
    def cost(self) -> float:
        return sum(part.cost for part in self.parts)

    @property
    def watts(self) -> float:
        return sum(part.watts for part in self.parts)

    @property
    def first(self) -> float:
        return sum(part.estimate.first for part in self.parts) + self.transfer

    @property
    def between(self) -> float:
        return max(part.estimate.between for part in self.parts)

    @property
    def busy(self) -> float:
        return max(part.estimate.busy for part in self.parts)

    @property
    def order(self) -> tuple[object, ...]:
        """Cheapest first; then what draws less, has fewer devices, is faster, and for good measure by name."""
        devices = sum(part.replicas * part.option.devices for part in self.parts)
        names = tuple((part.option.kind.name, part.option.cut.tensor, part.replicas) for part in self.parts)
        return (self.usd_per_hour, self.watts, devices, self.first + self.between, names)

    def meets(self, goal: Goal) -> bool:
        return self.over(goal) <= 1.0

    def over(self, goal: Goal) -> float:
        """How many times as much as wanted the worst of latencies and of use is; at most 1 if all is as wanted."""
        latencies = ((self.first, goal.first), (self.between, goal.between))
        return max([self.busy / MOST_BUSY, *(each / wanted for each, wanted in latencies if each < inf)])


class Weighing:
    """All ways to run all pools of a model, against one goal."""

    __slots__ = ("_fewest", "_parts", "_pools", "goal")

    def __init__(self, pools: Sequence[Candidates], goal: Goal) -> None:
        """``pools`` is one that serves, or one for prompts and one that decodes."""
        self._pools = {pool.pool.role: pool for pool in pools}
        self._fewest: dict[int, int | None] = {}
        self._parts: dict[tuple[int, int], Part] = {}
        self.goal = goal

    def best(self, option: Option | None = None) -> Plan | None:
        """The cheapest that meets the goal, with this option if one is given; None if none does."""
        best: Plan | None = None
        ways = [way for way in self._ways() if option is None or option in way]
        for cost, options in sorted(((self._floor(way), way) for way in ways), key=lambda each: each[0]):
            if cost == inf or (best is not None and cost > best.cost * (1 + ROUNDING)):
                break
            plan = self.plan(options)
            if plan is not None and (best is None or plan.order < best.order):
                best = plan
        return best

    def nearest(self) -> Plan | None:
        """Of all that fit, what comes closest to the goal; None if nothing fits."""
        plans = [plan for way in self._ways() if (plan := self.stable(way))]
        return min(plans, key=lambda each: (each.busy >= 1, _rank(each.over(self.goal)), each.order), default=None)

    def plan(self, options: tuple[Option, ...]) -> Plan | None:
        """The cheapest numbers of replicas of these that meet the goal; None if none do."""
        if len(options) == 2:
            return self._pair(*options)
        replicas = self.fewest(options[0])
        return Plan((self.part(options[0], replicas),)) if replicas else None

    def stable(self, options: tuple[Option, ...]) -> Plan | None:
        """As many replicas of these as are not too busy, or all that there may be; None without room for any."""
        parts = []
        for option in options:
            replicas = self.counts(option)
            if not replicas:
                return None
            fewest = least(partial(self._calm, option), replicas[0], replicas[-1])
            parts.append(self.part(option, fewest or replicas[-1]))
        return self._joined(*parts) or self._shared(options)

    def _shared(self, options: tuple[Option, ...]) -> Plan | None:
        """Replicas for as much of the load as the devices of one kind do for both pools, and be it none; None if they
        aren't enough for the fewest."""
        found = self._joined(*(self.part(option, self.counts(option)[0]) for option in options))
        low, high = 0.0, self.goal.rate
        for _ in range(SHARE_HALVINGS if found else 0):
            parts = []
            for option in options:
                counts = self.counts(option)
                wanted = least(partial(self._does, option, low + high), counts[0], counts[-1])
                parts.append(self.part(option, wanted or counts[-1]))
            plan = self._joined(*parts)
            found = plan or found
            low, high = ((low + high) / 2.0, high) if plan else (low, (low + high) / 2.0)
        return found

    def counts(self, option: Option) -> range:
        """How many replicas there may be."""
        return self._pools[option.role].replicas(option)

    def fewest(self, option: Option) -> int | None:
        """The fewest replicas that meet the goals as far as they are the pool's own; None if no number does."""
        key = id(option)
        if key not in self._fewest:
            replicas = self.counts(option)
            meets = partial(self._meets, option, self.goal.first)
            self._fewest[key] = least(meets, replicas[0], replicas[-1]) if replicas else None
        return self._fewest[key]

    def part(self, option: Option, replicas: int) -> Part:
        key = (id(option), replicas)
        if key not in self._parts:
            self._parts[key] = Part(option, replicas, option.at(self.goal.rate / replicas))
        return self._parts[key]

    def _ways(self) -> Iterator[tuple[Option, ...]]:
        """In the order of roles: the one that serves, or prompts before decoding."""
        order = (Role.SERVE,) if Role.SERVE in self._pools else (Role.PREFILL, Role.DECODE)
        return (way for way in product(*(self._pools[role].options for role in order)) if not apart(way))

    def _floor(self, options: tuple[Option, ...]) -> float:
        """What these cost at least, by the hour; inf if one of them can't meet its own goals with any number."""
        return sum((self.fewest(option) or inf) * option.cost for option in options)

    def _meets(self, option: Option, first: float, replicas: int) -> bool:
        estimate = self.part(option, replicas).estimate
        return estimate.busy <= MOST_BUSY and estimate.first <= first and estimate.between <= self.goal.between

    def _does(self, option: Option, twice: float, replicas: int) -> bool:
        """Whether so many do half of that rate."""
        return option.at(twice / 2.0 / replicas).busy <= MOST_BUSY

    def _calm(self, option: Option, replicas: int) -> bool:
        return self.part(option, replicas).estimate.busy <= MOST_BUSY

    def _pair(self, prefill: Option, decode: Option) -> Plan | None:
        if self.fewest(prefill) is None:
            return None
        best: Plan | None = None
        left = self.goal.first - transfer(prefill, decode)
        idle = self._prompts(prefill, left - decode.at(0.0).first)
        for prompts, count in self._trades(prefill, decode, left, idle):
            # However many decode, no fewer prefill replicas will do than beside idle ones.
            floor = (idle or 0) * prefill.cost + (count + 1) * decode.cost
            plan = self._joined(self.part(prefill, prompts), self.part(decode, count))
            if plan is not None and (best is None or plan.order < best.order):
                best = plan
            if best is not None and floor > best.cost * (1 + ROUNDING):
                break
        return best

    def _trades(self, prefill: Option, decode: Option, left: float, idle: int | None) -> Iterator[tuple[int, int]]:
        """Replicas of both that meet the goal, from the fewest that decode on, as more of them shorten the first step
        and so may save prefill replicas."""
        prompts, count = MOST_REPLICAS + 1, self.fewest(decode)
        while idle is not None and count is not None and prompts > idle:
            saves = partial(self._saves, prefill, decode, left, prompts)
            count = least(saves, count, self.counts(decode)[-1])
            if count is not None:
                prompts = self._prompts(prefill, left - self.part(decode, count).estimate.first) or idle
                yield prompts, count
                count += 1

    def _saves(self, prefill: Option, decode: Option, left: float, prompts: int, count: int) -> bool:
        """Whether beside so many decode replicas fewer than ``prompts`` are enough."""
        needed = self._prompts(prefill, left - self.part(decode, count).estimate.first)
        return needed is not None and needed < prompts

    def _prompts(self, prefill: Option, first: float) -> int | None:
        """The fewest prefill replicas that leave a first token so many seconds."""
        return least(partial(self._meets, prefill, first), self.fewest(prefill) or 1, self.counts(prefill)[-1])

    def _joined(self, *parts: Part) -> Plan | None:
        """A plan of these; None if there aren't devices for all of them."""
        if len(parts) == 1:
            return Plan(parts)
        first, second = parts
        if first.option.kind.name == second.option.kind.name:
            stock = self._pools[first.option.role].stock[first.option.kind.name]
            if not together(stock, [(part.option, part.replicas) for part in parts]):
                return None
        return Plan(parts, transfer(first.option, second.option))


def without_load(options: Sequence[Option]) -> Plan:
    """One replica of each and a single request: what no number of replicas is faster than."""
    parts = tuple(Part(option, 1, option.at(0.0)) for option in options)
    return Plan(parts, transfer(*options) if len(options) == 2 else 0.0)


def apart(options: Sequence[Option]) -> Unlike | None:
    """Why these, in any order, can't hand KV over to each other; None if they can, or it is one that serves."""
    halves = {option.role: Half(option.kind.kind, *option.cut.sizes, option.kind.maker) for option in options}
    return unlike(halves[Role.PREFILL], halves[Role.DECODE]) if len(halves) == 2 else None


def _rank(over: float) -> int:
    """A tenth nearer to what can't be had is worth no money."""
    return ceil(log(over) / log(1.1)) if over > 1 else 0


def transfer(prefill: Option, decode: Option) -> float:
    return transfer_seconds(max(prefill.handed, decode.handed), prefill.roofline, decode.roofline)
