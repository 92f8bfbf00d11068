"""How many devices of which kind a model needs for its load, and how it is cut over them: the cheapest plan that does.

What the spec fixes is kept and judged; what it leaves open (AUTO counts, kinds of devices) is chosen:

- with goals and a load: the cheapest by the hour that meets the goals at the load;
- without goals: the cheapest that keeps up, at most ``serving.MOST_BUSY`` busy;
- without a load: the cheapest that fits with one replica a pool, and meets the goals for a single request.

Prefill and decode pools are chosen each for itself, on different devices where that is cheaper; the hand-over between
them counts into the time to the first token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import inf

from orchestrator.core.planning.candidates import Candidates, Refused, allowed
from orchestrator.core.planning.choices import Choice, Loser, NoChoice, PoolChoice, Stock
from orchestrator.core.planning.cut import Cut
from orchestrator.core.planning.hand_over import Half, unlike
from orchestrator.core.planning.losing import losers, misses
from orchestrator.core.planning.serving import Demand, demand_of
from orchestrator.core.planning.settings import Settings, cut_of
from orchestrator.core.planning.shape import ModelShape
from orchestrator.core.planning.weighing import Goal, Part, Plan, Weighing, apart
from orchestrator.core.spec import LoadSpec, ModelSpec, PoolSpec, Role

# A request's size where the spec has no load: a page of prompt, a paragraph of answer; less for models of less context.
USUAL_PROMPT, USUAL_OUTPUT = 1024, 128
ORDER = (Role.SERVE, Role.PREFILL, Role.DECODE)
MOST_CHANGES = 2  # that would do and are told
MOST_UNLIKE = 4  # ways in which halves differ that are told
SECONDS, MILLION = 3600.0, 1e6


def choose(
    model: ModelSpec, shape: ModelShape, stock: Sequence[Stock], settings: Mapping[Role, Settings]
) -> Choice | NoChoice:
    """The cheapest plan for a model on these devices.

    ``settings`` has what the engines of each pool are started with. Equal arguments give equal plans.
    ConfigError if a device has no rate for the model's numbers.
    """
    load = model.load or _usual(shape, settings)
    pools = _ways(model, shape, stock, settings, demand_of(load))
    reasons = [reason for pool in pools for reason in _impossible(pool, stock)]
    if reasons:
        return NoChoice(tuple(reasons), tuple(_refusals(pools)))
    slo = model.slo
    goal = Goal(_seconds(slo.ttft_ms if slo else None), _seconds(slo.itl_ms if slo else None), load.requests_per_second)
    weighing = Weighing(pools, goal)
    plan = weighing.best() or weighing.nearest()
    if plan is None:
        return NoChoice(_apart(pools) or _too_few(pools), tuple(_refusals(pools)))
    lost = tuple(loser for pool in pools for loser in losers(pool, weighing, plan))
    return _choice(plan, goal, load, model.load is None, lost)


def _ways(
    model: ModelSpec, shape: ModelShape, stock: Sequence[Stock], settings: Mapping[Role, Settings], demand: Demand
) -> list[Candidates]:
    """For each pool. Halves have as many stages each, so one that leaves them open takes the other's."""
    found = []
    for pool in (model.pools[role] for role in ORDER if role in model.pools):
        other = next((each for each in model.pools.values() if each is not pool), pool)
        stages = pool.pipeline_parallel or other.pipeline_parallel
        wanted, cut = replace(pool, pipeline_parallel=stages), _own_cut(model, pool)
        found.append(Candidates(wanted, shape, stock, settings[pool.role], cut, demand, other.tensor_parallel))
    return found


