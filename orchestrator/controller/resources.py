"""What an order needs of Ray, and why it does not get it yet: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.controller.kinds import ACCELERATOR
from orchestrator.core.spec import Device
from orchestrator.core.types import WorkerAssignment

# Ray counts CPUs by reservation, not by use. A CPU worker books next to nothing, so that a pair of engines fits on a
# laptop; how many cores it may use is the engine's own setting.
CPU_SHARE = 0.01


MOST_NAMED = 8  # nodes in a line for people
NODE_ID = "ray.io/node-id"  # Ray's own label of each node


@dataclass(frozen=True, slots=True)
class Footprint:
    """A placement group's bundles and strategy, and the GPUs that the actor itself takes of the first bundle.

    ``selectors``: the labels that the node of each bundle has to have; empty where any will do.
    """

    bundles: tuple[Mapping[str, float], ...]
    strategy: str
    actor_gpus: float
    selectors: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """A live node and its totals."""

    host_id: str
    name: str
    resources: Mapping[str, float]


def footprint(order: WorkerAssignment) -> Footprint:
    """One bundle a device, stage by stage, on the order's hosts; where it names none all on one node, unless they are
    GPUs of a pipeline, which may cross nodes.

    A lone GPU, or a share of one, belongs to the worker actor. Several belong to vLLM's own actors in the group (its
    Ray executor), one bundle each; where the engine arguments ask for its multiprocessing executor, they are one bundle
    of the worker.
    """
    devices = order.tensor_parallel * order.pipeline_parallel
    crosses = len(set(order.hosts)) > 1
    if order.device is Device.CPU:
        bundles, actor_gpus = ({"CPU": CPU_SHARE},) * devices, 0.0
    elif devices > 1 and order.engine.get("distributed_executor_backend") == "mp":
        bundles, actor_gpus = ({"GPU": float(devices), "CPU": float(devices)},), float(devices)
    elif devices == 1:
        bundles, actor_gpus = ({"GPU": order.share, "CPU": 1.0},), order.share
    else:
        bundles, actor_gpus = ({"GPU": 1.0, "CPU": 1.0},) * devices, 0.0
        crosses = crosses or (order.pipeline_parallel > 1 and not order.hosts)
    return Footprint(bundles, "PACK" if crosses else "STRICT_PACK", actor_gpus, _selectors(order, len(bundles)))


def _selectors(order: WorkerAssignment, bundles: int) -> tuple[Mapping[str, str], ...]:
    """The host of each bundle's stage, or the kinds and labels that any of them may be on."""
    stages = len(order.hosts)
    if stages:
        return tuple({NODE_ID: order.hosts[index * stages // bundles]} for index in range(bundles))
    kinds = {ACCELERATOR: f"in({','.join(order.gpu)})"} if order.gpu else {}
    anywhere = {**kinds, **order.selector}
    return (anywhere,) * bundles if anywhere else ()


def why_waiting(need: Footprint, nodes: Iterable[Machine], *, infeasible: bool) -> str:
    """One line for status. ``nodes``: all that are alive; ``infeasible``: not even an idle cluster holds it."""
    total: dict[str, float] = {}
    for bundle in need.bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    nodes = list(nodes)
    hosts = dict.fromkeys(selector[NODE_ID] for selector in need.selectors if NODE_ID in selector)
    place = "on one node" if need.strategy == "STRICT_PACK" else "in the cluster"
    verdict = "no node has that much" if infeasible else "it is in use by others"
    if hosts:
        names = {node.host_id: node.name for node in nodes}
        place = "on " + ", ".join(names.get(host_id, f"{host_id[:6]} (gone)") for host_id in hosts)
        verdict = "there is not as much" if infeasible else verdict
        nodes = [node for node in nodes if node.host_id in hosts]
    there = [f"{node.name} {_amounts({name: node.resources.get(name, 0) for name in total})}" for node in nodes]
    more = [f"{len(there) - MOST_NAMED} more"] if len(there) > MOST_NAMED else []
    listed = ", ".join([*there[:MOST_NAMED], *more]) or "none"
    return f"waits for {_amounts(total)} {place}: {verdict} (nodes: {listed})"


def _amounts(resources: Mapping[str, float]) -> str:
    return " ".join(f"{name}={amount:g}" for name, amount in sorted(resources.items(), reverse=True))
