"""What the driver keeps of a request that is under way: its payload, its halves' wire ids, and its spans."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span

from orchestrator.core.decision import Decision
from orchestrator.core.errors import SegueError
from orchestrator.core.types import RequestReport
from orchestrator.gateway.cluster_core import ClusterCore, EngineCoreRequest
from orchestrator.gateway.context import RequestContext
from orchestrator.telemetry import tracing
from orchestrator.telemetry.redact import Words


@dataclass(slots=True)
class Flight:
    """One sequence. ``transfers`` holds, by prefill wire id, what a decode worker needs to collect its KV."""

    request: EngineCoreRequest
    core: ClusterCore
    context: RequestContext | None
    request_id: str
    started: float = field(default_factory=time.time)
    transfers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    wires: list[str] = field(default_factory=list)
    prefill_wires: set[str] = field(default_factory=set)
    prefix_cached: int | None = None  # prompt tokens that the prefill worker found in its prefix cache
    output_tokens: int = 0
    last_token_at: float = 0.0
    half: Span | None = None

    @property
    def trace(self) -> Mapping[str, str]:
        """The edge's trace context, or what the client sent if the edge opened no span."""
        if self.context is not None and self.context.trace:
            return self.context.trace
        return self.request.trace_headers or {}

    def begin_half(self, name: str, decision: Decision) -> dict[str, str]:
        """Opens the span of a half; returns its W3C headers, for the worker."""
        self.end_half()
        if self.context is not None:
            self.context.placed = True
        now = time.time()
        if not self.wires:
            tracing.record("segue.admission", self.started, now, self.trace, model=self.core.model)
        tracing.record(
            "segue.routing",
            now,
            now,
            self.trace,
            prefill_worker=decision.prefill or "",
            decode_worker=decision.decode,
            reasons=Words("; ".join(decision.reasons)),
        )
        self.half = tracing.start(name, self.trace, request_id=self.request_id)
        return tracing.inject(self.half)

    def end_half(self, **attributes: object) -> None:
        """Closes the span of the half that is under way, if one is."""
        if self.half is not None:
            tracing.note(self.half, **attributes)
            if self.half.is_recording():
                self.half.end()
            self.half = None

    def ended(self, report: RequestReport, error: SegueError | None = None) -> None:
        """The one outcome is known: it goes to the edge, and into the last span."""
        self.end_half(
            outcome=report.outcome,
            output_tokens=report.output_tokens,
            cached_tokens=report.cached_tokens,
            transferred_tokens=report.transferred_tokens,
        )
        if self.context is not None:
            self.context.reports.append(report)
            self.context.error = self.context.error or error
