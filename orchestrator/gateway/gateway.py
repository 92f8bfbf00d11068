"""One gateway process: the fleet watch, a link a worker, a front end a model, and the two edges."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from importlib import metadata
from random import Random

from orchestrator.config import dumps, loads
from orchestrator.core.brain import Brain
from orchestrator.core.errors import NotReady
from orchestrator.core.spec import ClusterSpec, ModelSpec, Role
from orchestrator.core.types import WorkerInfo, WorkerState
from orchestrator.gateway.context import RequestContext
from orchestrator.gateway.driver import Driver
from orchestrator.gateway.frontend import Front
from orchestrator.gateway.link import Link
from orchestrator.gateway.served import Served
from orchestrator.gateway.underway import Underway, happens
from orchestrator.gateway.watch import watch_fleet
from orchestrator.proto import cluster_pb2, fleet_pb2
from orchestrator.record.journal import Journal
from orchestrator.record.recorder import Recorder, open_recording
from orchestrator.record.recording import Header
from orchestrator.record.stories import Found
from orchestrator.telemetry import logs
from orchestrator.telemetry.metrics import GatewayMetrics
from orchestrator.telemetry.redact import Words

_LINKED_STATES = (WorkerState.READY, WorkerState.DRAINING)

log = logs.events("gateway")


class Gateway:
    """See ``ports.GatewayView`` and ``http.HttpView``.

    Args:
        seed: of what its brain draws; None for any.
        record: a file for all that its brain sees and decides; none if empty.
        epoch: of this filling of the gateway's slot.

    Raises:
        SegueError: the recording can't be written.
    """

    def __init__(
        self, gateway_id: str, spec: ClusterSpec, seed: int | None = None, record: str = "", epoch: int = 0
    ) -> None:
        self.metrics = GatewayMetrics(gateway_id)
        self.draining = False
        self.underway = Underway()
        self.leaving = False  # serves as ever, and whoever asks whether it is ready is sent elsewhere
        self._id = gateway_id
        seed = secrets.randbits(63) if seed is None else seed
        self._journal = Journal(self._recorder(spec, record, epoch, seed) if record else None)
        self._brain = Brain.of(spec, Random(seed))  # noqa: S311  (ties, not secrets)
        self._models = [model.name for model in spec.models]
        self.metrics.admission(self._brain.admission, self._models, spec.gateway.admission.tenants)
        self.driver = Driver(self._brain, self.metrics, journal=self._journal)
        self.metrics.process(lambda: self._brain.live, lambda: len(self.driver.workers))
        self.driver.on_change = self._changed
        self._links: dict[str, Link] = {}
        self._served = Served(spec, self.driver, self._changed)
        self.driver.on_worker = self._served.worker_up
        self._closing: set[asyncio.Task[None]] = set()
        self._status = cluster_pb2.ClusterStatus(name=spec.name)
        self._change: asyncio.Event | None = None  # there while somebody waits for one

    async def run(self, controller: str) -> None:
        """Keeps the fleet view and the clock going, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.driver.tick(), name="tick")
            group.create_task(self._served.run(), name="front ends")
            group.create_task(watch_fleet(controller, self._id, self.take), name="fleet watch")

    @property
    def spec(self) -> ClusterSpec:
        """What it serves: the newest that it was told and could take."""
        return self._served.spec

    @property
    def served(self) -> Served:
        return self._served

    async def build_front(self, model: ModelSpec) -> None:
        """Loads one model's front end; it opens as soon as a worker of it is known."""
        await self._served.build(model)

    async def close(self) -> None:
        """Ends sessions and front ends."""
        await asyncio.gather(*(link.close() for link in self._links.values()), return_exceptions=True)
        self._served.close()
        await asyncio.to_thread(self._journal.close)

    async def drain(self, seconds: float) -> bool:
        """Takes nothing new and waits for what is under way; False if some of it is left after ``seconds``."""
        self.draining = True
        return all(await asyncio.gather(self.underway.over(seconds), self.driver.idle(seconds)))

    def cut_off(self) -> None:
        """Takes nothing new, and ends what is under way."""
        self.draining = True
        if count := self.driver.cut_off():
            log.warning("cut_off", requests=count)

    def _recorder(self, spec: ClusterSpec, path: str, epoch: int, seed: int) -> Recorder:
        header = Header(metadata.version("segue"), self._id, epoch, seed, time.time(), time.monotonic(), dumps(spec))
        recorder = open_recording(
            path, header, lambda reason: log.error("recording_ended_early", path=path, reason=Words(reason))
        )
        log.info("recording", path=recorder.path)
        return recorder

    # ---- the fleet

    def take(self, snapshot: fleet_pb2.FleetSnapshot) -> None:
        """Takes in what the controller says: opens links to workers that are new, closes those that are gone."""
        self._status = snapshot.status
        if snapshot.spec_json:
            self._served.tell(loads(snapshot.spec_json))
        everyone = _everyone(snapshot.status)
        listed = {
            # Its state is not part of what a link is to: one that begins to drain keeps its session.
            worker.worker_id: replace(worker, state=WorkerState.READY)
            for worker in everyone
            if worker.state in _LINKED_STATES and worker.address
        }
        for worker_id, link in list(self._links.items()):
            if listed.get(worker_id) != link.worker:
                del self._links[worker_id]
                task = asyncio.create_task(link.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        for worker_id, worker in listed.items():
            if worker_id not in self._links:
                self._links[worker_id] = Link(worker, self._id, self.driver, self.spec.gateway.silence_seconds)
        self.metrics.fleet(everyone)
        self._changed()

    # ---- what the edges see

    def front(self, model: str) -> Front:
        if self.draining:
            raise NotReady("this gateway is draining", hint="connect again: another takes over", retry_after=1.0)
        return self._served.front(model)

    def knock(self, model: str, context: RequestContext) -> None:
        self.driver.knock(model, context)

    def fronts(self) -> list[Front]:
        return self._served.fronts()

    def not_ready(self) -> list[str]:
        missing = self._served.not_ready()
        return ["this gateway is draining", *missing] if self.draining or self.leaving else missing

    def behind(self) -> bool:
        ready = {
            (model.name, pool.role)
            for model in self._status.models
            for pool in model.pools
            if any(worker.state == WorkerState.READY for worker in pool.workers)
        }
        there = [(model, [role for role in model.pools if (model.name, role) in ready]) for model in self.spec.models]
        serves = any(front.ready() for front in self.fronts())
        # A model that nothing decodes has no API at any gateway.
        return not serves or any(
            self._served.missing(model, roles) for model, roles in there if set(roles) - {Role.PREFILL}
        )

    def status(self) -> cluster_pb2.ClusterStatus:
        status = cluster_pb2.ClusterStatus()
        status.CopyFrom(self._status)
        status.ready = status.ready and not self.not_ready()
        for model in status.models:
            for pool in model.pools:
                for worker in pool.workers:
                    if load := self.driver.load(worker.id):
                        worker.running, worker.waiting = load.running, load.waiting
                        worker.kv_blocks_used, worker.kv_blocks_total = load.kv_blocks_used, load.kv_blocks_total
        return status

    def explain(self, request_id: str) -> Found:
        epoch_at = time.monotonic() - time.time()
        return self._journal.stories.find(request_id, self._id, epoch_at, self._brain.waits)

    async def status_changed(self, timeout_seconds: float) -> bool:
        if self._change is None:
            self._change = asyncio.Event()
        return await happens(self._change, timeout_seconds)

    def _changed(self) -> None:
        self._models[:] = [model.name for model in self.spec.models]  # metrics look at them
        if self._change is not None:
            self._change.set()
            self._change = None


def _everyone(status: cluster_pb2.ClusterStatus) -> list[WorkerInfo]:
    """All workers, also those without an address yet; a state that a newer controller knows is left out."""
    known = {state.value for state in WorkerState}
    return [
        WorkerInfo(worker.id, model.name, Role(pool.role), worker.address, worker.epoch, WorkerState(worker.state))
        for model in status.models
        for pool in model.pools
        for worker in pool.workers
        if worker.state in known
    ]
