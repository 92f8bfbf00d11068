"""What an order needs of Ray, and why it does not get it yet: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.core.spec import Device
from orchestrator.core.types import WorkerAssignment

# Ray counts CPUs by reservation, not by use. A CPU worker books next to nothing, so that a pair of engines fits on a
# laptop; how many cores it may use is the engine's own setting.
CPU_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Footprint:
    """A placement group's bundles and strategy, and the GPUs that the actor itself takes of the first bundle."""

    bundles: tuple[Mapping[str, float], ...]
    strategy: str
    actor_gpus: float


def footprint(order: WorkerAssignment) -> Footprint:
    """One bundle a device, all on one node unless a pipeline may cross nodes.

    A lone GPU, or a share of one, belongs to the worker actor. Several belong to vLLM's own actors in the group (its
    Ray executor), one bundle each; where the engine arguments ask for its multiprocessing executor, they are one bundle
    of the worker.
    """
    devices = order.tensor_parallel * order.pipeline_parallel
    if order.device is Device.CPU:
        strategy = "PACK" if len(set(order.hosts)) > 1 else "STRICT_PACK"
        return Footprint(({"CPU": CPU_SHARE},) * devices, strategy, 0)
    if devices > 1 and order.engine.get("distributed_executor_backend") == "mp":
        return Footprint(({"GPU": devices, "CPU": devices},), "STRICT_PACK", devices)
    if devices == 1:
        return Footprint(({"GPU": order.share, "CPU": 1},), "STRICT_PACK", order.share)
    strategy = "PACK" if order.pipeline_parallel > 1 else "STRICT_PACK"
    return Footprint(({"GPU": 1, "CPU": 1},) * devices, strategy, 0)


def why_waiting(need: Footprint, nodes: Iterable[Mapping[str, float]], *, infeasible: bool) -> str:
    """One line for status. ``nodes``: totals of each live node; ``infeasible``: not even an idle cluster holds it."""
    total: dict[str, float] = {}
    for bundle in need.bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    place = "on one node" if need.strategy == "STRICT_PACK" else "in the cluster"
    nodes = list(nodes)
    there = ", ".join(_amounts({name: node.get(name, 0) for name in total}) for node in nodes) or "none"
    verdict = "no node has that much" if infeasible else "it is in use by others"
    return f"waits for {_amounts(total)} {place}: {verdict} (nodes: {there})"


def _amounts(resources: Mapping[str, float]) -> str:
    return " ".join(f"{name}={amount:g}" for name, amount in sorted(resources.items(), reverse=True))
