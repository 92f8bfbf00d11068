"""The worker's side of the session: requests in, one frame an engine step out, for each gateway its own.

The life of a stream: Hello -> Welcome -> (Submit | Abort | Release)* against Step*, until either side ends it. Whatever
is still running then is aborted. A gateway that errs ends its own session and nobody else's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

import grpc

from orchestrator.core.errors import ProtocolError, SegueError, WorkerLost
from orchestrator.core.mirror import Backlog, CacheEvent, CacheMirror, CacheNews
from orchestrator.core.spec import Role
from orchestrator.core.types import Load
from orchestrator.proto import worker_pb2, worker_pb2_grpc
from orchestrator.proto.reading import Unreadable
from orchestrator.proto.worker_pb2 import GatewayFrame, Hello, Rejected, Step, Submit, Welcome, WorkerFrame
from orchestrator.telemetry.logs import events
from workers import wire
from workers.intake import fault_of, transfer_fault
from workers.link import Link
from workers.messages import facts_message, load_message, transfers_message
from workers.ports import Engine, EngineStep
from workers.work import Work

PROTOCOL_VERSION = 1
HEARTBEAT_SECONDS = 1.0
HELLO_SECONDS = 10.0
LATE_SECONDS = 60.0  # how long an engine may take to come out with what it had done when an abort reached it
MAX_MESSAGE_BYTES = 256 << 20
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)

_log = events("worker.session")
_Context = grpc.aio.ServicerContext[GatewayFrame, WorkerFrame]


class WorkerSession(worker_pb2_grpc.WorkerServicer):
    """Serves any number of gateways from one engine. Belongs to one event loop."""

    def __init__(self, worker_id: str, epoch: int, role: Role, model: str, engine: Engine) -> None:
        self.load = Load(kv_blocks_total=engine.facts.kv_blocks_total)
        self.draining = False
        self._worker_id = worker_id
        self._epoch = epoch
        self._role = role
        self._engine = engine
        self._mirror = CacheMirror(model, engine.facts.block_size)
        self._next_warning = 1
        # A bound on memory, far above what admission lets through.
        self._max_live = max(1024, 16 * engine.facts.max_num_seqs)
        self._links: set[Link] = set()
        self._live: dict[str, Work] = {}
        self._aborted: dict[str, tuple[Link, float]] = {}  # wire id -> who aborted it, and until when it matters

    @property
    def live_requests(self) -> int:
        return len(self._live)

    @property
    def idle(self) -> bool:
        """Whether nothing runs, and no prefill's blocks wait to be collected."""
        return not (self._live or self.load.running or self.load.waiting or self.load.kv_blocks_used)

    async def run(self) -> None:
        """Hands the engine's steps to the gateways until the engine ends.

        Raises WorkerLost when it dies, or says what can't be handed on: gateways would wait for it for ever.
        """
        try:
            async for step in self._engine.steps():
                self._distribute(step)
        except WorkerLost as lost:
            self.close(lost)
            raise
        except Exception as error:
            _log.error("step_not_taken_in", error, worker=self._worker_id)
            broken = WorkerLost(f"its engine's steps could not be taken in ({type(error).__name__})")
            self.close(broken)
            raise broken from error

    def drain(self) -> None:
        """Takes no new requests from here on; those that run go on."""
        self.draining = True
        for link in self._links:
            link.send(self._step(link))

    def close(self, error: SegueError) -> None:
        """Ends all sessions."""
        for link in self._links:
            link.end(error)

    async def Session(self, request_iterator: Any, context: _Context) -> None:  # noqa: N802  (gRPC's name)
        """One gateway's stream, from its Hello to its end."""
        try:
            hello = await self._hello(context)
            await context.write(WorkerFrame(welcome=self._welcome()))
        except SegueError as error:
            await context.abort(grpc.StatusCode[error.grpc_code], str(error))
        link = Link(hello.gateway_id, Backlog(self._mirror))
        self._links.add(link)
        link.send(self._step(link))
        tasks = [_ending(link, self._read(context, link)), _ending(link, self._write(context, link))]
        _log.info("session_opened", gateway=link.gateway_id)
        try:
            reason = await link.ended
        finally:
            self._links.discard(link)
            for task in tasks:
                task.cancel()
            await self._forget(link)
        _log.info("session_ended", gateway=link.gateway_id, reason=reason)
        if reason is not None:
            # Where the gateway does not even read, the status can't get through: don't wait for that.
            with suppress(TimeoutError):
                await asyncio.wait_for(context.abort(grpc.StatusCode[reason.grpc_code], str(reason)), 1.0)

    async def _hello(self, context: _Context) -> Hello:
        try:
            frame = await asyncio.wait_for(context.read(), HELLO_SECONDS)
        except TimeoutError:
            raise ProtocolError("no Hello came", where=context.peer()) from None
        if not isinstance(frame, GatewayFrame) or not frame.HasField("hello"):
            raise ProtocolError("the first frame has to be a Hello", where=context.peer())
        if frame.hello.protocol_version != PROTOCOL_VERSION:
            spoken, ours = frame.hello.protocol_version, PROTOCOL_VERSION
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{self._worker_id} speaks session protocol {ours}, {frame.hello.gateway_id} speaks {spoken}",
            )
        return frame.hello

    def _welcome(self) -> Welcome:
        return Welcome(
            worker_id=self._worker_id,
            epoch=self._epoch,
            protocol_version=PROTOCOL_VERSION,
            facts=facts_message(self._engine.facts),
        )

    async def _read(self, context: _Context, link: Link) -> None:
        while isinstance(frame := await context.read(), GatewayFrame):
            kind = frame.WhichOneof("kind")
            if kind == "submit":
                await self._submit(link, frame.submit)
            elif kind == "abort":
                await self._abort(link, frame.abort.wire_ids)
            elif kind == "release":
                await self._release(link, frame.release)
            else:
                raise ProtocolError(f"unexpected frame: {kind or 'empty'}", where=link.gateway_id)
        if isinstance(frame, Unreadable):
            raise ProtocolError("a frame that can't be read", where=link.gateway_id)

    async def _write(self, context: _Context, link: Link) -> None:
        while True:
            step = await link.next(HEARTBEAT_SECONDS) or self._step(link)
            link.enclose_news(step)
            await context.write(WorkerFrame(step=step))

    async def _submit(self, link: Link, submit: Submit) -> None:
        refusal = self._refusal(submit)
        if refusal is None:
            try:
                request = wire.decode_request(submit.request)
            except ProtocolError as error:
                refusal = (Rejected.INVALID, str(error))
            else:
                fault = fault_of(submit.wire_id, request, self._engine.facts, self._engine.vocabulary)
                refusal = (Rejected.INVALID, fault) if fault else None
        if refusal is not None:
            self._reject(link, submit.wire_id, *refusal)
            return
        self._live[submit.wire_id] = Work(
            submit.wire_id,
            link,
            collects=bool(wire.transfer_params(request).get("do_remote_prefill")),
            trace=dict(submit.trace),
            prompt_tokens=len(request.prompt_token_ids or ()),
        )
        link.wire_ids.add(submit.wire_id)
        await self._engine.submit(request)

    def _reject(self, link: Link, wire_id: str, reason: Rejected.Reason, detail: str) -> None:
        step = self._step(link)
        step.rejected.add(wire_id=wire_id, reason=reason, detail=detail)
        link.send(step)

    def _refusal(self, submit: Submit) -> tuple[Rejected.Reason, str] | None:
        """Why the worker won't take a request, whatever is in it."""
        if not submit.wire_id:
            return Rejected.INVALID, "no wire id"
        if submit.wire_id in self._live:
            return Rejected.INVALID, "this wire id is in use"
        if self.draining:
            return Rejected.DRAINING, f"{self._worker_id} is draining"
        if len(self._live) >= self._max_live:
            return Rejected.BUSY, f"{self._worker_id} has {len(self._live)} requests"
        return None

    async def _abort(self, link: Link, wire_ids: Sequence[str]) -> None:
        owned = [wire_id for wire_id in dict.fromkeys(wire_ids) if wire_id in link.wire_ids]
        now = time.monotonic()
        while self._aborted and next(iter(self._aborted.values()))[1] < now:
            del self._aborted[next(iter(self._aborted))]
        for wire_id in owned:
            link.wire_ids.discard(wire_id)
            self._live.pop(wire_id).end(self._role, "aborted")
            self._aborted[wire_id] = (link, now + LATE_SECONDS)
        if owned:
            await self._engine.abort(owned)

    async def _release(self, link: Link, release: worker_pb2.Release) -> None:
        try:
            transfer = json.loads(release.transfer)
        except (ValueError, RecursionError):
            transfer = None
        if not isinstance(transfer, dict) or not release.wire_id or release.wire_id in self._live:
            fault: str | None = "a release needs a transfer object and an id of its own"
        else:
            fault = transfer_fault(transfer)
        if fault:
            self._reject(link, release.wire_id, Rejected.INVALID, fault)
        else:
            await self._engine.release(release.wire_id, transfer)

    async def _forget(self, link: Link) -> None:
        with suppress(WorkerLost):  # then there is nothing left to abort
            await self._abort(link, list(link.wire_ids))

    def _distribute(self, step: EngineStep) -> None:
        if step.load_only and step.load == self.load:
            return
        self.load = step.load
        by_link: dict[Link, list[wire.Output]] = {}
        for output in step.outputs:
            work = self._live.get(output.request_id)
            if work is None:
                if link := self._late(output):
                    by_link.setdefault(link, []).append(output)
                continue
            work.note(output)
            by_link.setdefault(work.link, []).append(output)
            if output.finished:
                del self._live[work.wire_id]
                work.link.wire_ids.discard(work.wire_id)
                work.end(self._role, str(output.finish_reason))
        news = self._cache_news(step.kv_events) if step.kv_events else None
        for link in self._links:
            if news is not None:
                link.backlog.add(news)
            message = self._step(link)
            if outputs := by_link.get(link):
                message.outputs.extend(wire.encode_outputs(outputs, step.timestamp))
            if step.transfers:
                message.transfers.CopyFrom(transfers_message(step.transfers))
            link.send(message)

    def _cache_news(self, found: Sequence[CacheEvent]) -> CacheNews:
        news = self._mirror.take(found)
        missed = self._mirror.unplaced + self._mirror.misshapen
        if missed >= self._next_warning:
            _log.warning("cached_blocks_not_told", unplaced=self._mirror.unplaced, misshapen=self._mirror.misshapen)
            self._next_warning = 10 * missed
        return news

    def _late(self, output: wire.Output) -> Link | None:
        """Who gets an output of a request that was aborted in the meantime: a prefill that still came to its end has
        pinned blocks, and whoever asked for it has to have them released."""
        link, _ = self._aborted.pop(output.request_id, (None, 0.0))
        return link if output.kv_transfer_params else None

    def _step(self, link: Link) -> Step:
        return Step(load=load_message(self.load), draining=self.draining, own_requests=len(link.wire_ids))


def _ending(link: Link, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Runs one direction of a stream; its end, good or bad, is the session's."""

    async def run() -> None:
        try:
            await work
        except SegueError as error:
            link.end(error)
        except (grpc.aio.UsageError, grpc.aio.AbortError):
            link.end(None)  # the call is over, before this direction heard of it
        except Exception as error:
            _log.error("session_broke", error, gateway=link.gateway_id)
            link.end(SegueError(f"the session broke: {type(error).__name__}", where=link.gateway_id))
        else:
            link.end(None)

    return asyncio.get_running_loop().create_task(run())
