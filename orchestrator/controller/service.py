"""The controller as an actor: the loop, its gRPC server and its log, put together.

It begins when it is told to, for a cluster that is new. Ray makes it again where its process was lost: then it begins
by itself, with what its predecessor remembered and left running.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from orchestrator.config import dumps, effective_engine_args, loads
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.controller import Controller
from orchestrator.controller.fleet import Bulletin, FleetServer
from orchestrator.controller.ports import ClusterPort, Ground, Memory
from orchestrator.controller.status import cluster_status
from orchestrator.core import adoption
from orchestrator.core.errors import NotReady, StaleEpoch
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.rollout import PoolKey
from orchestrator.core.scene import Scene, scene_of
from orchestrator.core.slots import Observed
from orchestrator.core.spec import ClusterSpec, Endpoint
from orchestrator.telemetry import logs
from orchestrator.telemetry.output import write_output_to

log = logs.events("controller")
Sight = Callable[[], Awaitable[Topology]]
_ANY_HOST = ("0.0.0.0", "::", "[::]", "")  # noqa: S104 - recognised, not bound


class Home(ClusterPort, Protocol):
    """A cluster, and what runs the controller's own process. ``RayCluster`` says what each is."""

    def restarted(self) -> bool: ...

    def resign(self) -> None: ...

    def identity(self) -> str: ...

    async def ages(self) -> list[float]: ...


class Resident(Protocol):
    """What it is where the cluster lives, beside Ray. ``kube.resident`` says what each is."""

    async def begin(self) -> None: ...

    async def run(self) -> None: ...

    def saw(self, scene: Scene, address: str) -> None: ...

    @property
    def ground(self) -> Ground: ...

    def serve(self, needs: Controller) -> None: ...

    async def end(self) -> None: ...


