"""A cluster's actors and reservations in Ray, and the only place that names the worker and gateway actors' classes.

Actors and placement groups are detached and named (``ports.actor_name``), in one Ray namespace: they outlive the
controller, and another one can find them. Ray restarts none of them; that is the controller's to decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util import list_named_actors
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from orchestrator.controller import ray_hosts, ray_memory
from orchestrator.controller.ports import ActorLost, ActorPort, Memory, Order, belongs, name_of
from orchestrator.controller.ray_tether import tethered
from orchestrator.controller.resources import Footprint, footprint, why_waiting
from orchestrator.core.errors import ClusterUnreachable, ProtocolError, SegueError, WorkerStartFailed
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.types import ActorSnapshot, GatewayAssignment, WorkerAssignment

NAMESPACE = "segue"
T = TypeVar("T")

_GONE = 20.0  # seconds until what was killed must be out of Ray's tables
_POLL = (0.02, 1.0)  # first and longest pause between two looks at a placement group
_LACKS = ("NO_RESOURCES", "INFEASIBLE")
_FINISH = 30.0  # seconds for a call in a thread to end after its task was cancelled


def worker_class() -> type:
    """The class behind every worker actor; imported late, as it is needed only where actors are made."""
    from workers.actor import WorkerActor

    return WorkerActor


def gateway_class() -> type:
    """The class behind every gateway actor."""
    from orchestrator.gateway.process import GatewayProcess

    return GatewayProcess


@dataclass(slots=True)
class RayCluster:
    """``ClusterPort`` over Ray. It can travel to the controller's process as long as it holds nothing yet."""

    name: str
    worker: Callable[[], type] = worker_class
    gateway: Callable[[], type] = gateway_class
    _groups: dict[str, PlacementGroup] = field(default_factory=dict)
    _claim: tuple[int, str] | None = None  # the term that is ours, and what shows it

    async def reserve(self, order: Order, tell: Callable[[str], None]) -> None:
        if isinstance(order, GatewayAssignment):
            return  # it books nothing: it must be where the configuration says that clients find it
        need, name = footprint(order), name_of(order)
        group = await self._if_newest(lambda: _group(need, name))
        self._groups[name] = group
        pause, longest = _POLL
        while True:
            row = await _in_thread(lambda: placement_group_table(group))
            if row["state"] == "CREATED":
                return
            if row["state"] == "REMOVED":
                raise WorkerStartFailed("its placement group was removed", where=name)
            lack = row["stats"]["scheduling_state"]
            if pause >= longest and lack in _LACKS:  # else Ray has not come to it yet
                nodes = await _in_thread(ray_hosts.machines)
                tell(why_waiting(need, nodes, infeasible=lack == "INFEASIBLE"))
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def create(self, order: Order) -> ActorPort:
        name = name_of(order)
        handle = await self._if_newest(lambda: self._create(order, name))
        return _RayActor(handle, name, self._term)

    async def attach(self, name: str) -> ActorPort | None:
        handle = await _in_thread(lambda: find(name))
        return None if handle is None else _RayActor(handle, name, self._term)

    async def remove(self, name: str) -> None:
        await self._if_newest(lambda: remove(name))
        self._groups.pop(name, None)

    async def names(self) -> frozenset[str]:
        return await _in_thread(lambda: frozenset(names(self.name)))

    async def topology(self) -> Topology:
        return await _in_thread(lambda: ray_hosts.topology(self.name))

    @property
    def _term(self) -> int | None:
        return self._claim[0] if self._claim else None

    async def claim(self) -> int:
        self._claim = await _in_thread(lambda: ray_memory.claim(self.name))
        return self._claim[0]

    async def remember(self, memory: Memory, term: int) -> None:
        token = self._claim[1] if self._claim and self._claim[0] == term else ""
        await _in_thread(lambda: ray_memory.remember(self.name, memory, term, token))

    async def recall(self) -> Memory | None:
        return await _in_thread(lambda: ray_memory.recall(self.name))

    async def forget(self) -> None:
        await _in_thread(lambda: ray_memory.forget(self.name))

    def restarted(self) -> bool:
        """Whether this process stands in for one that Ray lost."""
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)

    async def ages(self) -> list[float]:
        """How many seconds ago each of the last terms was claimed."""
        return await _in_thread(lambda: ray_memory.ages(self.name))

    def resign(self) -> None:
        """Ends this process, and has Ray not restart it."""
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    def identity(self) -> str:
        """Of this cluster on this Ray: the same for every controller of it, and another one on any other Ray."""
        return f"{self.name}@{ray.get_runtime_context().get_session_name()}"

    async def _if_newest(self, act: Callable[[], T]) -> T:
        """Ray itself knows no terms: what only it carries out is held to ours here, just before."""
        held = self._claim

        def acting() -> T:
            if held is not None:
                ray_memory.require_newest(self.name, *held)
            return act()

        return await _in_thread(acting)

    def _create(self, order: Order, name: str) -> ActorHandle[Any]:
        options: dict[str, Any] = {"num_cpus": 0}
        if isinstance(order, WorkerAssignment):
            actor = self.worker()
            options["num_gpus"] = footprint(order).actor_gpus
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._groups[name], 0, True)
        else:
            actor = self.gateway()
            options["scheduling_strategy"] = here()
        handle: ActorHandle[Any] = detached(actor, name, options).remote(order)
        return handle


