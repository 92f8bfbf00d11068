"""The spans of both halves join the gateway's trace, and hold no text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator.telemetry import tracing
from tests.workers.support import gateway, mock_worker

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.init("segue-worker", processor=SimpleSpanProcessor(exporter))
    yield exporter
    tracing.shutdown()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_both_halves_and_the_transfer_between_them_are_spans(spans: InMemorySpanExporter) -> None:
    slow = {"block_size": 16, "kv_block_bytes": 1 << 20, "transfer_bytes_per_second": 1e8}
    async with (
        mock_worker("prefill", **slow) as first,
        mock_worker("decode", **slow) as second,
        gateway(first.address) as prefill,
        gateway(second.address) as decode,
    ):
        transfer = await prefill.prefill("p", list(range(1, 50)), trace=HEADERS)
        await decode.generate("d", list(range(1, 50)), transfer=transfer, trace=HEADERS, max_tokens=5)
    found = by_name(spans)
    assert set(found) == {"segue.worker.prefill", "segue.worker.decode", "segue.kv_transfer"}
    assert {f"{span.context.trace_id:032x}" for span in found.values() if span.context} == {TRACE}
    decoded, moved = found["segue.worker.decode"], found["segue.kv_transfer"]
    assert decoded.parent is not None
    assert f"{decoded.parent.span_id:016x}" == PARENT
    assert moved.parent is not None
    assert decoded.context is not None
    assert moved.parent.span_id == decoded.context.span_id
    assert moved.start_time and moved.end_time and decoded.start_time and decoded.end_time  # noqa: PT018
    # 4 MiB at 100 MB a second.
    assert 0.04 < (moved.end_time - moved.start_time) / 1e9 < 1
    assert decoded.start_time - 5e6 <= moved.start_time < moved.end_time <= decoded.end_time
    told = dict(decoded.attributes or {})
    assert told["segue.output_tokens"] == 5
    assert told["segue.transferred_tokens"] == 49
    assert told["segue.outcome"] == "length"


async def test_an_aborted_request_has_its_span_too(spans: InMemorySpanExporter) -> None:
    async with mock_worker("serve") as worker, gateway(worker.address) as peer:
        await peer.submit("a", [1, 2, 3], max_tokens=10_000, trace=HEADERS)
        await peer.until(lambda g: g.outputs.get("a"))
        await peer.abort("a")
        await peer.until(lambda g: not g.load.running)
    assert dict(by_name(spans)["segue.worker.decode"].attributes or {})["segue.outcome"] == "aborted"


async def test_no_trace_is_asked_of_a_worker_without_a_collector() -> None:
    async with mock_worker("serve") as worker, gateway(worker.address) as peer:
        assert len(await peer.generate("a", [1, 2, 3], trace=HEADERS)) == 8