class ControllerActor:
    """Keeps one cluster. ``node_host`` is how other nodes reach this one, told where it listens on every interface.

    ``residence`` makes a Resident, by the cluster's identity, where there is something beside Ray.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        log_dir: str,
        cluster: Home,
        node_host: str,
        residence: Callable[[str, Sight], Resident] | None = None,
    ) -> None:
        write_output_to(Path(log_dir) / "controller.log")
        logs.setup(spec.telemetry.log_level)
        self._spec = spec
        self._log_dir = log_dir
        self._cluster = cluster
        self._node_host = node_host
        self._address = ""
        self._term = self._began_ms = 0
        self._bulletin = Bulletin(cluster_status(spec, Observed(0, (), {})))
        self._server: FleetServer | None = None
        self._controller: Controller | None = None
        self._run: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._begun: asyncio.Task[None] | None = None
        self._residence = residence
        self._resident: Resident | None = None
        self._living: asyncio.Task[None] | None = None
        if cluster.restarted():
            self._begun = asyncio.get_running_loop().create_task(self._resume())
            self._begun.add_done_callback(self._end_with)

    async def start(self) -> str:
        """Listens, begins to build the cluster, and returns the address of the fleet watch."""
        if self._begun is None:
            self._begun = asyncio.create_task(self._begin_anew())
        await asyncio.shield(self._begun)
        return self._address

    async def address(self) -> str:
        """host:port of the fleet watch; empty before it listens."""
        return self._address

    async def shutdown(self, drain_seconds: float) -> None:
        """Drains and ends everything but this actor; returns when nothing is left."""
        if self._begun is not None:
            self._hurry.set()
            await asyncio.shield(self._begun)
        if self._controller is not None and self._run is not None:
            await self._controller.shutdown(drain_seconds)
            await self._run
            await self._cluster.forget()  # or whoever is restarted from here on would build it up again
        await self._move_out()
        if self._server is not None:
            await self._server.stop()

    async def _move_in(self) -> None:
        if self._residence is not None:
            self._resident = self._residence(self._cluster.identity(), self._cluster.topology)
            await self._resident.begin()
            self._living = asyncio.create_task(self._resident.run())
            self._living.add_done_callback(self._end_with)

    async def _move_out(self) -> None:
        if self._living is not None:
            self._living.cancel()
            await asyncio.gather(self._living, return_exceptions=True)
        if self._resident is not None:
            await self._resident.end()

    async def _begin_anew(self) -> None:
        await self._move_in()
        await self._cluster.forget()  # of one of that name whose end nobody saw
        memory = Memory(dumps(self._spec), began_ms=int(time.time() * 1000))
        await self._begin(self._spec, await self._cluster.claim(), memory)

    async def _resume(self) -> None:
        pause = adoption.pause(await self._cluster.ages())
        log.warning("restarted", cluster=self._spec.name, begins_in=pause)
        try:
            async with asyncio.timeout(pause):
                await self._hurry.wait()
        except TimeoutError:
            pass
        await self._move_in()
        term = await self._cluster.claim()
        memory = await self._cluster.recall()
        if memory is None:
            log.info("nothing_to_take_over", cluster=self._spec.name)  # it was taken down, or had not begun
            await self._move_out()
            return
        await self._begin(loads(memory.spec_json), term, memory)

    async def _begin(self, spec: ClusterSpec, term: int, memory: Memory) -> None:
        self._spec, self._term, self._began_ms = spec, term, memory.began_ms
        listen = spec.controller.listen
        if memory.listen:
            listen = replace(listen, port=int(memory.listen.rpartition(":")[2]))
        self._server = FleetServer(listen, self._bulletin, dumps(spec), self._topology, self._upgrade)
        port = self._server.bind()
        host = self._node_host if listen.host in _ANY_HOST else listen.host
        address = str(Endpoint(host, port))
        assigner = Assigner(spec, self._log_dir, effective_engine_args, address)
        ground = self._resident.ground if self._resident is not None else None
        self._controller = Controller(
            assigner, self._cluster, self._publish, memory=memory, turned=self._turned, ground=ground
        )
        if self._resident is not None:
            self._resident.serve(self._controller)
        self._address = address
        # Gateways keep to what they hear, so they hear nothing before all that serves is in the table.
        await self._controller.take_over(term, memory.epoch)
        await self._server.start()
        self._run = asyncio.create_task(self._controller.run())
        self._run.add_done_callback(self._end_with)
        log.info("listening", cluster=spec.name, address=address, term=term)

    async def _topology(self) -> Topology:
        """For those who plan: also with what could be there."""
        topology = await self._cluster.topology()
        return self._resident.ground.could_be(topology) if self._resident is not None else topology

    async def _upgrade(self, spec: ClusterSpec, makes_room: bool, full: Sequence[PoolKey]) -> None:
        if self._controller is None:
            raise NotReady("the controller is starting", retry_after=1.0)
        self._controller.upgrade(spec, makes_room=makes_room, full=full)
        await self._controller.remembered()

    def _turned(self) -> None:
        if self._controller is not None and self._server is not None:
            self._spec = self._controller.spec
            self._server.respecify(dumps(self._spec))

    def _publish(self, observed: Observed, ending: bool) -> None:
        rollout = self._controller.rollout if self._controller is not None else None
        expected = self._controller.expected if self._controller is not None else None
        status = cluster_status(
            self._spec,
            observed,
            ending=ending,
            pid=os.getpid(),
            address=self._address,
            term=self._term,
            began_ms=self._began_ms,
            rollout=rollout,
            expected=expected,
        )
        self._bulletin.publish(status)
        if self._resident is not None:
            upgrade = (rollout.phase, rollout.done, rollout.total, rollout.detail) if rollout else ("", 0, 0, "")
            scene = scene_of(self._spec, observed, expected=expected, ending=ending, term=self._term, upgrade=upgrade)
            self._resident.saw(scene, self._address)

    def _end_with(self, task: asyncio.Task[None]) -> None:
        """A controller that broke must not look alive: gateways go on without it, and Ray makes another."""
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, StaleEpoch) and task is not self._living:
            log.warning("replaced", error=error, term=self._term)
            sys.stderr.flush()
            self._cluster.resign()
            return
        # Also one whose lease another has: made again it waits for its turn, or this Ray would have no controller.
        log.failure("controller_broke", error)
        sys.stderr.flush()
        os._exit(1)