class _RayActor:
    """``ActorPort`` over an actor's handle; Ray's errors become ours."""

    def __init__(self, handle: ActorHandle[Any], name: str, term: int | None) -> None:
        self._handle = handle
        self._name = name
        self._term = term

    async def start(self) -> None:
        await self._call("start", self._term)

    async def snapshot(self) -> ActorSnapshot:
        word = await self._call("snapshot", self._term)
        if not isinstance(word, ActorSnapshot):
            raise ProtocolError(f"its account is a {type(word).__name__}", where=self._name)
        return word

    async def drain(self, seconds: float) -> None:
        await self._call("drain", seconds, self._term)

    async def stop(self) -> None:
        await self._call("stop", self._term)

    async def wait_closed(self) -> None:
        await self._call("wait_closed")

    async def _call(self, method: str, *args: object) -> object:
        try:
            return await getattr(self._handle, method).remote(*args)
        except RayError as error:
            raise ours(error, self._name) from None


def names(cluster: str) -> set[str]:
    """Every actor and placement group that the cluster has in Ray now."""
    actors = {row["name"] for row in list_named_actors(all_namespaces=True) if row["namespace"] == NAMESPACE}
    groups = {row["name"] for row in placement_group_table().values() if row["state"] != "REMOVED"}
    return {name for name in actors | groups if belongs(name, cluster)}


def remove(name: str) -> None:
    """Kills the actor and removes the placement group of that name; returns when Ray knows neither any more."""
    handle = find(name)
    if handle is not None:
        ray.kill(handle, no_restart=True)
    deadline = time.monotonic() + _GONE
    while True:
        groups = _groups(name)
        for group in groups:
            remove_placement_group(group)
        if find(name) is None and not groups:
            return
        if time.monotonic() > deadline:
            raise SegueError(f"still there {_GONE:g} s after it was killed", where=name)
        time.sleep(_POLL[0])


def _group(need: Footprint, name: str) -> PlacementGroup:
    selectors = [dict(selector) for selector in need.selectors] or None
    bundles = [dict(bundle) for bundle in need.bundles]
    group: PlacementGroup = placement_group(bundles, need.strategy, name, "detached", bundle_label_selector=selectors)
    return group


def find(name: str) -> ActorHandle[Any] | None:
    """Whatever actor of ours has that whole name."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def _groups(name: str) -> list[PlacementGroup]:
    table = placement_group_table()
    ids = [key for key, row in table.items() if row["name"] == name and row["state"] != "REMOVED"]
    return [PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))) for group_id in ids]


def detached(actor: type, name: str, options: dict[str, Any]) -> Any:
    """The class as one of which Ray makes an actor of that name that outlives us; ``options`` are Ray's."""
    lasting = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": 0, "max_task_retries": 0}
    return ray.remote(tethered(actor)).options(**(lasting | options))


def here() -> NodeAffinitySchedulingStrategy:
    """On this node or nowhere."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def ours(error: Exception, where: str) -> SegueError:
    """A Ray error as one of ours: what the actor raised, or that it is gone and what Ray knows of that."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, SegueError):
            return cause
        return WorkerStartFailed(f"{type(cause).__name__}: {cause}", where=where)
    if isinstance(error, GetTimeoutError):
        return ClusterUnreachable("it did not answer in time", where=where)
    return ActorLost(_last_words(error), where=where, hint="its log may tell more")


def _last_words(error: Exception) -> str:
    """What Ray knows of a death, without its advice; the last line names the cause: a constructor's error, an exit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = lines[-1] if lines else type(error).__name__
    words = words.rpartition("Worker exit detail: ")[2].partition(" Some common causes")[0].removesuffix(".")
    return f"its process is gone: {words}"


async def _in_thread(call: Callable[[], T]) -> T:
    """A blocking Ray call. If the task is cancelled the call still ends first, so nothing is made behind its back."""
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=_FINISH)
        raise
