from __future__ import annotations

import io
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator.core.errors import WorkerStartFailed
from orchestrator.telemetry import logs, redact, tracing

LOG = logs.events("gateway.link")


def test_an_event_is_one_line_with_time_level_component_and_fields(lines: io.StringIO) -> None:
    LOG.info("session_opened", worker="m-decode-0", attempt=2, seconds=0.123456789, detail=None)

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info gateway\.link session_opened"
        r" worker=m-decode-0 attempt=2 seconds=0\.123457\n",
        lines.getvalue(),
    )


def test_an_event_in_a_request_carries_its_trace_id(lines: io.StringIO, spans: InMemorySpanExporter) -> None:
    with tracing.active(tracing.start("segue.request")) as span:
        LOG.info("admitted")

    assert lines.getvalue().endswith(f"admitted trace={span.get_span_context().trace_id:032x}\n")


def test_an_error_says_what_and_where_and_quotes_no_input(lines: io.StringIO) -> None:
    def deep() -> None:
        raise ValueError("can't parse 'Dear diary'")

    try:
        deep()
    except ValueError as error:
        LOG.error("rpc_failed", error)
    LOG.warning("start_failed", WorkerStartFailed("the engine did not come up", where="w1", hint="see its log"))

    first, second = lines.getvalue().splitlines()
    assert 'error="ValueError"' in first
    assert re.search(r"at=test_logs\.py:\d+:test_an_error\w+>test_logs\.py:\d+:deep$", first)
    assert "diary" not in first
    assert 'error="WorkerStartFailed: w1: the engine did not come up (see its log)"' in second


def test_other_libraries_lines_are_folded_and_their_tracebacks_reduced(lines: io.StringIO) -> None:
    foreign = logging.getLogger("somelib")
    try:
        raise RuntimeError("Dear diary")
    except RuntimeError:
        foreign.exception("went wrong\nbadly")
    foreign.info("not heard")

    (line,) = lines.getvalue().splitlines()
    assert "error somelib went wrong badly" in line
    assert "diary" not in line


def test_the_level_decides_what_is_heard_and_setting_up_twice_does_not_double(lines: io.StringIO) -> None:
    logs.setup("warning", lines)
    LOG.info("quiet")
    LOG.warning("loud")

    assert [line.split()[3] for line in lines.getvalue().splitlines()] == ["loud"]
    with pytest.raises(ValueError, match="verbose"):
        logs.setup("verbose")


_PROSE = st.text(min_size=1).filter(lambda text: not text.isascii() or " " in text or "\n" in text or len(text) > 128)


@given(name=st.from_regex(r"[a-z_]{1,12}", fullmatch=True), text=_PROSE)
def test_no_prose_passes_under_any_name(name: str, text: str) -> None:
    shown = redact.scalar(name, text)
    assert shown == f"<str:{len(text)}>"


@given(name=st.sampled_from(["prompt", "text", "content", "token_ids", "messages", "delta"]), value=st.text(min_size=1))
def test_nothing_passes_under_a_name_for_text(name: str, value: str) -> None:
    assert redact.scalar(name, value) == f"<str:{len(value)}>"
    assert redact.scalar(name, [1, 2, 3]) == "<list:3>"


def test_our_own_sentences_pass(lines: io.StringIO) -> None:
    LOG.info("routed", reasons=redact.Words("least loaded; 17 waiting elsewhere"))

    assert lines.getvalue().endswith('routed reasons="least loaded; 17 waiting elsewhere"\n')


def test_a_failure_that_is_no_requests_is_told_in_its_own_words(lines: io.StringIO) -> None:
    LOG.failure("start_failed", ValueError("No available memory\nfor the cache blocks"), worker="w1")

    (line,) = lines.getvalue().splitlines()
    assert 'start_failed worker=w1 said="No available memory for the cache blocks" error="ValueError"' in line
