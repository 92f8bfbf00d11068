"""Running workers for tests: a mock one inside this process, real or mock ones in processes of their own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from vllm.sampling_params import SamplingParams

from orchestrator.core.errors import WorkerLost
from orchestrator.core.spec import Role
from orchestrator.proto import worker_pb2_grpc
from orchestrator.proto.reading import ReadsRequests
from orchestrator.proto.worker_pb2 import Abort, GatewayFrame, Hello, Release, Step, Submit, Welcome
from workers import wire
from workers.mock import MockEngine
from workers.ports import Clock
from workers.session import PROTOCOL_VERSION, SERVER_OPTIONS, WorkerSession

# Small enough to start in seconds and to run out of; the same numbers as the mock pair's.
TINY_ENGINE = {
    "dtype": "float32",
    "max_model_len": 512,
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_seqs": 8,
    "enforce_eager": True,
    "block_size": 32,
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Addresses of a prefill worker and of a decode worker that collects from it."""

    prefill: str
    decode: str


@dataclass(frozen=True, slots=True)
class MockWorker:
    """A worker that answers at ``address`` until its context ends."""

    address: str
    engine: MockEngine
    session: WorkerSession
    server: grpc.aio.Server


@asynccontextmanager
async def mock_worker(
    role: Role | str = Role.SERVE,
    model: str = "test",
    *,
    worker_id: str = "",
    epoch: int = 1,
    clock: Clock | None = None,
    **engine: Any,
) -> AsyncIterator[MockWorker]:
    """A mock worker in this process; ``engine`` are ``workers.mock_settings.MockSettings`` fields."""
    core = MockEngine({"step_seconds": 0.001, **engine}, clock)
    await core.start(lambda stage: None)
    session = WorkerSession(worker_id or f"{model}/{role}/0", epoch, Role(role), model, core)
    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[ReadsRequests()])
    worker_pb2_grpc.add_WorkerServicer_to_server(session, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pump = asyncio.create_task(session.run())
    try:
        yield MockWorker(f"127.0.0.1:{port}", core, session, server)
    finally:
        session.close(WorkerLost("the worker stopped"))
        await asyncio.wait_for(server.stop(0.5), 10)
        await asyncio.wait_for(core.shutdown(), 10)
        with suppress(WorkerLost):
            await asyncio.wait_for(pump, 5)


class WorkerProcess:
    """A worker actor in a process of its own (see ``worker_process``). ``log``: all that it and its children wrote."""

    def __init__(self, log: Path, stop_after: float | None = None, **assignment: Any) -> None:
        self.log = log
        log_dir, name = log.parent, log.stem
        given = {"worker_id": name, "log_dir": str(log_dir), **assignment}
        command = [sys.executable, "-m", "tests.workers.worker_process", json.dumps(given)]
        if stop_after is not None:
            command.append(str(stop_after))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.snapshot: dict[str, Any] = {}

    def ready(self) -> WorkerProcess:
        """Waits until the worker is up."""
        self.snapshot = self.read()
        assert self.snapshot["state"] == "ready", self.snapshot
        return self

    @property
    def address(self) -> str:
        return str(self.snapshot["address"])

    @property
    def engine_pid(self) -> int:
        return int(self.snapshot["engine_pid"])

    def ask(self, order: str) -> dict[str, Any]:
        """Gives an order and returns the snapshot after it."""
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return self.read()

    def ranks(self) -> list[dict[str, Any]]:
        """What each rank says of itself, in an engine that was started with ``weighed.WEIGHED``."""
        return list(self.ask("ranks")["ranks"])

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker died; the end of {self.log}:\n{self.log.read_text()[-3000:]}"
        return dict(json.loads(line))


@contextmanager
def engine_process(role: str, logs: Path, **assignment: Any) -> Iterator[WorkerProcess]:
    """A worker process with a tiny vLLM engine; not yet ready when it is handed out.

    ``stop_after``: it stops by itself after so many seconds, in the middle of its start.
    """
    given = {"role": role, "kv_transfer": role != "serve", "engine": TINY_ENGINE, **assignment}
    worker = WorkerProcess(logs / f"{role}-{time.monotonic_ns()}.log", **given)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.communicate()


class Gateway:
    """The smallest gateway: one session with one worker, everything that came over it kept."""

    def __init__(self, welcome: Welcome, call: Any) -> None:
        self.welcome = welcome
        self.steps: list[Step] = []
        self.outputs: dict[str, list[wire.Output]] = {}
        self.rejected: dict[str, Any] = {}
        self.held: dict[int, None] = {}  # what the prefix cache holds, in the order that it was told
        self.failure: grpc.aio.AioRpcError | None = None
        self._call = call
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())
        # A stream takes one write at a time, and a write that is cancelled cancels the stream.
        self._outbox: asyncio.Queue[GatewayFrame] = asyncio.Queue()
        self._writer = asyncio.create_task(self._write())

    async def submit(
        self,
        wire_id: str,
        prompt: Sequence[int],
        *,
        trace: dict[str, str] | None = None,
        transfer: dict[str, Any] | None = None,
        salt: str | None = None,
        **sampling: Any,
    ) -> None:
        request = make_request(wire_id, prompt, transfer=transfer, **sampling)
        request.cache_salt = salt
        parts = wire.encode_request(request)
        await self.send(submit=Submit(wire_id=wire_id, request=parts, trace=trace or {}))

    async def abort(self, *wire_ids: str) -> None:
        await self.send(abort=Abort(wire_ids=wire_ids))

    async def release(self, wire_id: str, transfer: bytes) -> None:
        await self.send(release=Release(wire_id=wire_id, transfer=transfer))

    async def send(self, **frame: Any) -> None:
        self._outbox.put_nowait(GatewayFrame(**frame))

    async def until(self, condition: Any, seconds: float = 20.0) -> None:
        """Waits until ``condition(self)`` holds, looking again after every frame."""
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(lambda: condition(self) or self.failure), seconds)
        if not condition(self):
            assert self.failure is not None
            raise self.failure

    async def finished(self, wire_id: str, seconds: float = 20.0) -> list[wire.Output]:
        """All outputs of a request, once it has ended."""
        await self.until(lambda g: g.outputs.get(wire_id) and g.outputs[wire_id][-1].finished, seconds)
        return self.outputs[wire_id]

    async def generate(self, wire_id: str, prompt: Sequence[int], **sampling: Any) -> list[int]:
        """The tokens of a request, once it has ended."""
        await self.submit(wire_id, prompt, **sampling)
        return tokens(await self.finished(wire_id))

    async def prefill(self, wire_id: str, prompt: Sequence[int], **sampling: Any) -> dict[str, Any]:
        """Runs a prefill half; returns the transfer parameters for the decode half."""
        asked = {"do_remote_decode": True, "do_remote_prefill": False}
        await self.submit(wire_id, prompt, transfer=asked, **{**sampling, "max_tokens": 1})
        params = (await self.finished(wire_id))[-1].kv_transfer_params
        assert params, "a prefill must end with transfer parameters"
        return dict(params)

    @property
    def load(self) -> Any:
        """The worker's latest account."""
        return self.steps[-1].load

    @property
    def transferred_bytes(self) -> int:
        return sum(step.transfers.bytes for step in self.steps)

    async def ended(self, seconds: float = 20.0) -> grpc.StatusCode:
        """The stream's status, once the worker has ended it."""
        await asyncio.wait_for(self._reader, seconds)
        return await self._call.code()

    async def close(self) -> None:
        self._writer.cancel()
        self._call.cancel()
        await asyncio.gather(self._reader, self._writer, return_exceptions=True)

    async def _write(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader tells of the stream's end
            while True:
                await self._call.write(await self._outbox.get())

    async def _read(self) -> None:
        try:
            while (frame := await self._call.read()) is not grpc.aio.EOF:
                await self._take(frame.step)
        except grpc.aio.AioRpcError as error:
            self.failure = error
        async with self._news:
            self._news.notify_all()

    async def _take(self, step: Step) -> None:
        self.steps.append(step)
        if step.cache.cleared:
            self.held.clear()
        for block in step.cache.removed:
            del self.held[block]
        self.held.update(dict.fromkeys(step.cache.stored))
        for rejected in step.rejected:
            self.rejected[rejected.wire_id] = rejected
        if step.outputs:
            for output in wire.decode_outputs(step.outputs).outputs:
                self.outputs.setdefault(output.request_id, []).append(output)
        async with self._news:
            self._news.notify_all()


@asynccontextmanager
async def gateway(address: str, gateway_id: str = "test", version: int = PROTOCOL_VERSION) -> AsyncIterator[Gateway]:
    """A session with the worker at ``address``, past its Welcome."""
    async with grpc.aio.insecure_channel(address, options=SERVER_OPTIONS) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Session()
        await call.write(GatewayFrame(hello=Hello(gateway_id=gateway_id, protocol_version=version)))
        frame = await asyncio.wait_for(call.read(), 20)
        if frame is grpc.aio.EOF:
            raise AssertionError("the worker ended the session instead of a Welcome")
        peer = Gateway(frame.welcome, call)
        try:
            yield peer
        finally:
            await peer.close()


def make_request(
    wire_id: str, prompt: Sequence[int], *, transfer: dict[str, Any] | None = None, **sampling: Any
) -> wire.Request:
    """A greedy request that takes no notice of the model's end token unless told so."""
    chosen = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, **sampling}
    if transfer is not None:
        chosen["extra_args"] = {"kv_transfer_params": transfer}
    return wire.Request(
        request_id=wire_id,
        prompt_token_ids=list(prompt),
        mm_features=None,
        sampling_params=SamplingParams(**chosen),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def tokens(outputs: Sequence[wire.Output]) -> list[int]:
    return [token for output in outputs for token in output.new_token_ids]
