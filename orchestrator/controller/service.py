"""The controller as an actor: the loop, its gRPC server and its log, put together."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from orchestrator.config import dumps, effective_engine_args
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.controller import Controller
from orchestrator.controller.fleet import Bulletin, FleetServer
from orchestrator.controller.ports import ClusterPort
from orchestrator.controller.status import cluster_status
from orchestrator.core.errors import NotReady
from orchestrator.core.slots import Observed
from orchestrator.core.spec import ClusterSpec
from orchestrator.telemetry import logs
from orchestrator.telemetry.output import write_output_to

log = logs.events("controller")
_ANY_HOST = ("0.0.0.0", "::", "[::]", "")  # noqa: S104 - recognised, not bound


class ControllerActor:
    """Keeps one cluster. ``node_host`` is how other nodes reach this one, told where it listens on every interface."""

    def __init__(self, spec: ClusterSpec, log_dir: str, cluster: ClusterPort, node_host: str) -> None:
        write_output_to(Path(log_dir) / "controller.log")
        logs.setup(spec.telemetry.log_level)
        self._spec = spec
        self._log_dir = log_dir
        self._cluster = cluster
        self._node_host = node_host
        self._address = ""
        self._bulletin = Bulletin(cluster_status(spec, Observed(0, (), {})))
        self._server = FleetServer(spec.controller.listen, self._bulletin, dumps(spec), cluster.topology, self._upgrade)
        self._controller: Controller | None = None
        self._run: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listens, begins to build the cluster, and returns the address of the fleet watch."""
        port = await self._server.start()
        listen = self._spec.controller.listen
        host = self._node_host if listen.host in _ANY_HOST else listen.host
        self._address = f"{host}:{port}"
        assigner = Assigner(self._spec, self._log_dir, effective_engine_args, self._address)
        self._controller = Controller(assigner, self._cluster, self._publish, turned=self._turned)
        self._run = asyncio.create_task(self._controller.run())
        self._run.add_done_callback(_die_with)
        log.info("listening", cluster=self._spec.name, address=self._address)
        return self._address

    async def address(self) -> str:
        """host:port of the fleet watch; empty before it listens."""
        return self._address

    async def shutdown(self, drain_seconds: float) -> None:
        """Drains and ends everything but this actor; returns when nothing is left."""
        if self._controller is not None and self._run is not None:
            await self._controller.shutdown(drain_seconds)
            await self._run
        await self._server.stop()

    async def _upgrade(self, spec: ClusterSpec, makes_room: bool) -> None:
        if self._controller is None:
            raise NotReady("the controller is starting", retry_after=1.0)
        self._controller.upgrade(spec, makes_room=makes_room)

    def _turned(self) -> None:
        if self._controller is not None:
            self._spec = self._controller.spec
            self._server.respecify(dumps(self._spec))

    def _publish(self, observed: Observed, ending: bool) -> None:
        status = cluster_status(
            self._spec,
            observed,
            ending=ending,
            pid=os.getpid(),
            address=self._address,
            rollout=self._controller.rollout if self._controller is not None else None,
        )
        self._bulletin.publish(status)


def _die_with(run: asyncio.Task[None]) -> None:
    """A controller whose loop broke must not look alive: gateways go on without it, and people see that it is gone."""
    error = None if run.cancelled() else run.exception()
    if error is not None:
        log.failure("loop_broke", error)
        sys.stderr.flush()
        os._exit(1)
