"""What tests of choosing have in common: a spec with everything left open, and what is chosen for it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.planning.choices import Choice, Loser, NoChoice, Stock
from orchestrator.core.planning.choosing import choose
from orchestrator.core.planning.devices import DeviceKind, Precision
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.spec import AUTO, Device, LoadSpec, ModelSpec, PoolSpec, Role, SloSpec
from orchestrator.planning.catalogue import builtin
from tests.planning.models import Config

CATALOGUE = builtin()
ANYTHING = tuple(Stock(kind) for kind in CATALOGUE)
LOAD = LoadSpec(20, 2000, 300, 0.5)
SLO = SloSpec(500, 40)
SERVE, BOTH = (Role.SERVE,), (Role.PREFILL, Role.DECODE)
SHORT = Settings(max_model_len=8192)
CPU = DeviceKind("this-cpu", "", Device.CPU, 24 << 30, 24e9, {Precision.FP32: 1e11}, 12e9, "memory", 1.25e9, 0.1, 10.0)


def stock(name: str, *nodes: int) -> Stock:
    return Stock(CATALOGUE.find(name), nodes or None)


def pool(role: Role, **fields: object) -> PoolSpec:
    counts = {"replicas": AUTO, "tensor_parallel": AUTO, "pipeline_parallel": AUTO, "device": Device.GPU}
    return PoolSpec(role, **counts | fields)  # type: ignore[arg-type]


def outcome(
    config: Config,
    roles: Sequence[Role | PoolSpec] = BOTH,
    load: LoadSpec | None = LOAD,
    slo: SloSpec | None = SLO,
    there: Sequence[Stock] = ANYTHING,
    wanted: Settings = SHORT,
) -> Choice | NoChoice:
    pools = [each if isinstance(each, PoolSpec) else pool(each) for each in roles]
    model = ModelSpec("m", "m", {each.role: each for each in pools}, slo=slo, load=load)
    return choose(model, shape_of(config), there, {each.role: wanted for each in pools})


def chosen(*args: object, **fields: object) -> Choice:
    found = outcome(*args, **fields)  # type: ignore[arg-type]
    assert isinstance(found, Choice), str(found)
    return found


def loser(choice: Choice | NoChoice, device: str, tensor: int | None = None, role: Role | None = None) -> Loser:
    found = [
        each
        for each in choice.losers
        if each.device == device and tensor in (None, each.tensor_parallel) and role in (None, each.role)
    ]
    assert found, choice.losers
    return found[0]
