"""One long-lived session with one worker: opened, watched, and opened again while the fleet lists the worker."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from orchestrator.core.errors import ProtocolError
from orchestrator.core.spec import SILENCE_SECONDS, Device
from orchestrator.core.types import EngineFacts, WorkerInfo
from orchestrator.proto import worker_pb2 as pb
from orchestrator.proto import worker_pb2_grpc
from orchestrator.telemetry import logs
from orchestrator.telemetry.redact import Words

PROTOCOL_VERSION = 1
LOOK_SECONDS = 0.25
RECONNECT_SECONDS = (0.2, 0.5, 1.0, 2.0)
_FRAME_BYTES = 256 << 20  # as workers have it: far above what an engine's step says
REQUEST_BYTES = _FRAME_BYTES - (1 << 20)  # a larger frame would end the session, with all that runs over it
_OPTIONS = (("grpc.max_receive_message_length", _FRAME_BYTES), ("grpc.max_send_message_length", _FRAME_BYTES))

_Outbox = asyncio.Queue[pb.GatewayFrame | None]  # None ends it

log = logs.events("gateway.link")


class LinkEvents(Protocol):
    """Who listens to a link: the driver."""

    def opened(self, link: Link, worker: WorkerInfo) -> None: ...

    def stepped(self, worker_id: str, step: pb.Step) -> None: ...

    def closed(self, link: Link, reason: str) -> None: ...


class _Ear:
    """Ends ``limit`` once nothing was heard for ``seconds``.

    They are counted look by look, not by the clock: a gateway that was stopped heard nothing of workers that were well.
    """

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._looks = self._left = math.ceil(seconds / LOOK_SECONDS)
        self._next = self._loop.call_later(LOOK_SECONDS, self._look)

    def heard(self) -> None:
        self._left = self._looks

    def close(self) -> None:
        self._next.cancel()

    def _look(self) -> None:
        self._left -= 1
        if self._left > 0:
            self._next = self._loop.call_later(LOOK_SECONDS, self._look)
        else:
            self._limit.reschedule(self._loop.time())


class Link:
    """Sends never block: they queue for the one writer that a gRPC stream allows.

    A worker speaks every second, from an event loop that no engine step holds up. One that is silent for
    ``silence_seconds`` is stopped or out of reach: its session is closed, and what ran over it goes on elsewhere.
    """

    def __init__(
        self, worker: WorkerInfo, gateway_id: str, events: LinkEvents, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        self.worker = worker
        self._gateway_id = gateway_id
        self._events = events
        self._silence_seconds = silence_seconds
        self._outbox: _Outbox = asyncio.Queue()
        self._task = asyncio.create_task(self._keep_open(), name=f"link {worker.worker_id}")
        self.open = False

    def submit(self, wire_id: str, request: Sequence[bytes], trace: Mapping[str, str]) -> None:
        """Has the worker's engine run a request."""
        self._outbox.put_nowait(pb.GatewayFrame(submit=pb.Submit(wire_id=wire_id, request=request, trace=trace)))

    def abort(self, wire_id: str) -> None:
        """Ends a request there; one that has ended already is no error."""
        self._outbox.put_nowait(pb.GatewayFrame(abort=pb.Abort(wire_ids=[wire_id])))

    def release(self, wire_id: str, transfer: Mapping[str, Any]) -> None:
        """Has the worker tell the prefill side that nobody will collect ``transfer``."""
        frame = pb.Release(wire_id=wire_id, transfer=json.dumps(transfer).encode())
        self._outbox.put_nowait(pb.GatewayFrame(release=frame))

    async def close(self) -> None:
        """Closes the session for good."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_open(self) -> None:
        failures = 0
        while True:
            try:
                await self._session()
                reason = "the worker ended the session"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except TimeoutError:
                reason = f"nothing heard for {self._silence_seconds:g} s"
            except asyncio.CancelledError:
                self._closed("the worker left the fleet")
                raise
            except Exception as error:
                # A frame that can't be read, or a defect: this session's requests pay for it, no others.
                log.failure("session broke", error, worker=self.worker.worker_id)
                reason = f"its frames could not be taken in ({type(error).__name__})"
            started = self.open
            self._closed(reason)
            failures = 0 if started else failures + 1
            await asyncio.sleep(RECONNECT_SECONDS[min(failures, len(RECONNECT_SECONDS) - 1)])

    def _closed(self, reason: str) -> None:
        if self.open:
            self.open = False
            log.warning("session closed", worker=self.worker.worker_id, reason=Words(reason))
            self._events.closed(self, reason)

    async def _session(self) -> None:
        outbox = self._outbox = asyncio.Queue()
        hello = pb.Hello(gateway_id=self._gateway_id, protocol_version=PROTOCOL_VERSION)
        outbox.put_nowait(pb.GatewayFrame(hello=hello))
        async with grpc.aio.insecure_channel(self.worker.address, options=_OPTIONS) as channel:
            call = worker_pb2_grpc.WorkerStub(channel).Session(self._requests(outbox))
            try:
                await self._listen(call)
            finally:
                call.cancel()
                outbox.put_nowait(None)  # what sends them goes on waiting though the worker ended the call

    async def _listen(self, call: Any) -> None:
        """Until the worker ends the session; TimeoutError where it falls silent."""
        async with asyncio.timeout(None) as limit:
            ear = _Ear(limit, self._silence_seconds)
            try:
                while (frame := await call.read()) is not grpc.aio.EOF:
                    ear.heard()
                    self._take(frame)
            finally:
                ear.close()

    @staticmethod
    async def _requests(outbox: _Outbox) -> AsyncIterator[pb.GatewayFrame]:
        while (frame := await outbox.get()) is not None:
            yield frame

    def _take(self, frame: pb.WorkerFrame) -> None:
        if frame.WhichOneof("kind") == "step" and self.open:
            self._events.stepped(self.worker.worker_id, frame.step)
        elif frame.WhichOneof("kind") == "welcome" and not self.open:
            self._check(frame.welcome)
            self.open = True
            self._events.opened(self, _with_facts(self.worker, frame.welcome))

    def _check(self, welcome: pb.Welcome) -> None:
        """A port may have been given to another process since the fleet listed it.

        Raises:
            ProtocolError: whoever answered is not the worker that is meant.
        """
        said, meant = (welcome.worker_id, welcome.epoch), (self.worker.worker_id, self.worker.epoch)
        if said != meant:
            raise ProtocolError(
                f"{said[0]} (epoch {said[1]}) answers instead of {meant[0]} (epoch {meant[1]})",
                where=self.worker.address,
            )


def _with_facts(worker: WorkerInfo, welcome: pb.Welcome) -> WorkerInfo:
    facts = welcome.facts
    return WorkerInfo(
        worker_id=worker.worker_id,
        model=worker.model,
        role=worker.role,
        address=worker.address,
        epoch=welcome.epoch,
        facts=EngineFacts(
            block_size=facts.block_size,
            kv_blocks_total=facts.kv_blocks_total,
            kv_block_bytes=facts.kv_block_bytes,
            max_model_len=facts.max_model_len,
            max_num_seqs=facts.max_num_seqs,
            tasks=tuple(facts.tasks),
            kv_events=facts.kv_events,
            weight_bytes=facts.weight_bytes,
            device=Device(facts.device or Device.CPU),
            restores=facts.restores,
            kv_format=facts.kv_format,
        ),
    )
