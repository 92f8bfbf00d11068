"""Spans, joined across processes by W3C trace context and sent by OTLP where a collector is named.

The provider is this module's own, not OpenTelemetry's global one: vLLM and Ray may set that for themselves.
Without an exporter no span is recorded, but an incoming trace id still goes on to whoever is called.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from orchestrator.telemetry import redact
from orchestrator.telemetry.export import otlp_exporter

Parent = Context | Span | Mapping[str, str] | None
"""A span's parent: a context, a span, W3C headers, or None for the span that is current."""

_W3C = TraceContextTextMapPropagator()
_QUEUE_SPANS = 8192  # dropped beyond, so that a slow collector costs spans and never memory
_DELAY_MILLIS = 1000
_provider: TracerProvider | None = None
_tracer: trace.Tracer = trace.NoOpTracer()


def init(
    service_name: str,
    otlp_endpoint: str | None = None,
    attributes: Mapping[str, str] | None = None,
    *,
    exporter: SpanExporter | None = None,
    processor: SpanProcessor | None = None,
) -> None:
    """Sets up this process's spans; a second call replaces the first, whose unsent spans are flushed for a second.

    Args:
        service_name: ``segue-gateway``, ``segue-worker`` or ``segue-controller``.
        otlp_endpoint: ``http://host:4317`` (plain text) or ``https://...``; None records nothing.
        attributes: the resource's own (``segue.cluster``, ``segue.worker`` ...).
        exporter: sends spans elsewhere than to ``otlp_endpoint``, in batches.
        processor: takes each span as it ends, instead of batches.
    """
    global _provider, _tracer
    shutdown(1.0)
    if exporter is None and otlp_endpoint:
        exporter = otlp_exporter(otlp_endpoint)
    if processor is None and exporter is not None:
        processor = BatchSpanProcessor(exporter, max_queue_size=_QUEUE_SPANS, schedule_delay_millis=_DELAY_MILLIS)
    if processor is None:
        return
    resource = Resource.create({"service.name": service_name, "service.namespace": "segue", **(attributes or {})})
    # Without the exit hook: its shutdown has no bound of ours.
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(processor)
    _tracer = _provider.get_tracer("segue")


def tracer() -> trace.Tracer:
    """The tracer of this process; one that records nothing until ``init`` names an exporter."""
    return _tracer


def extract(headers: Mapping[str, str]) -> Context:
    """The context that W3C headers (lower-case names) name; an empty one where they are absent or malformed."""
    return _W3C.extract(headers, context=Context())


def inject(source: Context | Span | None = None) -> dict[str, str]:
    """W3C headers of a span or context (the current one for None); empty where there is no trace."""
    headers: dict[str, str] = {}
    _W3C.inject(headers, context=_context(source))
    return headers


def start(name: str, parent: Parent = None, kind: SpanKind = SpanKind.INTERNAL, **attributes: object) -> Span:
    """A span that begins now. An attribute ``model=`` is sent as ``segue.model``."""
    return _tracer.start_span(name, context=_context(parent), kind=kind, attributes=_attributes(attributes))


@contextmanager
def active(span: Span) -> Iterator[Span]:
    """Makes ``span`` the current one and ends it; an exception marks it as failed, by ``redact``'s rules."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except Exception as error:
            fail(span, error)
            raise


def note(span: Span, **attributes: object) -> None:
    """Adds attributes to a span, named as in ``start``."""
    if span.is_recording():
        span.set_attributes(_attributes(attributes))


def fail(span: Span, error: BaseException) -> None:
    """Marks a span as failed."""
    if span.is_recording():
        span.set_status(Status(StatusCode.ERROR, redact.describe(error)))
        span.set_attribute("error.type", getattr(error, "code", None) or type(error).__name__)


def fail_as(span: Span, code: str) -> None:
    """Marks a span as failed where only an error's code is known."""
    if span.is_recording():
        span.set_status(Status(StatusCode.ERROR, code))
        span.set_attribute("error.type", code)


def record(
    name: str,
    start_seconds: float,
    end_seconds: float,
    parent: Parent = None,
    kind: SpanKind = SpanKind.INTERNAL,
    error: BaseException | None = None,
    **attributes: object,
) -> dict[str, str]:
    """Makes a span of something that is over.

    Args:
        start_seconds: wall time (``time.time``); ``end_seconds`` likewise.

    Returns:
        Its W3C headers.
    """
    span = _tracer.start_span(
        name,
        context=_context(parent),
        kind=kind,
        attributes=_attributes(attributes),
        start_time=_nanoseconds(start_seconds),
    )
    if error is not None:
        fail(span, error)
    if span.is_recording():  # a span that only passes its parent's context on is not ours to end
        span.end(_nanoseconds(end_seconds))
    return inject(span)


def shutdown(timeout_seconds: float = 3.0) -> bool:
    """Sends what is left and stops; True if all of it was done in time. Spans after it are not recorded."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, trace.NoOpTracer()
    if provider is None:
        return True
    # The SDK's own shutdown waits up to 30 s for a collector that does not answer.
    stopping = threading.Thread(target=provider.shutdown, name="segue-span-shutdown", daemon=True)
    stopping.start()
    stopping.join(timeout_seconds)
    return not stopping.is_alive()


def _nanoseconds(seconds: float) -> int:
    # A double holds today's wall time to a quarter of a microsecond; digits beyond would be noise.
    return round(seconds * 1e6) * 1000


def _context(parent: Parent) -> Context | None:
    if isinstance(parent, Span):
        return trace.set_span_in_context(parent, Context())
    if isinstance(parent, Context) or parent is None:
        return parent
    return extract(parent)


def _attributes(values: Mapping[str, object]) -> dict[str, redact.Scalar]:
    return {_dotted(name): value for name, value in redact.fields(values).items()}


def _dotted(name: str) -> str:
    return name if "." in name else f"segue.{name}"
