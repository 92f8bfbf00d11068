"""One trace a request, from the client's own traceparent down to the workers' spans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator.telemetry import tracing
from tests.gateway.support import Stack

TRACE = "0af7651916cd43dd8448eb211c80319c"
WORD = "xylophone"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.init("test", processor=SimpleSpanProcessor(exporter))
    yield exporter
    tracing.shutdown()


async def test_both_halves_join_the_clients_trace(stack: Stack, spans: InMemorySpanExporter) -> None:
    body = {"model": "apart", "prompt": f"{WORD} " * 40, "max_tokens": 4}
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    response = await stack.http.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200
    await stack.quiet()
    finished = spans.get_finished_spans()
    assert {span.name for span in finished} >= {
        "segue.request",
        "segue.admission",
        "segue.routing",
        "segue.prefill",
        "segue.decode",
        "segue.worker.prefill",
        "segue.worker.decode",
        "segue.kv_transfer",
    }
    assert {f"{span.context.trace_id:032x}" for span in finished if span.context} == {TRACE}
    by_id = {span.context.span_id: span for span in finished if span.context}
    parents = {
        span.name: by_id[span.parent.span_id].name for span in finished if span.parent and span.parent.span_id in by_id
    }
    assert parents["segue.worker.prefill"] == "segue.prefill"
    assert parents["segue.worker.decode"] == "segue.decode"
    assert parents["segue.prefill"] == parents["segue.decode"] == "segue.request"
    assert WORD not in "".join(span.to_json() for span in finished)
