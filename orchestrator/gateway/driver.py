"""The live shell around the brain: turns frames and front-end calls into events, and carries out the commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.core.errors import NotReady, SegueError
from orchestrator.core.spec import Role
from orchestrator.core.types import Load, WorkerInfo
from orchestrator.gateway import cluster_core as cc
from orchestrator.gateway.context import CURRENT, RequestContext
from orchestrator.gateway.dispatch import Dispatch
from orchestrator.gateway.feed import Feed
from orchestrator.gateway.flight import Flight, Flights
from orchestrator.gateway.hashing import blocks_of
from orchestrator.gateway.link import Link
from orchestrator.gateway.outputs import Outputs
from orchestrator.gateway.resuming import is_resumable
from orchestrator.gateway.telling import tell
from orchestrator.proto import worker_pb2 as pb
from orchestrator.record.journal import Journal
from orchestrator.telemetry import logs
from orchestrator.telemetry.metrics import GatewayMetrics

TICK_SECONDS = 0.1
_REFUSALS = {
    pb.Rejected.DRAINING: m.Refusal.DRAINING,
    pb.Rejected.BUSY: m.Refusal.BUSY,
    pb.Rejected.INVALID: m.Refusal.INVALID,
}

log = logs.events("gateway.driver")


class Driver:
    """One gateway process's requests. Everything runs on the event loop's thread; nothing here awaits."""

    def __init__(
        self,
        brain: Brain,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
    ) -> None:
        self._brain = brain
        self._journal = journal or Journal()
        self._feed = Feed(self._journal.around(brain.step), clock, self._try, self._broken)
        self._metrics = metrics
        self._links: dict[str, Link] = {}
        self._workers: dict[str, WorkerInfo] = {}
        self._loads: dict[str, Load] = {}
        self._block_sizes: dict[str, int] = {}
        self._restores: dict[str, bool] = {}
        self._flights = Flights()
        self._over: SegueError | None = None  # what whoever still comes is told, once it has ended
        self._turned_away: SegueError | None = None  # whoever knocked just now
        self._outputs = Outputs(self._flights, self._feed, metrics)
        self._dispatch = Dispatch(self._flights, self._feed, self._links, self._workers)
        self.on_change: Callable[[], None] = lambda: None
        self.on_worker: Callable[[WorkerInfo], None] = lambda _: None

    async def idle(self, seconds: float) -> bool:
        """Waits until no request is without an outcome; False if some still are after ``seconds``."""
        return await self._flights.over(seconds)

    def cut_off(self) -> int:
        """Ends all that is under way or still comes, and tells its clients to ask again; returns how many were."""
        left = self._flights.everything()
        self._over = NotReady("this gateway ended before the answer did", hint="ask again", retry_after=1.0)
        for flight in reversed(left):  # the newest first: whoever waits is not to take the place of one that runs
            try:
                flight.failed(self._over)
                self._feed.put(m.Cancelled(flight.request_id, flight.output_tokens))
                flight.core.fail(flight.request_id, self._over)
            except Exception as error:
                log.error("not_cut_off", error, request_id=flight.request_id)
        return len(left)

    @property
    def workers(self) -> Mapping[str, WorkerInfo]:
        """Workers with an open session, by id."""
        return self._workers

    def takes(self, model: str, role: Role) -> bool:
        """Whether a worker of that pool takes requests."""
        return bool(self._brain.fleet.pool(model, role).views)

    def routed(self, event: m.ModelRouted) -> None:
        self._feed.put(event)

    def knock(self, model: str, context: RequestContext) -> None:
        """Raises Overloaded or ClusterFull where it is no use to read a client's request."""
        if self._brain.admission.waiting(model):
            self._feed.put(m.Knocked(context.request_id, model, context.tenant, context.deadline))
            error, self._turned_away = self._turned_away, None
            if error is not None:
                raise error

    def load(self, worker_id: str) -> Load | None:
        """The newest account of a worker; None without an open session."""
        return self._loads.get(worker_id)

    async def tick(self) -> None:
        """Lets deadlines pass, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._feed.put(m.Tick())
            for model, accuracy in self._brain.predictions.accuracy.items():
                self._metrics.brain.prediction(model, accuracy.error, accuracy.bias)

    # ---- from the front end

    def submit(self, core: cc.ClusterCore, request: cc.EngineCoreRequest) -> None:
        """Takes a request; the brain may start it at once or let it wait for a worker."""
        context = CURRENT.get()
        if self._over is not None:
            if context is not None:
                context.error = context.error or self._over
            core.fail(request.request_id, self._over)
            return
        try:
            arrival = self._arrival(core.model, request, context)
        except Exception as error:
            log.error("request_not_understood", error)
            core.fail(request.request_id, SegueError("the request could not be taken in"))
            return
        self._flights.begin(Flight(request, core, context, request.request_id, resumable=arrival.resumable))
        if context:
            self._journal.known_as(request.request_id, context.request_id)
        self._feed.put(arrival)

    def _arrival(self, model: str, request: cc.EngineCoreRequest, context: RequestContext | None) -> m.Arrived:
        return m.Arrived(
            request.request_id,
            model,
            cc.prompt_tokens(request),
            local_only=cc.needs_local_prefill(request),
            deadline=context.deadline if context else None,
            blocks=self._blocks(model, request),
            tenant=context.tenant if context else "",
            priority=request.priority,
            affinity=context.affinity if context else "",
            adapter=cc.adapter(request),
            output_limit=cc.output_limit(request),
            resumable=is_resumable(request, self._restores.get(model, False)),
        )

    def _blocks(self, model: str, request: cc.EngineCoreRequest) -> Sequence[int]:
        """Hashes of the prompt's full blocks; none while no worker has told the size of its blocks."""
        size = self._block_sizes.get(model)
        return blocks_of(request, model, size) if size else ()

    def cancel(self, request_id: str, *, complete: bool) -> None:
        """The front end needs no more of a request: the client is gone, or (``complete``) it has all it wanted."""
        if flight := self._flights.get(request_id):
            self._feed.put(m.Cancelled(request_id, flight.output_tokens, complete))

    # ---- from the links

    def opened(self, link: Link, worker: WorkerInfo) -> None:
        if former := self._links.get(worker.worker_id):
            self.closed(former, "its session was opened again")
        self._links[worker.worker_id] = link
        self._workers[worker.worker_id] = worker
        self._loads[worker.worker_id] = Load()
        if worker.facts is not None:
            self._block_sizes[worker.model] = worker.facts.block_size
            self._restores[worker.model] = worker.facts.restores
        log.info("worker up", worker=worker.worker_id, model=worker.model, pool=worker.role)
        self._feed.put(m.WorkerUp(worker))
        self.on_worker(worker)
        self.on_change()

    def closed(self, link: Link, reason: str) -> None:
        worker_id = link.worker.worker_id
        if self._links.get(worker_id) is not link:
            return  # a newer session with the same worker has taken its place
        del self._links[worker_id]
        self._loads.pop(worker_id, None)
        worker = self._workers.pop(worker_id)
        self._feed.put(m.WorkerDown(worker_id, reason, self._flights.in_stream(worker_id)))
        self._metrics.worker_gone(worker.model, worker.role.value, worker_id)
        self.on_change()

    def stepped(self, worker_id: str, step: pb.Step) -> None:
        feed = self._feed
        feed.frame_begins()
        try:
            self._take_step(worker_id, step)
        finally:
            feed.frame_ends()

    def _take_step(self, worker_id: str, step: pb.Step) -> None:
        worker = self._workers[worker_id]
        if step.HasField("cache"):
            self._take_cache(worker_id, step.cache)
        if step.outputs:
            self._outputs.take(worker, cc.decode_outputs(step.outputs))
        for rejected in step.rejected:
            self._feed.put(m.Refused(rejected.wire_id, _REFUSALS[rejected.reason], rejected.detail))
        if step.HasField("load"):  # after the outputs: it is the account of what is left when they are gone
            self._take_load(worker, step)
        if step.draining:
            self._feed.put(m.WorkerDraining(worker_id))
        if step.HasField("transfers"):
            self._take_transfers(worker, step.transfers)

    def _take_cache(self, worker_id: str, change: pb.CacheChange) -> None:
        self._feed.put(m.CacheChanged(worker_id, tuple(change.stored), tuple(change.removed), change.cleared))

    def _take_load(self, worker: WorkerInfo, step: pb.Step) -> None:
        load, worker_id = step.load, worker.worker_id
        running, waiting, used, total = load.running, load.waiting, load.kv_blocks_used, load.kv_blocks_total
        account = self._loads[worker_id]
        if (
            used != account.kv_blocks_used
            or running != account.running
            or waiting != account.waiting
            or total != account.kv_blocks_total
        ):
            account = self._loads[worker_id] = Load(running, waiting, used, total)
            self._metrics.worker_load(worker.model, worker.role.value, worker_id, account)
            self.on_change()
        self._feed.put(m.LoadReported(worker_id, account, step.own_requests, bool(step.outputs)))

    def _take_transfers(self, worker: WorkerInfo, transfers: pb.Transfers) -> None:
        place = (worker.model, worker.role.value, worker.worker_id)
        if transfers.count:
            self._metrics.transfers(*place, "moved", transfers.bytes, transfers.count)
        if transfers.failed:
            self._metrics.transfers(*place, "recomputed", 0, transfers.failed)

    # ---- commands

    def _try(self, command: m.Command) -> None:
        """A command that can't be carried out costs its own request, nobody else's."""
        try:
            self._carry_out(command)
        except Exception as error:
            log.error("command failed", error, command=type(command).__name__)
            if not isinstance(command, m.StartPrefill | m.StartDecode):
                return
            if flight := self._flights.get(command.request_id):
                self._feed.put(m.Cancelled(command.request_id, flight.output_tokens))
                flight.core.fail(command.request_id, SegueError("the request could not be sent to a worker"))

    def _broken(self, event: m.Event) -> None:
        """A defect costs the requests that the event was about, nobody else's."""
        hurt: Sequence[Flight | None] = ()
        if isinstance(event, m.Arrived | m.Cancelled):
            hurt = (self._flights.get(event.request_id),)
        elif isinstance(event, m.PrefillEnded | m.FirstToken | m.DecodeEnded | m.Refused):
            hurt = (self._flights.of_wire(event.wire_id),)
        elif isinstance(event, m.WorkerDown):
            hurt = self._flights.at(event.worker_id)
            self._brain.fleet.down(event.worker_id)  # or it would seem idle, and be sent all that comes
        for flight in filter(None, hurt):
            if not isinstance(event, m.Cancelled):
                self._feed.put_now(m.Cancelled(flight.request_id, flight.output_tokens))
            self._flights.end(flight.request_id)  # if the brain did not come that far
            flight.core.fail(flight.request_id, SegueError("the request met a defect of the gateway"))

    def _carry_out(self, command: m.Command) -> None:
        match command:
            case m.StartPrefill() | m.StartDecode():
                self._dispatch.start(command)
            case m.Abort(wire_id, worker_id):
                self._dispatch.abort(wire_id, worker_id)
            case m.Release(prefill_wire_id, worker_id):
                self._dispatch.release(prefill_wire_id, worker_id)
            case m.Forget(prefill_wire_id):
                self._flights.take_transfer(prefill_wire_id)
            case m.TurnedAway():
                self._turned_away = command.error
            case m.Alert() | m.Sick():
                tell(command, self._metrics.brain)
            case m.End():
                self._end(command)

    def _end(self, command: m.End) -> None:
        flight = self._flights.end(command.report.request_id)
        if flight is None:
            return
        try:
            flight.ended(command.report, command.error)
            self._metrics.request_finished(command.report)
        finally:  # whoever waits for it has to be told, whatever is wrong with the accounts
            if command.error is not None:
                flight.core.fail(flight.request_id, command.error)
