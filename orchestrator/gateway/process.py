"""A gateway as an actor: the process around ``Gateway``, on an event loop of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from orchestrator.core.errors import ClusterUnreachable, SegueError
from orchestrator.core.spec import ClusterSpec, Endpoint
from orchestrator.core.terms import Terms
from orchestrator.core.types import ActorSnapshot, GatewayAssignment, WorkerState
from orchestrator.gateway.attendance import attend
from orchestrator.gateway.serving import Serving
from orchestrator.gateway.watch import first_spec
from orchestrator.proto import cluster_pb2
from orchestrator.telemetry import logs, tracing
from orchestrator.telemetry.output import write_output_to
from orchestrator.telemetry.redact import Words

FIRST_SNAPSHOT_SECONDS = 30.0
YOUNG_OBJECTS = 10_000  # before the youngest are looked through; Python's 700 come together in one request
CLOSE_SECONDS = 10.0
REFUSING_SECONDS = 30.0  # after which whoever is to end the process has given up on it, and others may have the port

log = logs.events("gateway")


class GatewayProcess:
    """What the controller starts; docs/architecture.md tells what the five methods of an actor are for.

    Args:
        outside: how this one is different where somebody else starts it.
    """

    def __init__(self, assignment: GatewayAssignment, outside: Outside | None = None) -> None:
        self._assignment = assignment
        self._terms = Terms(assignment.gateway_id)
        self._outside = outside
        self._state = WorkerState.STARTING
        self._stage = "starting process"
        self._detail = ""
        self._broke: BaseException | None = None
        self._http = self._grpc = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._serving: Serving | None = None
        self._up = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._main, name="gateway", daemon=True)
        # One thread each waits for these, however many ask: controllers that are gone leave their questions open.
        self._waits: dict[threading.Event, asyncio.Future[bool]] = {}

    async def start(self, term: int | None = None) -> None:
        """Returns when it has both ports, and listens or will in its turn; raises what kept it from that.

        It comes up once: who asks again joins whoever asked before, who may be gone.
        """
        self._terms.heed(term)
        if self._thread.ident is None:
            self._thread.start()
        await self._wait(self._up)
        if isinstance(self._broke, ClusterUnreachable):
            raise self._broke
        if self._state is WorkerState.FAILED:
            raise SegueError(self._detail, where=self._assignment.gateway_id, hint="see its log")
        if self._closed.is_set():
            raise SegueError("it was stopped before it served", where=self._assignment.gateway_id)

    async def snapshot(self, term: int | None = None) -> ActorSnapshot:
        self._terms.heed(term)
        return self._word()

    def _word(self) -> ActorSnapshot:
        served = self._serving.gateway.served if self._serving is not None else None
        return ActorSnapshot(
            state=self._state,
            stage=self._stage,
            detail=self._detail or (served.refusal if served is not None and served.refuses else ""),
            serves=served.serves if served is not None else "",
            refuses=served.refuses if served is not None else "",
            address=self._http,
            grpc_address=self._grpc,
            actor_pid=os.getpid(),
            version=self._assignment.version,
        )

    async def drain(self, seconds: float, term: int | None = None) -> bool:
        """Takes nothing new; returns once nothing is under way, or after ``seconds`` and then False."""
        self._terms.heed(term)
        self._state = WorkerState.DRAINING
        if self._serving is not None and self._loop is not None:
            future = asyncio.run_coroutine_threadsafe(self._serving.gateway.drain(seconds), self._loop)
            return await asyncio.wrap_future(future)
        return True

    async def stop(self, term: int | None = None) -> None:
        """Ends all requests and sessions. From then on the gateway only refuses, until its process ends."""
        self._terms.heed(term)
        if self._loop is not None and self._stopping is not None and not self._closed.is_set():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.is_alive():
            await asyncio.to_thread(self._closed.wait, CLOSE_SECONDS)
        self._closed.set()

    async def wait_closed(self) -> None:
        await self._wait(self._closed)

    async def _wait(self, event: threading.Event) -> None:
        if event not in self._waits:
            self._waits[event] = asyncio.ensure_future(asyncio.to_thread(event.wait))
        await asyncio.shield(self._waits[event])

    def leave(self) -> None:
        """Says that it is not ready, and serves all the same, until those who send requests have noticed."""
        self._state = WorkerState.DRAINING
        if self._serving is not None:
            self._serving.gateway.leaving = True

    @property
    def drain_timeout(self) -> float:
        """Seconds, by the configuration; 0 before it is known."""
        return self._serving.drain_timeout if self._serving is not None else 0.0

    # ---- on the gateway's own thread

    def _main(self) -> None:
        try:
            if self._assignment.log_dir:
                write_output_to(Path(self._assignment.log_dir) / f"{self._assignment.gateway_id}.log")
            uvloop.run(self._serve())
        except Exception as error:
            self._fail(error)
        finally:
            self._end()

    def _fail(self, error: Exception) -> None:
        traceback.print_exception(error)
        self._broke = _cause(error)
        self._state, self._detail = WorkerState.FAILED, str(self._broke)

    def _end(self) -> None:
        self._up.set()
        self._closed.set()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._stage = "waiting for the controller"
        patience = self._outside.patience if self._outside else FIRST_SNAPSHOT_SECONDS
        spec = await first_spec(self._assignment.controller, self._assignment.gateway_id, patience)
        if self._outside:
            spec = self._outside.applied(spec)
        logs.setup(spec.telemetry.log_level)
        attending = asyncio.create_task(attend(self._assignment.controller, self._to_attend)) if self._outside else None
        tracing.init("segue-gateway", spec.telemetry.otlp_endpoint, {"segue.gateway": self._assignment.gateway_id})
        self._stage = "importing vLLM"
        await asyncio.to_thread(_import_vllm)
        serving = self._serving = Serving(self._assignment, spec)
        try:
            await self._live(serving, spec, self._stopping)
        except Exception as error:
            self._fail(error)
        try:
            await serving.close()
        finally:
            await asyncio.to_thread(tracing.shutdown)
        self._end()
        if attending is not None:
            attending.cancel()
        await serving.refuse(REFUSING_SECONDS)

    async def _live(self, serving: Serving, spec: ClusterSpec, stopping: asyncio.Event) -> None:
        """Until it is to stop."""
        async with asyncio.TaskGroup() as group:
            running = group.create_task(serving.gateway.run(self._assignment.controller))
            for model in spec.models:
                self._stage = f"loading the front end of {model.name}"
                await serving.gateway.build_front(model)
            self._stage = "opening ports"
            self._http, self._grpc = serving.bind()
            _keep_for_good()
            opening = group.create_task(self._open(serving))
            await stopping.wait()
            running.cancel()
            opening.cancel()

    def _to_attend(self) -> cluster_pb2.GatewayStatus:
        word = self._word()
        return cluster_pb2.GatewayStatus(
            id=self._assignment.gateway_id,
            http=word.address,
            grpc=word.grpc_address,
            pid=word.actor_pid,
            state=word.state,
            detail=word.detail,
            stage=word.stage,
        )

    async def _open(self, serving: Serving) -> None:
        """Listens in its turn. One that waits for it is ready: it has all that is its own to get."""
        turn = serving.turn
        mine = turn.take()
        if mine:
            await serving.listen()
        self._state, self._stage = WorkerState.READY, "" if mine else "takes no connections before it can serve"
        self._up.set()
        if not mine:
            log.info("waits_for_its_turn", missing=Words("; ".join(serving.gateway.not_ready())))
            await turn.comes()
            await serving.listen()
            self._stage = ""
        await turn.passes()


@dataclass(frozen=True, slots=True)
class Outside:
    """A gateway with ports of its own. Where it listens instead of where the configuration says, and how long it
    waits for a controller (seconds)."""

    http: Endpoint | None = None
    grpc: Endpoint | None = None
    patience: float = FIRST_SNAPSHOT_SECONDS

    def applied(self, spec: ClusterSpec) -> ClusterSpec:
        gateway = spec.gateway
        http, rpc = self.http or gateway.http, self.grpc or gateway.grpc
        return replace(spec, gateway=replace(gateway, processes=1, http=http, grpc=rpc))


def _cause(error: BaseException) -> BaseException:
    """What a task group failed of: the first error in it, one of ours if there is one."""
    while isinstance(error, BaseExceptionGroup):
        ours = [each for each in error.exceptions if isinstance(each, SegueError)]
        error = (ours or error.exceptions)[0]
    return error


def _keep_for_good() -> None:
    """What is there once a gateway is up stays: modules, front ends, tables. The garbage collector looks at it no
    more, or one full collection stops all tokens for half a second; and it looks at what is new less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


def _import_vllm() -> None:
    import orchestrator.gateway.gateway  # noqa: F401
