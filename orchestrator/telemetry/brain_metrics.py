"""What a gateway's brain has to say of itself: how well it predicts, and what it is alarmed about."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge


class BrainMetrics:
    """Gauges that change rarely; for one thread."""

    def __init__(self, gateway: str, registry: CollectorRegistry) -> None:
        self._gateway = gateway
        self._error = Gauge(
            "segue_prefix_prediction_error_ratio",
            "Cached tokens: mean difference between predicted and found, as a share of the prompt",
            ("gateway", "model"),
            registry=registry,
        )
        self._bias = Gauge(
            "segue_prefix_prediction_bias_ratio",
            "The same with its sign: above 0 where more was predicted than found",
            ("gateway", "model"),
            registry=registry,
        )
        self._out = Gauge(
            "segue_worker_out",
            "1 while a worker is taken out of its pool by evidence from its requests",
            ("gateway", "model", "pool", "worker"),
            registry=registry,
        )
        self._alerts = Gauge(
            "segue_alert",
            "1 while something is wrong that no single request shows",
            ("gateway", "kind", "model"),
            registry=registry,
        )

    def worker_out(self, model: str, pool: str, worker: str, out: bool) -> None:
        """A worker was taken out of its pool as sick, or is back."""
        self._out.labels(self._gateway, model, pool, worker).set(1.0 if out else 0.0)

    def worker_gone(self, model: str, worker: str) -> None:
        """Drops a worker's series."""
        self._out.remove_by_labels({"model": model, "worker": worker})

    def prediction(self, model: str, error: float, bias: float) -> None:
        """The moving averages of one model's predictions."""
        self._error.labels(self._gateway, model).set(error)
        self._bias.labels(self._gateway, model).set(bias)

    def alert(self, kind: str, model: str, raised: bool) -> None:
        """An alert begins, or is over."""
        self._alerts.labels(self._gateway, kind, model).set(1.0 if raised else 0.0)
