"""Frames on a worker's port, from a gateway that is none, or is broken."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import grpc
import msgspec
from hypothesis import strategies as st

from orchestrator.proto.worker_pb2 import Abort, GatewayFrame, Hello, Release, Submit, WorkerFrame
from tests.fuzz import judge, messages, values
from tests.fuzz.aim import Aim
from tests.fuzz.http_cases import changed, places
from tests.workers.support import make_request
from workers import wire

METHOD = "/segue.internal.v1.Worker/Session"
CASE_SECONDS = 6.0
LINGER_SECONDS = 0.05
_HELLO = GatewayFrame(hello=Hello(gateway_id="fuzz", protocol_version=1)).SerializeToString()
_IDS = ["a", "b", "c", ""]


@dataclass(frozen=True)
class Session:
    """A stream: its frames as bytes, and how many of the worker's are read before it ends."""

    worker: str
    frames: tuple[bytes, ...] = field(repr=False)
    shown: tuple[str, ...]
    reads: int

    def __repr__(self) -> str:
        return f"{self.worker} reads={self.reads} {[text[:500] for text in self.shown]}"


def _plain(wire_id: str, **sampling: Any) -> Any:
    """A request as msgpack's own lists and maps."""
    (encoded, *_) = wire.encode_request(make_request(wire_id, [5, 6, 7], **{"max_tokens": 4, **sampling}))
    return msgspec.msgpack.decode(encoded)


_RICH = {
    "temperature": 0.5,
    "seed": 1,
    "logprobs": 1,
    "stop_token_ids": [7],
    "logit_bias": {5: 1.0},
    "bad_words": [],
    "min_tokens": 1,
    "n": 2,
    "transfer": {"do_remote_decode": True, "do_remote_prefill": False},
}
_COLLECTS = {
    "do_remote_prefill": True,
    "remote_engine_id": "x",
    "remote_request_id": "y",
    "remote_host": "127.0.0.1",
    "remote_port": 9,
    "remote_block_ids": [1],
    "remote_num_tokens": 3,
}
_packable = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1]),
    st.sampled_from([float("nan"), float("inf"), -1.0, 1e300]),
    st.integers(-10, 600),
    st.sampled_from(["", "a", "x" * 5000, "é"]),
    st.binary(max_size=10),
    st.lists(st.integers(-5, 2**32), max_size=4),
    st.lists(st.one_of(st.none(), st.text("ab", max_size=3), st.lists(st.integers(0, 9), max_size=2)), max_size=3),
    st.dictionaries(
        st.text("abc", max_size=4), st.one_of(st.integers(-5, 5), st.none(), st.text("ab", max_size=3)), max_size=3
    ),
    st.just([1] * 100_000),
    st.just(_COLLECTS),
    st.just({"kv_transfer_params": _COLLECTS}),
)
_FIELDS = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "structured_outputs",
    "extra_args",
    "n",
    "repetition_penalty",
    "presence_penalty",
    "output_kind",
    "skip_clone",
    "logprob_token_ids",
    "_bad_words_token_ids",
    "_all_stop_token_ids",
    "_eos_token_id",
    "thinking_token_budget",
    "repetition_detection",
    "watermarking",
]


@st.composite
def _submits(draw: st.DrawFn) -> tuple[GatewayFrame, str]:
    wire_id = draw(st.sampled_from(_IDS[:3]))
    body = _plain(wire_id, **draw(st.sampled_from([{}, _RICH, {"transfer": _COLLECTS}])))
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.booleans()) and isinstance(body[3], dict):
            inside = {**body[3], draw(st.sampled_from(_FIELDS)): draw(_packable)}
            body = [*body[:3], inside, *body[4:]]
            continue
        at = draw(st.sampled_from([place for place in places(body) if place]))
        new = draw(_packable)
        body = changed(body, at, lambda inside, key, new=new: inside.__setitem__(key, new))
    if draw(st.integers(0, 5)) == 0:
        body = [*body, *draw(st.lists(_packable, max_size=12))]
    packed = msgspec.msgpack.encode(body)
    if draw(st.integers(0, 4)) == 0:
        packed = draw(messages.damaged(packed))
    parts = [packed, *draw(st.lists(st.binary(max_size=16), max_size=2))]
    named = draw(st.sampled_from([wire_id] * 6 + _IDS))
    trace = draw(st.sampled_from([{}, {}, {"traceparent": "rubbish", "x": "\x00"}]))
    return GatewayFrame(submit=Submit(wire_id=named, request=parts, trace=trace)), f"submit {named} {str(body)[:400]}"


@st.composite
def _frames(draw: st.DrawFn) -> tuple[bytes, str]:
    kind = draw(st.sampled_from(["submit"] * 6 + ["abort", "release", "any", "hello", "bytes"]))
    if kind == "submit":
        frame, shown = draw(_submits())
    elif kind == "abort":
        ids = draw(st.lists(st.one_of(st.sampled_from(_IDS), st.text("ab", max_size=3)), max_size=5))
        frame, shown = GatewayFrame(abort=Abort(wire_ids=ids)), f"abort {ids}"
    elif kind == "release":
        text = values.dumps(draw(st.one_of(values.anything, st.just(_COLLECTS)))).encode("utf-8", "surrogatepass")
        frame = GatewayFrame(release=Release(wire_id=draw(st.sampled_from(_IDS)), transfer=text))
        shown = f"release {text[:300]!r}"
    elif kind == "any":
        frame = draw(messages.of(GatewayFrame.DESCRIPTOR))  # type: ignore[assignment]
        shown = str(frame)
    elif kind == "hello":
        frame, shown = GatewayFrame(hello=Hello(gateway_id="again", protocol_version=1)), "hello again"
    else:
        damaged = draw(messages.damaged(draw(_submits())[0].SerializeToString()))
        return damaged, f"bytes {damaged[:200]!r}"
    return frame.SerializeToString(), shown


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    """A stream of a few frames."""
    given = draw(st.lists(_frames(), min_size=1, max_size=4))
    frames, shown = [each for each, _ in given], [text for _, text in given]
    if draw(st.integers(0, 12)):
        frames, shown = [_HELLO, *frames], ["hello", *shown]
    worker = draw(st.sampled_from(["together-serve-0", "apart-prefill-0", "apart-decode-0"]))
    return Session(worker, tuple(frames), tuple(shown), draw(st.sampled_from([0, 1, 1, 1, 2])))


class Port:
    """Streams to the target's workers."""

    def __init__(self, aim: Aim) -> None:
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0)]
        self._streams = {
            worker: grpc.insecure_channel(address, options=options).stream_stream(METHOD)
            for worker, address in aim.workers.items()
        }

    def run(self, session: Session) -> str:
        """Sends all frames, reads some of the answers, says goodbye, and judges how the worker took it."""
        read_enough = threading.Event()

        def frames() -> Any:
            yield from session.frames
            read_enough.wait(LINGER_SECONDS)

        stream = self._streams[session.worker](frames(), timeout=CASE_SECONDS)
        rejected = 0
        try:
            for count, data in enumerate(stream, 1):
                rejected += len(WorkerFrame.FromString(data).step.rejected)
                if count > session.reads:
                    read_enough.set()
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from error
            return judge.internal(error)
        finally:
            read_enough.set()
        return "OK, some rejected" if rejected else "OK"
