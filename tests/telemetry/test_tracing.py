from __future__ import annotations

import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from orchestrator.core.errors import InvalidRequest, WorkerLost
from orchestrator.telemetry import logs, tracing
from orchestrator.telemetry.export import SaidOnce
from tests.telemetry import collector

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
INCOMING = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "vendor=1"}


def test_spans_of_a_request_are_one_trace_across_processes(spans: InMemorySpanExporter) -> None:
    with tracing.active(tracing.start("segue.request", INCOMING)) as request:
        over_the_wire = tracing.inject(request)
    worker_side = tracing.start("segue.prefill", over_the_wire)
    worker_side.end()
    tracing.record("segue.kv_transfer", 10.0, 10.5, tracing.inject(worker_side))

    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert {format(span.context.trace_id, "032x") for span in by_name.values()} == {TRACE}
    assert format(_parent(by_name["segue.request"]), "016x") == "00f067aa0ba902b7"
    assert _parent(by_name["segue.prefill"]) == by_name["segue.request"].context.span_id
    assert _parent(by_name["segue.kv_transfer"]) == by_name["segue.prefill"].context.span_id
    assert over_the_wire["tracestate"] == "vendor=1"


def test_a_span_made_afterwards_keeps_its_wall_times_and_attributes(spans: InMemorySpanExporter) -> None:
    tracing.record("segue.decode", 1_700_000_000.25, 1_700_000_001.5, worker="w1", kv_bytes=4096, absent=None)

    (span,) = spans.get_finished_spans()
    assert (span.start_time, span.end_time) == (1_700_000_000_250_000_000, 1_700_000_001_500_000_000)
    assert dict(span.attributes or {}) == {"segue.worker": "w1", "segue.kv_bytes": 4096}


def test_an_error_marks_its_span_and_takes_no_text_along(spans: InMemorySpanExporter) -> None:
    with pytest.raises(KeyError), tracing.active(tracing.start("segue.request", prompt="Dear diary, today")):
        raise KeyError("Dear diary, today")
    tracing.record("segue.decode", 1.0, 2.0, error=WorkerLost("no worker could finish it", where="w1"))

    failed, lost = spans.get_finished_spans()
    assert failed.status.status_code is lost.status.status_code is StatusCode.ERROR
    assert "diary" not in failed.to_json()
    assert lost.status.description == "WorkerLost: w1: no worker could finish it"
    assert (lost.attributes or {})["error.type"] == "worker_lost"


def test_an_error_that_repeats_a_librarys_words_or_a_requests_shows_its_code(spans: InMemorySpanExporter) -> None:
    wrapped = WorkerLost("Dear diary")
    wrapped.__cause__ = ValueError("Dear diary")
    tracing.record("segue.decode", 1.0, 2.0, error=wrapped)
    tracing.record("segue.request", 1.0, 2.0, error=InvalidRequest('invalid regex "Dear diary"'))

    told = [span.status.description for span in spans.get_finished_spans()]
    assert told == ["WorkerLost: worker_lost", "InvalidRequest: invalid_request"]


def test_without_an_exporter_nothing_is_recorded_but_the_trace_goes_on() -> None:
    tracing.init("segue-test")
    with tracing.active(tracing.start("segue.request", INCOMING, model="m")) as span:
        assert not span.is_recording()
        assert tracing.inject(span)["traceparent"] == INCOMING["traceparent"]
        assert tracing.inject()["traceparent"] == INCOMING["traceparent"]
    assert tracing.record("segue.decode", 1.0, 2.0, INCOMING)["traceparent"] == INCOMING["traceparent"]
    assert tracing.inject(tracing.start("segue.request")) == {}


@pytest.mark.parametrize("header", ["", "garbage", f"00-{'0' * 32}-00f067aa0ba902b7-01", "ff-x-y-z"])
def test_a_malformed_traceparent_starts_a_new_trace(spans: InMemorySpanExporter, header: str) -> None:
    tracing.start("segue.request", {"traceparent": header}).end()

    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert span.context.trace_id


def test_a_caller_that_does_not_sample_is_not_recorded(spans: InMemorySpanExporter) -> None:
    unsampled = {"traceparent": INCOMING["traceparent"][:-2] + "00"}
    tracing.start("segue.request", unsampled).end()

    assert spans.get_finished_spans() == ()


def test_a_collector_gets_spans_by_otlp_with_the_process_named() -> None:
    with collector.running() as there:
        tracing.init("segue-worker", there.endpoint, {"segue.worker": "w1"})
        tracing.record("segue.prefill", 1.0, 2.0, INCOMING, prompt_tokens=17)
        assert tracing.shutdown(10.0)

    span = there.spans()["segue.prefill"]
    assert span.trace_id.hex() == TRACE
    assert {each.key: each.value.int_value for each in span.attributes} == {"segue.prompt_tokens": 17}
    resource = {each.key: each.value.string_value for each in there.resources[0].resource.attributes}
    assert resource["service.name"] == "segue-worker"
    assert resource["segue.worker"] == "w1"


def test_a_collector_that_hangs_delays_neither_requests_nor_the_end() -> None:
    with collector.running() as there:
        there.answering.clear()
        tracing.init("segue-test", there.endpoint)
        tracing.record("segue.request", 1.0, 2.0)
        assert there.asked.wait(10)

        began = time.monotonic()
        for _ in range(9_000):  # more than are kept
            tracing.record("segue.request", 1.0, 2.0)
        assert time.monotonic() - began < 20  # the collector would keep one waiting for longer
        began = time.monotonic()
        assert not tracing.shutdown(0.2)
        assert time.monotonic() - began < 2


class _Flaky(SpanExporter):
    works = False

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS if self.works else SpanExportResult.FAILURE


def test_an_unreachable_collector_is_said_once_and_so_is_its_return(lines: object) -> None:
    logs.setup("info", lines)  # type: ignore[arg-type]
    inner = _Flaky()
    exporter = SaidOnce(inner, "http://127.0.0.1:1")
    span = ReadableSpan("segue.request")
    for works in (False, False, False, True, True):
        inner.works = works
        exporter.export([span, span])

    said = lines.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(said) == 2
    assert "warning telemetry collector_unreachable endpoint=http://127.0.0.1:1" in said[0]
    assert "info telemetry collector_back" in said[1]
    assert "spans_lost=6" in said[1]


def _parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id
