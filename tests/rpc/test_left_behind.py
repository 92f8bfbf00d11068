"""Requests through a whole gateway and mock workers: what they leave behind in spans and logs."""

from __future__ import annotations

import io
import json
import logging

import grpc.aio
import pytest
import pytest_asyncio
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator.proto import inference_pb2 as pb
from orchestrator.proto import inference_pb2_grpc
from orchestrator.telemetry import logs, tracing
from tests.gateway.support import Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALLER = {"http": 0xA1, "grpc": 0xB2}
DIARY = "Dear diary, zxqv happened today"


@pytest.fixture(scope="session")
def recorded() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def left(shared: Stack, recorded: InMemorySpanExporter) -> tuple[str, set[str]]:
    """The log of one request each way, and one that fails, at the most talkative level; and the texts involved."""
    root, own = logging.getLogger(), logging.getLogger("segue")
    before = root.level, own.level, list(root.handlers)
    stream = io.StringIO()
    logs.setup("debug", stream)
    root.setLevel(logging.DEBUG)
    tracing.init("segue-test", processor=SimpleSpanProcessor(recorded))
    try:
        texts = {DIARY, await _over_http(shared), await _over_grpc(shared)}
        await shared.http.post("/v1/completions", json={"model": "m", "prompt": DIARY, "temperature": DIARY})
        await shared.quiet()
    finally:
        tracing.shutdown()
        root.setLevel(before[0])
        own.setLevel(before[1])
        root.handlers[:] = before[2]
    return stream.getvalue(), texts


def _traceparent(way: str) -> str:
    return f"00-{CALLER[way]:032x}-00f067aa0ba902b7-01"


async def _over_http(stack: Stack) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": DIARY}], "max_tokens": 12}
    response = await stack.http.post("/v1/chat/completions", json=body, headers={"traceparent": _traceparent("http")})
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


async def _over_grpc(stack: Stack) -> str:
    request = pb.GenerateRequest(model="m", text=DIARY, sampling=pb.SamplingParams(max_tokens=12))
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(
            request, timeout=20, metadata=[("traceparent", _traceparent("grpc"))]
        )
        return "".join([s.text async for message in call for s in message.sequences])


def of_trace(recorded: InMemorySpanExporter, way: str) -> dict[str, ReadableSpan]:
    return {span.name: span for span in recorded.get_finished_spans() if span.context.trace_id == CALLER[way]}


@pytest.mark.parametrize("way", CALLER)
async def test_one_request_is_one_trace_from_the_caller_to_both_workers(
    left: object, recorded: InMemorySpanExporter, way: str
) -> None:
    trace = of_trace(recorded, way)
    parents = {
        "segue.request": None,
        "segue.admission": "segue.request",
        "segue.routing": "segue.request",
        "segue.prefill": "segue.request",
        "segue.decode": "segue.request",
        "segue.worker.prefill": "segue.prefill",
        "segue.worker.decode": "segue.decode",
    }
    for name, parent in parents.items():
        above = trace[name].parent
        assert above is not None
        assert above.span_id == (trace[parent].context.span_id if parent else 0x00F067AA0BA902B7), name
    assert trace["segue.decode"].attributes["segue.output_tokens"] == 12  # type: ignore[index]
    reasons = str(trace["segue.routing"].attributes["segue.reasons"])  # type: ignore[index]
    assert reasons
    assert not reasons.startswith("<")  # our own words are not taken for text


async def test_no_text_is_in_spans_or_logs(left: tuple[str, set[str]], recorded: InMemorySpanExporter) -> None:
    log, texts = left
    told = log + json.dumps([span.to_json() for span in recorded.get_finished_spans()])
    for text in texts:
        assert len(text) > 10
        assert text not in told
        assert json.dumps(text)[1:-1] not in told
    assert "zxqv" not in told
