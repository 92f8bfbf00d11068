"""What a controller does in Kubernetes beside its work in Ray: one acts at a time, and operators see what it does.

Nothing of this holds up what happens in Ray. Where the API server is away, or a right is missing, it is said and tried
again; only where another controller has the lease, this one must not go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from orchestrator.controller.kube.groups import Needs, WorkerGroups
from orchestrator.controller.kube.herald import Herald
from orchestrator.controller.kube.lease import Lease
from orchestrator.controller.kube.owner import Owner
from orchestrator.controller.kube.ports import KubePort
from orchestrator.controller.kube.poster import Poster
from orchestrator.controller.kube.trouble import Trouble, understood
from orchestrator.controller.ports import Ground
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.scene import Scene
from orchestrator.telemetry import logs

log = logs.events("controller.kube")
_AGAIN = 30.0  # seconds after which a part that broke begins anew
_LAST_WORDS = 5.0  # seconds for what is still to be written at the end

Part = Callable[[], Awaitable[None]]
Sight = Callable[[], Awaitable[Topology]]  # of Ray's nodes, and what is reserved there


async def nothing() -> Topology:
    """A Ray without nodes."""
    return Topology(())


class Closable(KubePort, Protocol):
    """The port, and what gives its connections back."""

    async def close(self) -> None: ...


class Resident:
    """``begin``, then ``run`` beside the controller, which tells it what it ``saw``; ``end`` once nothing is left."""

    def __init__(self, kube: Closable, raycluster: str, identity: str, topology: Sight = nothing) -> None:
        self._kube = kube
        owner = Owner(kube, raycluster)
        self.lease = Lease(kube, owner, identity)
        self._herald = Herald(kube, owner, self._may)
        self._poster = Poster(kube, owner, self._may)
        self._groups = WorkerGroups(kube, raycluster, topology, may=self._may)
        # What runs as long as the controller does; a part that writes asks ``_may`` first.
        self._parts: list[Part] = [self._herald.run, self._poster.run, self._groups.run]
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble = Trouble("scene")

    @property
    def ground(self) -> Ground:
        """What makes pods for the cluster."""
        return self._groups

    def serve(self, needs: Needs) -> None:
        """Has pods made as this controller wants them."""
        self._groups.serve(needs)

    def _may(self) -> bool:
        return self.lease.holds

    async def begin(self) -> None:
        """Returns once this controller may act. Raises NotReady where another one does."""
        try:
            await self.lease.win()
        except BaseException:
            await self._kube.close()
            raise

    async def run(self) -> None:
        """Goes on until it is cancelled. Raises StaleEpoch once another controller acts."""
        self._tasks = [asyncio.create_task(_kept_up(part)) for part in self._parts]
        try:
            await self.lease.keep()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def saw(self, scene: Scene, address: str) -> None:
        """A new view of the cluster; ``address`` is where the controller listens."""
        try:
            self._herald.saw(scene)
            self._poster.saw(scene, address)
        except Exception as error:  # nothing that is told is worth the controller that tells it
            self._trouble.hit(understood(error))
        else:
            self._trouble.over()

    async def end(self) -> None:
        """The cluster was taken down: says so, and leaves the lease to whoever comes next. After ``run``."""
        try:
            async with asyncio.timeout(_LAST_WORDS):
                if self._may():
                    await self._herald.write()
                    await self._poster.write(ended=True)
        except Exception as error:
            log.warning("last_words_not_written", error=error)
        await self.lease.release()
        await self._kube.close()


async def _kept_up(part: Part) -> None:
    """Goes on with it though it breaks: the controller does not depend on it."""
    while True:
        try:
            await part()
        except Exception as error:
            log.failure("kubernetes_part_broke", error)
            await asyncio.sleep(_AGAIN)


def resident_in(raycluster: str, identity: str, topology: Sight) -> Resident:
    """By the token of this pod. Raises ConfigError where there is none."""
    from orchestrator.controller.kube.client import in_cluster

    return Resident(in_cluster(), raycluster, identity, topology)
