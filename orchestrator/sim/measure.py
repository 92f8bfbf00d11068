"""What a run is measured by: each request's times and outcome, tokens' gaps, engines' busy time, queues over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.core import messages as m
from orchestrator.sim.flight import Flight
from orchestrator.sim.histogram import Histogram

OUTCOMES = ("finished", "rejected", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Slo:
    """A request is good if its first token comes within ``ttft`` seconds of its arrival, and the later ones with a mean
    gap of at most ``itl`` seconds."""

    ttft: float = 2.0
    itl: float = 0.1


@dataclass(slots=True)
class Moment:
    """The state at a time, and what happened since the moment before."""

    at: float
    waiting: int  # at gateways
    queued: int  # in engines
    running: int
    arrived: int
    good: int


@dataclass(slots=True)
class Measure:
    """Collects while a run goes on."""

    slo: Slo
    arrived: int = 0
    ended: int = 0
    good: int = 0
    prompt_tokens: int = 0  # of requests that got a first token
    cached_tokens: int = 0
    moved_tokens: int = 0
    output_tokens: int = 0
    retried: int = 0
    rejects: list[float] = field(default_factory=list)  # how long each reject took, of clients that came again too
    pauses: list[float] = field(default_factory=list)  # the longest of each request whose decode was lost
    apart: int = 0  # requests whose prompt was computed by a prefill worker
    last_end: float = 0.0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    errors: dict[str, int] = field(default_factory=dict)  # by code
    ttft: list[float] = field(default_factory=list)
    gaps: Histogram = field(default_factory=Histogram)
    moments: list[Moment] = field(default_factory=list)
    _seen: tuple[int, int] = (0, 0)

    def request_ended(self, flight: Flight, command: m.End, now: float) -> None:
        """A request has its outcome."""
        report = command.report
        self.ended += 1
        self.last_end = now
        self.outcomes[report.outcome] += 1
        self.retried += report.attempts > 1
        if command.error is not None:
            self.errors[command.error.code] = self.errors.get(command.error.code, 0) + 1
        if flight.sent:
            ttft = flight.first_at - flight.arrived_at
            self.ttft.append(ttft)
            self.prompt_tokens += report.prompt_tokens
            self.cached_tokens += report.cached_tokens
            self.moved_tokens += report.transferred_tokens
            self.output_tokens += flight.sent
            if flight.paused >= 0:
                self.pauses.append(flight.paused)
            self.apart += report.prefill_worker != ""
            if report.outcome == "finished" and ttft <= self.slo.ttft:
                self.good += flight.last_at - flight.first_at <= self.slo.itl * (flight.sent - 1) + 1e-9

    def moment(self, at: float, waiting: int, queued: int, running: int) -> None:
        """A look at the queues."""
        arrived, good = self._seen
        self._seen = (self.arrived, self.good)
        self.moments.append(Moment(at, waiting, queued, running, self.arrived - arrived, self.good - good))


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 (the smallest value that so many percent are not above), in milliseconds."""
    ordered = sorted(values)
    return {
        f"p{percent}": round(1e3 * ordered[max(0, -(-len(ordered) * percent // 100) - 1)], 3) if ordered else None
        for percent in (50, 95, 99)
    }


def histogram_percentiles(histogram: Histogram) -> dict[str, float | None]:
    """p50, p95 and p99 in milliseconds, to a quarter of a percent."""
    found = {}
    for percent in (50, 95, 99):
        value = histogram.percentile(percent)
        found[f"p{percent}"] = None if value is None else round(1e3 * value, 3)
    return found
