"""Calls of the gateway's typed API, and of the controller's port: valid, nearly valid and not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from hypothesis import strategies as st

from orchestrator.proto import cluster_pb2, fleet_pb2, inference_pb2
from tests.fuzz import judge, messages

CASE_SECONDS = 4.0
ENDLESS = ("Watch",)  # streams that only their caller ends

_GATEWAY = [*inference_pb2.DESCRIPTOR.services_by_name.values(), *cluster_pb2.DESCRIPTOR.services_by_name.values()]
_FLEET = [*fleet_pb2.DESCRIPTOR.services_by_name.values(), *cluster_pb2.DESCRIPTOR.services_by_name.values()]


@dataclass(frozen=True)
class Call:
    """A call as it goes onto the wire. ``reads``: messages after which its caller leaves; None for all of them."""

    method: str
    body: bytes = field(repr=False)
    shown: str
    metadata: tuple[tuple[str, Any], ...] = ()
    timeout: float = CASE_SECONDS
    reads: int | None = None

    def __repr__(self) -> str:
        return (
            f"{self.method} {self.shown[:1000]} {self.body[:300]!r} metadata={str(self.metadata)[:300]} "
            f"timeout={self.timeout} reads={self.reads}"
        )


_values = st.one_of(
    st.sampled_from(
        ["", "nan", "-1", "1e99", "a" * 6000, "x y", "99999999999", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
)
_metadata = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(
                ["x-segue-tenant", "x-segue-priority", "x-segue-session", "x-request-timeout", "traceparent"]
            ),
            _values,
        ),
        st.tuples(st.sampled_from(["x-other-bin", "grpc-trace-bin"]), st.binary(max_size=20)),
    ),
    max_size=3,
).map(tuple)


def _usual() -> st.SearchStrategy[inference_pb2.GenerateRequest]:
    """A request that would be answered, for others to be changed from."""
    sampling = st.builds(
        inference_pb2.SamplingParams, max_tokens=st.integers(1, 3), n=st.integers(1, 2), temperature=st.just(0.5)
    )
    return st.builds(
        inference_pb2.GenerateRequest,
        model=st.sampled_from(["together", "apart"]),
        text=st.sampled_from(["once", "a b c"]),
        sampling=sampling,
    )


@st.composite
def _generate(draw: st.DrawFn) -> inference_pb2.GenerateRequest:
    request = draw(_usual())
    if draw(st.booleans()):
        request.sampling.MergeFrom(draw(messages.of(inference_pb2.SamplingParams.DESCRIPTOR)))  # type: ignore[arg-type]
    if draw(st.booleans()):
        request.MergeFrom(draw(messages.of(inference_pb2.GenerateRequest.DESCRIPTOR)))  # type: ignore[arg-type]
    return request


@st.composite
def _calls(draw: st.DrawFn, services: list[Any]) -> Call:
    methods = [method for service in services for method in service.methods]
    generate = [method for method in methods if method.name == "Generate"]
    method = draw(st.sampled_from([*methods, *generate * 5]))
    whole = draw(_generate() if method.name == "Generate" else messages.of(method.input_type))
    body = whole.SerializeToString()
    if draw(st.integers(0, 3)) == 0:
        body = draw(messages.damaged(body))
    name = f"/{method.containing_service.full_name}/{method.name}"
    if draw(st.integers(0, 40)) == 0:
        name = draw(
            st.sampled_from(["/segue.v1.Inference/Nothing", "/x.Y/Z", "/segue.internal.v1.Worker/Session", "/a"])
        )
    timeout = draw(st.sampled_from([CASE_SECONDS] * 8 + [0.0, 0.0005, 0.005, 0.02]))
    reads = 1 if method.name in ENDLESS else draw(st.sampled_from([None] * 6 + [0, 1, 2]))
    shown = str(whole).replace("\n", " ")
    return Call(name, body, shown, draw(st.one_of(st.just(()), _metadata)), timeout, reads)


calls = _calls(_GATEWAY)
fleet_calls = _calls(_FLEET)


class Caller:
    """A channel to one port."""

    def __init__(self, address: str, judged: Callable[[grpc.RpcError | None], str] = judge.rpc) -> None:
        self._judged = judged
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0)]
        self._channel = grpc.insecure_channel(address, options=options)
        self._methods: dict[str, Any] = {}

    def run(self, call: Call) -> str:
        """Makes the call, reads as far as it says, and judges how it ended."""
        if call.method not in self._methods:
            self._methods[call.method] = self._channel.unary_stream(call.method)  # bytes in, bytes out
        try:
            stream = self._methods[call.method](call.body, timeout=call.timeout, metadata=call.metadata)
            for count, _ in enumerate(stream, 1):
                if call.reads is not None and count >= call.reads:
                    break
            if call.reads is not None:
                stream.cancel()
                return "left"
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and call.timeout == CASE_SECONDS:
                raise TimeoutError from error
            return self._judged(error)
        return self._judged(None)
