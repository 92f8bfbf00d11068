"""A gateway's Prometheus metrics. Their table, with units and labels, is in docs/observability.md.

Every series carries ``gateway``, so that processes which share a port never pass for one another.
All methods are for one thread (the event loop's); gauges are kept as plain values and become series when scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from orchestrator.core.admission import Admission
from orchestrator.core.types import Load, RequestReport, WorkerInfo, WorkerState
from orchestrator.telemetry.admission_metrics import AdmissionMetrics
from orchestrator.telemetry.brain_metrics import BrainMetrics
from orchestrator.telemetry.histogram import StepHistogram
from orchestrator.telemetry.process_metrics import ProcessMetrics

_TTFT = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_GAP = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
_QUEUE = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TRANSFER = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOTAL = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)

Place = tuple[str, str, str]
"""(model, pool, worker); pool is a role: prefill, decode or serve."""


@dataclass(slots=True)
class _Worker:
    """What is counted of one worker."""

    gaps: StepHistogram
    load: Load | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0


class GatewayMetrics:
    """What one gateway process counts."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self.registry = CollectorRegistry()
        self.brain = BrainMetrics(gateway, self.registry)
        self._workers: dict[Place, _Worker] = {}
        self._places: dict[tuple[str, str], Place] = {}
        self._states: dict[tuple[str, str], dict[str, int]] = {}
        self._requests = self._counter("segue_requests", "Sequences that ended, by outcome", "model", "outcome")
        self._refused = self._counter("segue_refused", "Requests refused before they were sequences", "edge", "code")
        self._ttft = self._histogram("segue_ttft_seconds", "From arrival to the first token", _TTFT)
        self._total = self._histogram("segue_request_seconds", "From arrival to the end", _TOTAL)
        self._queue = self._histogram("segue_queue_seconds", "From arrival to a worker", _QUEUE)
        self._prefill = self._histogram("segue_prefill_seconds", "Prefill as the gateway saw it", _TTFT)
        self._transfer = self._histogram("segue_kv_transfer_seconds", "From hand-over to the first token", _TRANSFER)
        self._moved = self._counter(
            "segue_kv_transfer_bytes", "KV cache moved between workers", "model", "pool", "worker"
        )
        self._moves = self._counter(
            "segue_kv_transfers", "Hand-overs from prefill to decode", "model", "pool", "worker", "outcome"
        )
        self.registry.register(_Live(self))

    def admission(self, admission: Admission, models: Collection[str], tenants: Collection[str]) -> None:
        """From now on tells of this admission too; ``models`` and ``tenants`` are those that have series."""
        self.registry.register(AdmissionMetrics(self._gateway, admission, models, tenants))

    def process(self, open_requests: Callable[[], int], sessions: Callable[[], int]) -> None:
        """From now on tells too what this process holds."""
        self.registry.register(ProcessMetrics(self._gateway, open_requests, sessions))

    def request_finished(self, report: RequestReport) -> None:
        """One sequence ended, however it did."""
        labels = (self._gateway, report.model)
        self._requests.labels(*labels, report.outcome).inc()
        self._total.labels(*labels).observe(report.total_seconds)
        for histogram, seconds in (
            (self._ttft, report.ttft_seconds),
            (self._queue, report.queue_seconds),
            (self._prefill, report.prefill_seconds),
            (self._transfer, report.transfer_seconds),
        ):
            if seconds is not None:
                histogram.labels(*labels).observe(seconds)
        self._read(report)

    def refused(self, edge: str, code: str) -> None:
        """A client got an error at ``edge`` (http or grpc) for something that no worker ever saw."""
        self._refused.labels(self._gateway, edge, code).inc()

    def tokens(self, model: str, pool: str, worker: str, gap_seconds: float | None, count: int) -> None:
        """A sequence got ``count`` tokens, ``gap_seconds`` after the ones before; None for its first."""
        place = (model, pool, worker)
        entry = self._workers.get(place) or self._enter(place)
        entry.output_tokens += count
        if gap_seconds is not None and count:
            entry.gaps.observe(gap_seconds / count, count)

    def worker_load(self, model: str, pool: str, worker: str, load: Load) -> None:
        """A worker's account of its newest step."""
        place = (model, pool, worker)
        (self._workers.get(place) or self._enter(place)).load = load

    def worker_gone(self, model: str, pool: str, worker: str) -> None:
        """Drops all series of a worker that will not come back under this id."""
        self._workers.pop((model, pool, worker), None)
        self._places.pop((model, worker), None)
        self.brain.worker_gone(model, worker)
        self._moved.remove_by_labels({"model": model, "worker": worker})
        self._moves.remove_by_labels({"model": model, "worker": worker})

    def transfers(self, model: str, pool: str, worker: str, outcome: str, kv_bytes: int, count: int = 1) -> None:
        """Hand-overs to ``worker`` that ended as ``outcome``: moved, recomputed, or lost."""
        self._moves.labels(self._gateway, model, pool, worker, outcome).inc(count)
        self._moved.labels(self._gateway, model, pool, worker).inc(kv_bytes)

    def fleet(self, workers: Iterable[WorkerInfo]) -> None:
        """All workers that this gateway knows, replacing what it knew before."""
        states: dict[tuple[str, str], dict[str, int]] = {}
        for worker in workers:
            pool = states.setdefault((worker.model, worker.role.value), dict.fromkeys(_STATES, 0))
            pool[worker.state.value] += 1
        emptied = {pool: dict.fromkeys(_STATES, 0) for pool in self._states if pool not in states}
        self._states = states | emptied

    def render(self) -> tuple[bytes, str]:
        """The text exposition, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _read(self, report: RequestReport) -> None:
        worker = report.prefill_worker or report.decode_worker
        if not worker:  # it never got so far as to be read
            return
        # A worker that is gone gets no series again: its tokens count for the model alone.
        place = self._places.get((report.model, worker), (report.model, "", ""))
        (self._workers.get(place) or self._enter(place)).prompt_tokens += report.prompt_tokens

    def _enter(self, place: Place) -> _Worker:
        model, _, worker = place
        if worker:
            self._places[model, worker] = place
        entry = self._workers[place] = _Worker(StepHistogram(_GAP))
        return entry

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, ("gateway", *labels), registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_text, ("gateway", "model"), registry=self.registry, buckets=buckets)


_STATES = tuple(state.value for state in WorkerState)
_PLACE_LABELS = ("gateway", "model", "pool", "worker")


class _Live(Collector):
    """Makes series of what ``GatewayMetrics`` keeps as plain values."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield self._states()
        yield from self._loads()
        yield from self._tokens()

    def _states(self) -> Metric:
        family = GaugeMetricFamily("segue_workers", "Workers by state", labels=("gateway", "model", "pool", "state"))
        for (model, pool), states in list(self._metrics._states.items()):
            for state, count in states.items():
                family.add_metric((self._metrics._gateway, model, pool, state), count)
        return family

    def _loads(self) -> Iterator[Metric]:
        running = _gauge("segue_running_requests", "Requests in the engine's batch")
        waiting = _gauge("segue_waiting_requests", "Requests in the engine's queue")
        usage = _gauge("segue_kv_usage_ratio", "KV cache in use, 0 to 1")
        blocks = _gauge("segue_kv_blocks_used", "KV cache blocks in use")
        for place, entry in list(self._metrics._workers.items()):
            if entry.load is None:
                continue
            labels = (self._metrics._gateway, *place)
            running.add_metric(labels, entry.load.running)
            waiting.add_metric(labels, entry.load.waiting)
            usage.add_metric(labels, entry.load.kv_usage)
            blocks.add_metric(labels, entry.load.kv_blocks_used)
        yield from (running, waiting, usage, blocks)

    def _tokens(self) -> Iterator[Metric]:
        prompt = CounterMetricFamily("segue_prompt_tokens", "Prompt tokens of ended sequences", labels=_PLACE_LABELS)
        output = CounterMetricFamily("segue_output_tokens", "Tokens that were generated", labels=_PLACE_LABELS)
        gaps = StepHistogram.family("segue_inter_token_seconds", "Time a token after the first", _PLACE_LABELS)
        for place, entry in list(self._metrics._workers.items()):
            labels = (self._metrics._gateway, *place)
            prompt.add_metric(labels, entry.prompt_tokens)
            output.add_metric(labels, entry.output_tokens)
            entry.gaps.add_to(gaps, labels)
        yield from (prompt, output, gaps)


def _gauge(name: str, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, labels=_PLACE_LABELS)
