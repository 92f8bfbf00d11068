"""Has each worker group have as many pods as the cluster wants now, and ends none on which something is.

Where KubeRay's autoscaler owns the counts nothing is written; pods that are about to end get nothing more there either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import replace
from typing import Protocol

from orchestrator.controller.kube.machines import Machines
from orchestrator.controller.kube.mirror import Mirror
from orchestrator.controller.kube.ports import Kind, KubeConflict, KubeForbidden, KubePort, Object
from orchestrator.controller.kube.ray_objects import (
    address_of,
    groups_of,
    hosts_to_come,
    is_autoscaled,
    patch_of,
    pods_of,
    workers_of,
)
from orchestrator.core.errors import SegueError
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.rollout import Room
from orchestrator.core.worker_groups import Pod, Scaling, Wanted, scaled
from orchestrator.telemetry import logs

log = logs.events("controller.kube")
TICK = 10.0  # seconds between looks when nothing happens
ATTEMPTS = 5  # in a row, where somebody else writes in between
_LONG_GONE = 30.0  # seconds after which KubeRay's own list has no such pod either
_COALESCE = 0.5  # seconds in which changes become one look
_FORBIDDEN = 60.0  # seconds; a right may be given while we run


class Needs(Protocol):
    """What the cluster wants. ``Controller`` is one."""

    @property
    def wanted(self) -> Wanted | None: ...

    async def close(self, hosts: Set[str]) -> frozenset[str]: ...


class WorkerGroups:
    """``Ground`` over KubeRay. ``topology`` is of Ray as it is now; ``pods`` are a list that is kept.

    Nothing is written as long as it ``may`` not, or there is nobody to ``serve``.
    ``look`` may be called at any time; ``run`` goes on until it is cancelled.
    """

    def __init__(
        self,
        kube: KubePort,
        name: str,
        topology: Callable[[], Awaitable[Topology]],
        *,
        may: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        tick: float = TICK,
    ) -> None:
        self._kube = kube
        self._name = name
        self._needs: Needs | None = None
        self._may = may
        self._topology = topology
        self._clock = clock
        self._tick = tick
        self._awake = asyncio.Event()
        self.pods = Mirror(kube, Kind.PODS, workers_of(name), changed=self._awake.set)
        self.machines = Machines(kube, self.pods)
        self._missing: dict[str, float] = {}  # names of pods to delete that are not there, since when
        self._closing = frozenset[str]()
        self._wanted: Wanted | None = None  # at the last look
        self._cluster: Object | None = None  # as it was then
        self._error: SegueError | None = None
        self.room = Room()

    def serve(self, needs: Needs) -> None:
        """From now on this is what is wanted."""
        self._needs = needs

    def seen(self, topology: Topology) -> Topology:
        """With labels of the machines below."""
        return self.machines.seen(topology)

    def could_be(self, topology: Topology) -> Topology:
        """With pods that groups may still have."""
        topology, cluster = self.seen(topology), self._cluster
        more = hosts_to_come(cluster, self.pods.items, topology) if cluster is not None and self._may() else ()
        return replace(topology, hosts=(*topology.hosts, *more))

    def look(self) -> None:
        """Has the next look be soon, where something else is wanted than at the last."""
        if self._needs is not None and self._needs.wanted != self._wanted:
            self._awake.set()

    async def run(self) -> None:
        """Keeps the groups."""
        mirrors = [asyncio.create_task(mirror.run()) for mirror in (self.pods, self.machines.nodes)]
        try:
            while True:
                pause = _COALESCE
                try:
                    await self.settle()
                    self._error = None
                except Exception as error:  # whatever it is, replicas are kept without it
                    pause = max(self._failed(error), pause)
                await asyncio.sleep(pause)
                await self._rest()
        finally:
            for task in mirrors:
                task.cancel()
            await asyncio.wait(mirrors)

    async def settle(self) -> None:
        """One look, and what follows from it."""
        self._awake.clear()
        if not await self.pods.fresh(0):
            if self.pods.error is not None:
                raise self.pods.error
            return  # they have not been told yet
        for _ in range(ATTEMPTS):
            needs = self._needs if self._may() else None
            wanted = self._wanted = needs.wanted if needs is not None else None
            if needs is None or wanted is None:
                return
            cluster = self._cluster = await self._kube.get(Kind.RAYCLUSTERS, self._name)
            if cluster is None:
                return
            decided = await self._decided(cluster, needs, wanted)
            changes = [each for each in decided if each.changes]
            self._tell(decided)
            if not changes:
                return
            try:
                await self._kube.patch(Kind.RAYCLUSTERS, self._name, patch_of(cluster, changes))
            except KubeConflict:
                continue
            for each in changes:
                told = {"replicas": each.replicas, "was": each.group.replicas, "ends": list(each.to_delete)}
                log.info("worker_group", group=each.group.name, **told)
            return
        raise KubeConflict(f"somebody else wrote it each of {ATTEMPTS} times", where=f"RayCluster {self._name}")

    async def _decided(self, cluster: Object, needs: Needs, wanted: Wanted) -> tuple[Scaling, ...]:
        """By what is there now, with what is to go closed first."""
        groups = () if is_autoscaled(cluster) else groups_of(cluster)
        gone = self._long_gone({name for group in groups for name in group.to_delete})
        pods, hosts = await self._pods(self.pods.items)
        first = scaled(groups, pods, wanted, closed=frozenset(), gone=gone)
        going = {name for each in first for name in (*each.closing, *each.to_delete)}
        closing = frozenset(hosts[pod.name] for pod in pods if pod.leaving or pod.name in going) - {""}
        ends = any(set(each.to_delete) - set(each.group.to_delete) for each in first)
        if not (closing or self._closing or ends):
            return first
        closed = await needs.close(closing)
        self._closing = closing
        # A list that is kept may lag behind, and what was reserved before it was closed is there by now.
        items = (await self._kube.list(Kind.PODS, workers_of(self._name))).items if going else self.pods.items
        pods, hosts = await self._pods(items)
        names = frozenset(name for name, host in hosts.items() if host in closed)
        return scaled(groups, pods, wanted, closed=names, gone=gone)

    async def _pods(self, items: Sequence[Object]) -> tuple[Sequence[Pod], dict[str, str]]:
        """As they are in Ray by now, and by name the host of each that joined."""
        topology = await self._topology()
        busy = {host_id for ids in topology.reserved.values() for host_id in ids}
        # Pods on their machine's network have its address in common: then none of them is known to be empty.
        hosts_of_ray = sorted(topology.hosts, key=lambda host: host.host_id in busy)
        joined = {host.address: host.host_id for host in hosts_of_ray if host.address}
        hosts = {pod["metadata"]["name"]: joined.get(address_of(pod), "") for pod in items}
        return pods_of(items, joined, busy), hosts

    def _long_gone(self, to_delete: Set[str]) -> frozenset[str]:
        now, there = self._clock(), {str(pod["metadata"]["name"]) for pod in self.pods.items}
        self._missing = {name: self._missing.get(name, now) for name in to_delete - there}
        return frozenset(name for name, since in self._missing.items() if now - since >= _LONG_GONE)

    def _tell(self, decided: Sequence[Scaling]) -> None:
        lacks = {each.group.pool: each.lacks for each in decided if each.lacks}
        for pool, why in lacks.items():
            if self.room.lacks.get(pool) != why:
                log.warning("worker_group_lacks", pool=" ".join(filter(None, pool)), why=why)
        self.room = Room(frozenset(each.group.pool for each in decided if each.coming), lacks)

    def _failed(self, error: Exception) -> float:
        """Says it once; returns how long to wait, in seconds."""
        told = error if isinstance(error, SegueError) else SegueError(f"{type(error).__name__}: {error}")
        if str(told) != str(self._error):
            log.failure("worker_groups_not_kept", error)
        self._error = told
        wanted = self._needs.wanted if self._needs is not None else None
        self.room = Room(lacks=dict.fromkeys(wanted.replicas if wanted else (), f"worker groups are not kept: {told}"))
        return _FORBIDDEN if isinstance(error, KubeForbidden) else min(told.retry_after or self._tick, 60.0)

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._tick):
                await self._awake.wait()
        except TimeoutError:
            return
