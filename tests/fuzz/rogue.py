"""Workers that are broken: what they tell a gateway may cost their own requests, and nothing else."""

from __future__ import annotations

import json
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import msgspec
from google.protobuf.message import Message
from hypothesis import strategies as st

from orchestrator.proto import worker_pb2 as pb
from tests.fuzz import judge, messages
from tests.fuzz.aim import Aim
from tests.fuzz.frame_cases import METHOD, _packable
from tests.fuzz.http_cases import Client, Request, changed, places
from workers import wire

MANY = 8
PAUSE_SECONDS = 0.02
THERE_SECONDS = 1.5  # which of so many one has to be back in
_WIRE = "WIRE-ID-OF-THE-REQUEST"
_FACTS = pb.EngineFacts(
    block_size=16, kv_blocks_total=4096, kv_block_bytes=1 << 16, max_model_len=512, max_num_seqs=64, tasks=["generate"]
)


@dataclass(frozen=True)
class Said:
    """One frame. ``content``: outputs as msgpack's own lists, a message, or bytes; ``_WIRE`` stands for the wire id."""

    content: Any
    flip: tuple[int, int] | None = None  # a byte of the outputs that is another: where, and which

    def frame(self, wire_id: str) -> bytes:
        """As bytes, for a request of that wire id."""
        if isinstance(self.content, bytes):
            return self.content
        if isinstance(self.content, Message):
            return self.content.SerializeToString()
        if isinstance(self.content, int):
            rejected = pb.Rejected(wire_id=wire_id, reason=self.content, detail="no")  # type: ignore[arg-type]
            return pb.WorkerFrame(step=pb.Step(rejected=[rejected])).SerializeToString()
        packed = msgspec.msgpack.encode(_named(self.content, wire_id))
        if self.flip is not None:
            at = self.flip[0] % len(packed)
            packed = packed[:at] + bytes([self.flip[1]]) + packed[at + 1 :]
        step = pb.Step(outputs=[packed], load=pb.Load(kv_blocks_total=4096))
        return pb.WorkerFrame(step=step).SerializeToString()


def _named(value: Any, wire_id: str) -> Any:
    if isinstance(value, list):
        return [_named(each, wire_id) for each in value]
    return wire_id if value == _WIRE else value


@dataclass(frozen=True)
class Script:
    """What a rogue says once it has a request, and as what it greets."""

    frames: tuple[Said, ...]
    facts: pb.EngineFacts | None
    body: bytes

    def __repr__(self) -> str:
        return f"{[str(said)[:500] for said in self.frames]} facts={str(self.facts)!r:.300} for {self.body!r}"


@st.composite
def _outputs(draw: st.DrawFn) -> Said:
    finish = draw(st.sampled_from([None, wire.Finish.STOP, wire.Finish.LENGTH, wire.Finish.ERROR, wire.Finish.ABORT]))
    wire_id = draw(st.sampled_from([_WIRE] * 5 + ["unknown", ""]))
    output = wire.Output(wire_id, draw(st.lists(st.integers(0, 600), max_size=3)), finish_reason=finish)
    (encoded, *_) = wire.encode_outputs([output] * draw(st.integers(1, 2)), 0.0)
    body = msgspec.msgpack.decode(encoded)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.sampled_from([place for place in places(body) if place]))
        new = draw(_packable)
        body = changed(body, at, lambda inside, key, new=new: inside.__setitem__(key, new))
    return Said(body, draw(st.one_of(st.none(), st.tuples(st.integers(0, 200), st.integers(0, 255)))))


@st.composite
def _said(draw: st.DrawFn) -> Said:
    kind = draw(st.sampled_from(["outputs"] * 4 + ["step", "any", "bytes", "rejected"]))
    if kind == "outputs":
        return draw(_outputs())
    if kind == "rejected":
        return Said(draw(st.sampled_from([0, 1, 2, 3, 77])))
    if kind == "step":
        return Said(pb.WorkerFrame(step=draw(messages.of(pb.Step.DESCRIPTOR))))  # type: ignore[arg-type]
    frame = draw(messages.of(pb.WorkerFrame.DESCRIPTOR))
    return Said(frame if kind == "any" else draw(messages.damaged(frame.SerializeToString())))


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """A request and what becomes of it."""
    frames = tuple(draw(st.lists(_said(), max_size=4)))
    facts = draw(messages.of(pb.EngineFacts.DESCRIPTOR)) if draw(st.integers(0, 30)) == 0 else None
    asked = {"model": "rogue", "prompt": "a b c", "max_tokens": 4, "stream": draw(st.booleans())}
    if draw(st.booleans()):
        asked |= {"logprobs": 1, "n": 2}
    return Script(frames, facts, json.dumps(asked).encode())  # type: ignore[arg-type]


class Rogues:
    """The servers, and the client whose requests they get."""

    def __init__(self, aim: Aim) -> None:
        self._script = Script((), None, b"")
        self._client = Client(aim)
        self._aim = aim
        self._servers = [self._server(f"rogue-{number}") for number in range(MANY)]
        aim.ask("rogues", addresses=[f"127.0.0.1:{port}" for _, port in self._servers])

    def run(self, script: Script) -> str:
        """Asks for something, and judges the answer: a broken worker may fail its request, by a typed error."""
        self._script = script
        request = Request("/v1/completions", script.body, (("x-request-timeout", b"3"),))
        until = time.monotonic() + THERE_SECONDS
        while True:
            status, kind, body = self._client.send(request)
            outcome = judge.http("/v1/completions", status, kind, body, codes=judge.WORKERS_FAULT)
            if outcome not in ("503 not_ready", "400 unsupported") or time.monotonic() > until:
                return outcome
            # The ones before went, or lied of what they can do: a case is one that reached one.
            time.sleep(PAUSE_SECONDS)

    def close(self) -> None:
        for server, _ in self._servers:
            server.stop(0)

    def _server(self, worker_id: str) -> tuple[grpc.Server, int]:
        server = grpc.server(ThreadPoolExecutor(4))
        _, service, method = METHOD.split("/")
        handler = grpc.stream_stream_rpc_method_handler(lambda frames, _: self._session(worker_id, frames))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return server, port

    def _session(self, worker_id: str, frames: Any) -> Any:
        """Greets, then plays the script for whatever request comes, and leaves if that did not end it."""
        arrived: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_listen, args=(frames, arrived), daemon=True).start()
        facts = self._script.facts or _FACTS
        welcome = pb.Welcome(worker_id=worker_id, epoch=1, protocol_version=1, facts=facts)
        yield pb.WorkerFrame(welcome=welcome).SerializeToString()
        load = pb.Step(load=pb.Load(kv_blocks_total=4096))
        while True:
            try:
                wire_id = arrived.get(timeout=0.3)
            except queue.Empty:
                if facts != (self._script.facts or _FACTS):
                    return  # where most lie of what they can do, nobody is asked for anything
                yield pb.WorkerFrame(step=load).SerializeToString()
                continue
            if wire_id is None:
                return
            for said in self._script.frames:
                yield said.frame(wire_id)
            time.sleep(PAUSE_SECONDS)  # for the other sequences of the request
            if arrived.empty():
                return


def _listen(frames: Any, arrived: queue.Queue[str | None]) -> None:
    try:
        for data in frames:
            frame = pb.GatewayFrame.FromString(data)
            if frame.HasField("submit"):
                arrived.put(frame.submit.wire_id)
    except grpc.RpcError:
        pass
    arrived.put(None)
