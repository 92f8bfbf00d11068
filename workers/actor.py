"""A replica's life: model, engine, session, drain, end. A plain class; the controller makes a Ray actor of it.

Nothing here imports vLLM before the environment of its engine stands.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc

from orchestrator import models
from orchestrator.core.errors import SegueError, WorkerLost, WorkerStartFailed
from orchestrator.core.spec import Backend
from orchestrator.core.terms import Terms
from orchestrator.core.types import ActorSnapshot, Load, WorkerAssignment, WorkerState
from orchestrator.proto import worker_pb2_grpc
from orchestrator.proto.reading import ReadsRequests
from orchestrator.telemetry import logs, tracing
from orchestrator.telemetry.output import write_output_to
from workers import environment, inventory
from workers.ports import Engine

if TYPE_CHECKING:
    from workers.session import WorkerSession

_GRACE_SECONDS = 1.0  # for the last status to reach a gateway
_POLL_SECONDS = 0.05

_log = logs.events("worker.actor")


class WorkerActor:
    """One replica. ``stop`` is for one caller; ``snapshot`` answers at any time.

    ``term``: of the controller that asks; one that was replaced has StaleEpoch from every method.
    """

    def __init__(self, assignment: WorkerAssignment) -> None:
        self._assignment = assignment
        self._terms = Terms(assignment.worker_id)
        self._state = WorkerState.STARTING
        self._stage = ""
        self._detail = ""
        self._address = ""
        self._run_folder: Path | None = None
        self._engine: Engine | None = None
        self._session: WorkerSession | None = None
        self._server: grpc.aio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self._coming_up: asyncio.Task[None] | None = None
        self._ready_at: float | None = None
        self._stopping = False
        self._closed = asyncio.Event()

    async def start(self, term: int | None = None) -> None:
        """Returns when the replica takes requests. Raises WorkerStartFailed; nothing is left running then.

        It comes up once: who asks again joins whoever asked before, who may be gone.
        """
        self._terms.heed(term)
        if self._coming_up is None:
            self._coming_up = asyncio.create_task(self._come_up())
        await asyncio.shield(self._coming_up)

    async def _come_up(self) -> None:
        assigned = self._assignment
        if assigned.log_dir:
            write_output_to(Path(assigned.log_dir) / f"{assigned.worker_id}.log")
        logs.setup(assigned.log_level, engine=True)
        about = {"segue.cluster": assigned.cluster, "segue.model": assigned.model, "segue.worker": assigned.worker_id}
        tracing.init("segue-worker", assigned.otlp_endpoint, about)
        try:
            await self._start()
        except BaseException as error:
            failure = self._start_failure(error)
            self._state, self._detail = WorkerState.FAILED, str(failure)
            _log.failure("worker_start_failed", failure, worker=assigned.worker_id)
            await self._release_all()
            raise failure from error
        self._state, self._stage, self._ready_at = WorkerState.READY, "", time.monotonic()
        _log.info("worker_ready", worker=assigned.worker_id, address=self._address)

    async def snapshot(self, term: int | None = None) -> ActorSnapshot:
        """What this replica is and does now; never waits."""
        self._terms.heed(term)
        up = self._session is not None
        return ActorSnapshot(
            state=self._state,
            stage=self._stage,
            detail=self._detail,
            node=socket.gethostname(),
            address=self._address,
            actor_pid=os.getpid(),
            engine_pid=self._engine.pid if self._engine is not None else 0,
            facts=self._engine.facts if self._engine is not None and up else None,
            load=self._session.load if self._session is not None else Load(),
            version=self._assignment.version,
            ready_for=time.monotonic() - self._ready_at if self._ready_at is not None else 0.0,
        )

    async def drain(self, seconds: float, term: int | None = None) -> None:
        """Takes no new requests; returns when the running ones are done and collected, or after ``seconds``."""
        self._terms.heed(term)
        if self._session is None:
            return
        self._state, self._stage = WorkerState.DRAINING, "draining"
        self._session.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._session.idle:  # noqa: ASYNC110  (KV leases end in the engine, which has no event for it)
                    await asyncio.sleep(_POLL_SECONDS)
        _log.info("worker_drained", worker=self._assignment.worker_id, left=self._session.live_requests)

    async def stop(self, term: int | None = None) -> None:
        """Ends the sessions, the engine and all its processes. Safe to call twice, and during a start."""
        self._terms.heed(term)
        self._state, self._stage = WorkerState.DRAINING, "stopping"
        self._stopping = True
        if self._session is not None:
            self._session.close(WorkerLost("the worker is stopping", where=self._assignment.worker_id))
        if self._coming_up is not None:
            self._coming_up.cancel()
            await asyncio.gather(self._coming_up, return_exceptions=True)
        await self._release_all()
        tracing.shutdown()
        self._closed.set()

    async def wait_closed(self) -> None:
        """Returns after ``stop``. Does not return if the engine dies: the whole process exits then."""
        await self._closed.wait()

    async def _start(self) -> None:
        assigned = self._assignment
        host = inventory.bind_host(assigned.bind)
        self._run_folder = inventory.make_run_folder()
        self._engine = await self._make_engine(host)
        await self._engine.start(self._note)
        self._note("starting the session")
        session = importlib.import_module("workers.session")
        self._session = session.WorkerSession(
            assigned.worker_id, assigned.epoch, assigned.role, assigned.model, self._engine
        )
        self._server = grpc.aio.server(options=session.SERVER_OPTIONS, interceptors=[ReadsRequests()])
        worker_pb2_grpc.add_WorkerServicer_to_server(self._session, self._server)
        port = self._server.add_insecure_port(f"{host}:0")
        await self._server.start()
        self._address = f"{host}:{port}"
        self._watch = asyncio.create_task(self._run(self._session))

    def _start_failure(self, error: BaseException) -> BaseException:
        if isinstance(error, WorkerStartFailed):
            return error
        where = self._assignment.worker_id
        if self._stopping:
            return WorkerStartFailed("it was stopped while it started", where=where)
        if isinstance(error, SegueError):
            return WorkerStartFailed(error.what, where=error.where or where, hint=error.hint)
        return error

    async def _make_engine(self, host: str) -> Engine:
        assigned = self._assignment
        assert self._run_folder is not None  # noqa: S101  (made just before)
        if assigned.backend is Backend.MOCK:
            self._note("importing vLLM's types")
            mock = await asyncio.to_thread(importlib.import_module, "workers.mock")
            return cast(Engine, mock.MockEngine(assigned.engine, host=host))
        self._note("preparing the model")
        model = await asyncio.to_thread(models.prepare, assigned.source, self._note)
        environment.prepare(assigned, model, host, self._run_folder)
        self._note("importing vLLM")
        engine = await asyncio.to_thread(importlib.import_module, "workers.engine")
        return cast(Engine, engine.VllmEngine(assigned, model, self._run_folder))

    async def _run(self, session: WorkerSession) -> None:
        try:
            await session.run()
        except WorkerLost as lost:
            self._state, self._detail = WorkerState.DEAD, str(lost)
            _log.error("engine_lost", lost, worker=self._assignment.worker_id)
            await self._tidy("server", self._stop_server)
            self._remove_run_folder()
            sys.stderr.flush()
            # A replica without an engine is no replica: whoever watches this process has to see it die.
            os._exit(1)

    async def _release_all(self) -> None:
        await self._tidy("server", self._stop_server)
        if self._engine is not None:
            await self._tidy("engine", self._engine.shutdown)
        if self._watch is not None:
            await asyncio.gather(self._watch, return_exceptions=True)
        self._remove_run_folder()

    async def _stop_server(self) -> None:
        if self._server is not None:
            await self._server.stop(_GRACE_SECONDS)

    async def _tidy(self, what: str, end: Callable[[], Any]) -> None:
        """One failed step of an end must not keep the others from being taken."""
        try:
            await end()
        except Exception as error:
            _log.error("worker_end_failed", error, worker=self._assignment.worker_id, part=what)

    def _remove_run_folder(self) -> None:
        if self._run_folder is not None:
            shutil.rmtree(self._run_folder, ignore_errors=True)

    def _note(self, stage: str) -> None:
        self._stage = stage
        _log.info("worker_stage", worker=self._assignment.worker_id, stage=stage.replace(" ", "_"))