def _usual(shape: ModelShape, settings: Mapping[Role, Settings]) -> LoadSpec:
    length = min(each.length(shape) for each in settings.values())
    prompt = max(1, min(USUAL_PROMPT, length // 2))
    return LoadSpec(0.0, prompt, max(1, min(USUAL_OUTPUT, length - prompt)))


def _own_cut(model: ModelSpec, pool: PoolSpec) -> Cut:
    """Data and expert parallelism, which are engine arguments; the planner leaves them as they are."""
    return cut_of({**model.engine, **pool.engine}, f"models.{model.name}.{pool.role}.engine")


def _seconds(milliseconds: float | None) -> float:
    return inf if milliseconds is None else milliseconds / 1e3


def _impossible(pool: Candidates, stock: Sequence[Stock]) -> list[str]:
    """Why a pool can't be run at all; empty if it can."""
    if pool.options:
        return []
    spec = pool.pool
    if not allowed(spec, stock):
        wanted = " or ".join(spec.gpu) or f"a {spec.device.upper()}"
        there = ", ".join(each.kind.name for each in stock) or "nothing"
        return [f"the {spec.role} pool needs {wanted}, there is {there}"]
    # One line a kind: the last is the widest cut, which comes nearest.
    last = {each.device: each for each in pool.refused}
    return [f"{spec.role} on {device} with {each.cut}: {each.why}{_instead(each)}" for device, each in last.items()]


def _instead(refused: Refused) -> str:
    words = [f"with {change}" for change in refused.changes[:MOST_CHANGES]]
    return f"; it would fit {', or '.join(words)}" if words else ""


def _refusals(pools: Sequence[Candidates]) -> list[Loser]:
    return [
        Loser(each.role, each.device, each.cut.tensor, each.cut.pipeline, each.why)
        for pool in pools
        for each in {(each.device, each.cut.pipeline): each for each in pool.refused}.values()
    ]


def _apart(pools: Sequence[Candidates]) -> tuple[str, ...]:
    """Why no way to run one half can hand over to a way to run the other; empty if some can."""
    if len(pools) < 2:
        return ()
    prefill, decode = (_half(pool) for pool in pools)
    fixed = unlike(prefill, decode)
    if fixed:
        return (str(fixed),)
    found = [apart(ways) for ways in product(*(pool.options for pool in pools))]
    return tuple(dict.fromkeys(map(str, found)))[:MOST_UNLIKE] if all(found) else ()


def _half(pool: Candidates) -> Half:
    """As far as it is the same for all ways."""
    makers = {option.kind.maker for option in pool.options}
    spec = pool.pool
    return Half(spec.device, spec.tensor_parallel, spec.pipeline_parallel, max(makers) if len(makers) == 1 else "")


def _too_few(pools: Sequence[Candidates]) -> tuple[str, ...]:
    """What the pools take at least, where there aren't enough devices for all of them."""
    found, free = [], dict[str, Stock]()
    for pool in pools:
        smallest: dict[str, float] = {}
        for option in pool.options:
            name, size = option.kind.name, option.devices * option.share
            smallest[name] = min(size, smallest.get(name, size))
            free[name] = pool.stock[name]
        takes = " or ".join(f"{max(1, pool.pool.replicas)} x {size:g} {name}" for name, size in smallest.items())
        found.append(f"the {pool.pool.role} pool takes at least {takes}")
    there = ", ".join(map(str, free.values()))
    return (f"{', '.join(found)}; free are {there}",)


def _choice(plan: Plan, goal: Goal, load: LoadSpec, assumed: bool, lost: tuple[Loser, ...]) -> Choice:
    most = min(part.replicas * part.option.most for part in plan.parts)
    rate = most if assumed else goal.rate / max(1.0, plan.busy)
    tokens = rate * (load.prompt_tokens + load.output_tokens) * SECONDS / MILLION
    return Choice(
        pools=tuple(_pool(part, plan, rate) for part in plan.parts),
        load=load,
        assumed=assumed,
        ttft_ms=_milliseconds(plan.first),
        itl_ms=_milliseconds(plan.between),
        requests_per_second=rate,
        most_requests_per_second=most,
        usd_per_hour=plan.usd_per_hour,
        watts=plan.watts,
        usd_per_million_tokens=plan.usd_per_hour / tokens if tokens else None,
        wh_per_million_tokens=plan.watts / tokens if tokens else None,
        misses=tuple(misses(plan, goal)),
        losers=lost,
    )


def _pool(part: Part, plan: Plan, rate: float) -> PoolChoice:
    option, estimate = part.option, part.estimate
    prefill, decode = option.role is Role.PREFILL, option.role is Role.DECODE
    return PoolChoice(
        role=option.role,
        device=option.kind,
        tensor_parallel=option.cut.tensor,
        pipeline_parallel=option.cut.pipeline,
        share=option.share,
        replicas=part.replicas,
        fit=option.fit,
        ttft_ms=_milliseconds(estimate.first + plan.transfer * decode),
        itl_ms=None if prefill else _milliseconds(estimate.between),
        tokens_per_second=rate * (option.demand.prompt if prefill else option.demand.output),
        batch=estimate.batch,
        busy=estimate.busy,
        usd_per_hour=part.usd_per_hour,
        watts=part.watts,
    )


def _milliseconds(seconds: float) -> float | None:
    return None if seconds == inf else 1e3 * seconds
