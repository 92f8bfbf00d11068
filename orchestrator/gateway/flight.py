"""What the driver keeps of requests that are under way: payload, wire ids, transfers, spans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span

from orchestrator.core.decision import Decision
from orchestrator.core.errors import SegueError
from orchestrator.core.messages import Sent
from orchestrator.core.types import RequestReport
from orchestrator.gateway.cluster_core import ClusterCore, EngineCoreRequest
from orchestrator.gateway.context import RequestContext
from orchestrator.gateway.underway import happens
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
    resumable: bool = False
    sent: list[int] = field(default_factory=list)  # its output, kept where it may have to go on from there
    longer_prompt: bool = False  # what was sent is the end of its prompt where it is now: no engine is told of it
    worker: str = ""  # that the newest half was sent to
    decode_worker: str = ""
    awaits_token: bool = True  # of the engine that decodes now
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
        if error is not None:
            self.failed(error)

    def failed(self, error: SegueError) -> None:
        """What the edge tells its client. The first error is the one."""
        if self.context is not None:
            self.context.error = self.context.error or error


class Flights:
    """All that are under way, by request and by wire id, and the transfers of prefills that were given up on."""

    def __init__(self) -> None:
        self._by_request: dict[str, Flight] = {}
        self._by_wire: dict[str, Flight] = {}
        self._orphans: dict[str, Mapping[str, Any]] = {}
        self._none = asyncio.Event()
        self._none.set()

    def __bool__(self) -> bool:
        return bool(self._by_request or self._by_wire or self._orphans)

    def everything(self) -> tuple[Flight, ...]:
        return tuple(self._by_request.values())

    def get(self, request_id: str) -> Flight | None:
        return self._by_request.get(request_id)

    def in_stream(self, worker_id: str) -> tuple[Sent, ...]:
        """Those that this worker was decoding, with what they got so far."""
        return tuple(
            Sent(flight.request_id, flight.output_tokens)
            for flight in self._by_request.values()
            if flight.decode_worker == worker_id and flight.output_tokens
        )

    def at(self, worker_id: str) -> tuple[Flight, ...]:
        """Those whose newest half was sent there."""
        return tuple(flight for flight in self._by_request.values() if flight.worker == worker_id)

    def of_wire(self, wire_id: str) -> Flight | None:
        """None for what was aborted, or has ended."""
        return self._by_wire.get(wire_id)

    async def over(self, seconds: float) -> bool:
        """Waits until there are none; False if some are left after ``seconds``."""
        return await happens(self._none, seconds)

    def begin(self, flight: Flight) -> None:
        self._by_request[flight.request_id] = flight
        self._none.clear()

    def sent(self, flight: Flight, wire_id: str, worker_id: str) -> None:
        flight.wires.append(wire_id)
        self._by_wire[wire_id] = flight
        flight.worker = worker_id

    def aborted(self, wire_id: str) -> None:
        self._by_wire.pop(wire_id, None)

    def end(self, request_id: str) -> Flight | None:
        """Takes it out of the books; None if it is not there."""
        flight = self._by_request.pop(request_id, None)
        for wire_id in flight.wires if flight else ():
            self.aborted(wire_id)
        if not self._by_request:
            self._none.set()
        return flight

    def keep_transfer(self, prefill_wire_id: str, transfer: Mapping[str, Any]) -> None:
        """Where a prefill that has ended left its KV."""
        flight = self._by_wire.get(prefill_wire_id)
        (self._orphans if flight is None else flight.transfers)[prefill_wire_id] = transfer

    def take_transfer(self, prefill_wire_id: str) -> Mapping[str, Any] | None:
        """Takes a transfer out of the books."""
        if orphan := self._orphans.pop(prefill_wire_id, None):
            return orphan
        flight = self._by_wire.get(prefill_wire_id)
        return flight.transfers.pop(prefill_wire_id, None) if flight else None
