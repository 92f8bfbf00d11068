"""Sends spans to an OTLP collector from a background thread, and says once when that does not work."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from orchestrator.telemetry import logs

_ATTEMPT_SECONDS = 5.0
# These report each failed attempt and each dropped span; SaidOnce speaks for them.
_TALKATIVE = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal")


def otlp_exporter(endpoint: str) -> SpanExporter:
    """An exporter to ``http://host:port`` (plain text) or ``https://host:port``."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    insecure = not endpoint.startswith("https://")
    return SaidOnce(OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=_ATTEMPT_SECONDS), endpoint)


class SaidOnce(SpanExporter):
    """Logs the first failure in a row and the recovery after it, nothing between."""

    def __init__(self, inner: SpanExporter, endpoint: str) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._log = logs.events("telemetry")
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                self._log.info("collector_back", endpoint=self._endpoint, spans_lost=self._lost)
            self._lost = 0
            return result
        if not self._lost:
            self._log.warning("collector_unreachable", endpoint=self._endpoint, spans_lost=len(spans))
        self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)
