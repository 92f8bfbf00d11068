"""A whole configuration's plan: what each model needs, whether that is there, and where each replica goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from orchestrator.core.planning.buying import place_or_buy
from orchestrator.core.planning.choices import Choice, NoChoice, Stock
from orchestrator.core.planning.choosing import choose
from orchestrator.core.planning.crowding import crowded
from orchestrator.core.planning.cut import Cut
from orchestrator.core.planning.devices import Catalogue
from orchestrator.core.planning.gangs import gangs_on
from orchestrator.core.planning.kinds import check_kinds, sparing
from orchestrator.core.planning.kv import token_bytes
from orchestrator.core.planning.moves import Moves, moves
from orchestrator.core.planning.places import WHOLE, Gang, Node, Placed, Placement, Unplaced, domains, parts_of
from orchestrator.core.planning.placing import place
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape import ModelShape
from orchestrator.core.planning.weights import parameters, stage_weights
from orchestrator.core.spec import ClusterSpec, Device, ModelSpec, Role


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a model before it is planned: its shape, and what the engines of its pools are started with."""

    shape: ModelShape
    settings: Mapping[Role, Settings]


@dataclass(frozen=True, slots=True)
class Inventory:
    """Nodes, and the kinds of their devices. ``buys``: besides them, any number of GPUs of any kind can be had."""

    nodes: tuple[Node, ...]
    catalogue: Catalogue
    buys: bool = False


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model's part. Bytes are of the whole model, as its engines keep it."""

    name: str
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    choice: Choice | NoChoice


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """``nodes`` are those of the inventory, and those that have to be bought for it (``bought``).

    ``spec`` is the configuration with all that it left open filled in, as far as there is a choice. ``skipped`` are
    models without weights. ``reasons`` keep it from being started; ``misses`` are goals that it is predicted not to
    reach. Where there is neither it fits.
    """

    spec: ClusterSpec
    models: tuple[ModelPlan, ...]
    nodes: tuple[Node, ...]
    bought: tuple[Node, ...]
    gangs: tuple[Gang, ...]
    placement: Placement
    moves: Moves
    skipped: tuple[str, ...]
    reasons: tuple[str, ...]
    misses: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not (self.reasons or self.misses)


def cpu_parts(models: Iterable[ModelSpec]) -> int:
    """Into how many equal parts a machine's CPU goes: one for each device that pools on CPUs ask for; of sizes and
    counts that are open, one."""
    pools = [pool for model in models for pool in model.pools.values() if pool.device is Device.CPU]
    counts = [(pool.replicas, pool.tensor_parallel, pool.pipeline_parallel) for pool in pools]
    return sum(prod(max(1, count) for count in each) for each in counts)


def plan(
    spec: ClusterSpec, asked: Mapping[str, Asked], inventory: Inventory, kept: Iterable[Placed] = ()
) -> ClusterPlan:
    """Chooses for one model after the other from what those before it left, and places all of them together.

    Models that then lack something come first in another round, and at last others keep off the kinds of GPU that they
    are bound to: what those before them took may do elsewhere.
    ``asked`` has the models to plan, by name; others are passed over. ``kept`` is where replicas are now.

    Raises:
        ConfigError: a device has no rate for a model's numbers, an inventory contradicts itself, or a pool names a kind
            of GPU that nobody knows.
    """
    check_kinds(spec, inventory.catalogue)
    kept = tuple(kept)
    turns = [model.name for model in spec.models if model.name in asked]
    best = _in_turn(turns, spec, asked, inventory, kept)
    lacking = _lacking(best)
    tried = {tuple(turns)}
    while lacking and turns[0] not in lacking:  # what comes first has all there is
        turns = sorted(turns, key=lambda name: name not in lacking)
        if tuple(turns) in tried:
            break
        tried.add(tuple(turns))
        found = _in_turn(turns, spec, asked, inventory, kept)
        lacking = _lacking(found)
        best = min(best, found, key=lambda each: len(_lacking(each)))
    picky = _lacking(best)
    spared = sparing(spec, picky, inventory.nodes, inventory.catalogue)
    if picky and spared != spec:
        found = _in_turn(sorted(turns, key=lambda name: name not in picky), spared, asked, inventory, kept)
        best = min(best, found, key=lambda each: len(_lacking(each)))
    return best


def _lacking(found: ClusterPlan) -> set[str]:
    """The models that can't be run, can't be placed or miss something."""
    models = {gang.gang_id: gang.model for gang in found.gangs}
    wrong = {each.name for each in found.models if isinstance(each.choice, NoChoice) or each.choice.misses}
    return wrong | {models[left.gang_id] for left in found.placement.unplaced}


