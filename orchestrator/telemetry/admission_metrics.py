"""What waits in a gateway, and who was turned away, read off its admission when it is scraped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.core.admission import Admission, TurnReason

OTHERS = "other"


class AdmissionMetrics(Collector):
    """Only tenants that the configuration names have series of their own: clients choose names as they like."""

    def __init__(self, gateway: str, admission: Admission, models: Collection[str], tenants: Collection[str]) -> None:
        self._gateway = gateway
        self._admission = admission
        self._models = models
        self._tenants = frozenset(tenants)

    def collect(self) -> Iterator[Metric]:
        labels = ("gateway", "model", "tenant")
        queued = GaugeMetricFamily("segue_queued_requests", "Requests that wait for a worker", labels=labels)
        for (model, tenant), count in self._queued().items():
            queued.add_metric((self._gateway, model, tenant), count)
        labels = ("gateway", "model", "reason")
        turned = CounterMetricFamily("segue_turned_away", "Requests that admission turned away", labels=labels)
        for model in self._models:
            for reason in TurnReason:
                turned.add_metric((self._gateway, model, reason), self._admission.turned_away[model, reason])
        yield from (queued, turned)

    def _queued(self) -> Counter[tuple[str, str]]:
        counts: Counter[tuple[str, str]] = Counter()
        for model in self._models:
            for tenant in (*sorted(self._tenants), OTHERS):
                counts[model, tenant] = 0
        for model, tenant, requests in self._admission.queued():
            counts[model, tenant if tenant in self._tenants else OTHERS] += requests
        return counts