def _in_turn(
    turns: Sequence[str],
    spec: ClusterSpec,
    asked: Mapping[str, Asked],
    inventory: Inventory,
    kept: Sequence[Placed],
) -> ClusterPlan:
    """The plan where models have their choice in this order."""
    planned: dict[str, ModelPlan] = {}
    placement = Placement(())
    gangs: tuple[Gang, ...] = ()
    bought: tuple[Node, ...] = ()
    for name in turns:
        one = planned[name] = _model(spec.model(name), asked[name], _stock(inventory, gangs, placement))
        if isinstance(one.choice, Choice):
            spec = replace(spec, models=tuple(_filled(each, one) for each in spec.models))
            gangs = _gangs(spec, planned)
            bought, placement = _placed(gangs, inventory, kept)
    models = [planned[model.name] for model in spec.models if model.name in planned]
    return ClusterPlan(
        spec=spec,
        models=tuple(models),
        nodes=(*inventory.nodes, *bought),
        bought=bought,
        gangs=gangs,
        placement=placement,
        moves=moves(kept, placement.placed),
        skipped=tuple(model.name for model in spec.models if model.name not in asked),
        reasons=(*_reasons(models, placement), *_crowded(models, gangs, placement, inventory.nodes)),
        misses=tuple(_misses(models)),
    )


def _model(model: ModelSpec, asked: Asked, stock: Sequence[Stock]) -> ModelPlan:
    shape = asked.shape
    settings = next(iter(asked.settings.values()))
    return ModelPlan(
        name=model.name,
        parameters=parameters(shape),
        weight_bytes=sum(stage_weights(shape, Cut(), settings.weights_kept(shape))),
        kv_bytes_per_token=token_bytes(shape, settings.cache_kept(shape)),
        choice=choose(model, shape, stock, asked.settings),
    )


def _stock(inventory: Inventory, gangs: Sequence[Gang], placement: Placement) -> list[Stock]:
    """Each kind of device, with what these gangs leave of it a node, or an NVLink domain of one that is split."""
    used = _used(gangs, placement)
    there: dict[str, tuple[list[int], list[int]]] = {}
    split: set[str] = set()
    for node in inventory.nodes:
        free, left = there.setdefault(node.device, ([], []))
        islands = domains(node)
        if len(islands) > 1:
            split.add(node.device)
        for domain in islands:
            parts = [WHOLE - used[node.name, device] for device in domain]
            free.append(parts.count(WHOLE))
            left += [part for part in parts if 0 < part < WHOLE]
    stock = [
        Stock(inventory.catalogue.find(kind), tuple(free), tuple(left), kind in split)
        for kind, (free, left) in there.items()
    ]
    if inventory.buys:
        gpus = (kind for kind in inventory.catalogue if kind.kind is Device.GPU and kind.name not in there)
        stock += [Stock(kind) for kind in gpus]
    return stock


def _used(gangs: Sequence[Gang], placement: Placement) -> Counter[tuple[str, int]]:
    """Ten-thousandths of each device that are taken."""
    shares = {gang.gang_id: parts_of(gang.share) for gang in gangs}
    used: Counter[tuple[str, int]] = Counter()
    for placed in placement.placed:
        for node, devices in placed.stages:
            for device in devices:
                used[node, device] += shares.get(placed.gang_id, WHOLE)
    return used


def _filled(model: ModelSpec, planned: ModelPlan) -> ModelSpec:
    if model.name != planned.name or not isinstance(planned.choice, Choice):
        return model
    pools = {
        pool.role: replace(
            model.pools[pool.role],
            replicas=pool.replicas,
            tensor_parallel=pool.tensor_parallel,
            pipeline_parallel=pool.pipeline_parallel,
            gpu=(pool.device.name,) if pool.device.kind is Device.GPU else (),
        )
        for pool in planned.choice.pools
    }
    return replace(model, pools={role: pools[role] for role in model.pools})


def _gangs(spec: ClusterSpec, planned: Mapping[str, ModelPlan]) -> tuple[Gang, ...]:
    chosen = [(name, one.choice) for name, one in planned.items() if isinstance(one.choice, Choice)]
    return gangs_on(spec, {(name, pool.role): (pool.device.name,) for name, choice in chosen for pool in choice.pools})


def _placed(gangs: Sequence[Gang], inventory: Inventory, kept: Sequence[Placed]) -> tuple[tuple[Node, ...], Placement]:
    """What has to be bought, and where they go."""
    if inventory.buys:
        return place_or_buy(gangs, inventory.nodes, inventory.catalogue, kept)
    return (), place(gangs, inventory.nodes, kept)


def _reasons(models: Sequence[ModelPlan], placement: Placement) -> list[str]:
    found = [
        f"{model.name}: {reason}"
        for model in models
        if isinstance(model.choice, NoChoice)
        for reason in model.choice.reasons
    ]
    return found + [_words(left) for left in placement.unplaced]


def _crowded(
    models: Sequence[ModelPlan], gangs: Sequence[Gang], placement: Placement, nodes: Sequence[Node]
) -> list[str]:
    return crowded({model.name: model.choice for model in models}, gangs, placement, nodes)


def _misses(models: Sequence[ModelPlan]) -> list[str]:
    return [
        f"{model.name}: {miss}" for model in models if isinstance(model.choice, Choice) for miss in model.choice.misses
    ]


def _words(left: Unplaced) -> str:
    return f"{left.gang_id}: " + "; ".join(reason.words for reason in left.reasons)
