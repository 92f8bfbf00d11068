"""A run's result as an object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.sim.measure import histogram_percentiles, percentiles
from orchestrator.sim.run import Result
from orchestrator.sim.worker import Worker


def as_json(result: Result) -> dict[str, Any]:
    """The result, with stable keys. Ratios are shares of 1; ``goodput`` is one of all offered requests."""
    measure = result.measure
    return {
        "trace_hash": result.trace_hash,
        "requests": result.offered,
        "outcomes": dict(measure.outcomes),
        "errors": dict(sorted(measure.errors.items())),
        "goodput": _ratio(measure.good, result.offered),
        "slo": {"ttft_ms": 1e3 * measure.slo.ttft, "itl_ms": 1e3 * measure.slo.itl},
        "ttft_ms": percentiles(measure.ttft),
        "itl_ms": histogram_percentiles(measure.gaps),
        "prefix_hit_ratio": _ratio(measure.cached_tokens, measure.prompt_tokens),
        "prefix_hit_bound": round(result.bound, 6),
        "busy_max_over_mean": max((pool["max_over_mean"] for pool in pools(result.workers).values()), default=None),
        "pools": pools(result.workers),
        "prefilled_apart": _ratio(measure.apart, len(measure.ttft)),
        "retried": measure.retried,
        "resumed": len(measure.pauses),
        "reject_ms": percentiles(measure.rejects),
        "pause_ms": percentiles(measure.pauses),
        "taken_out": result.taken_out,
        "leases_expired": sum(worker.expired for worker in result.workers),
        "output_tokens": measure.output_tokens,
        "sim_seconds": round(result.seconds, 6),
        "wall_seconds": round(result.wall_seconds, 6),
    }


def pools(workers: Sequence[Worker]) -> dict[str, dict[str, float]]:
    """Busy seconds (time spent in engine steps) of each role's workers: mean, most, and the one over the other."""
    found = {}
    for role in dict.fromkeys(worker.info.role for worker in workers):
        busy = [worker.busy for worker in workers if worker.info.role is role]
        mean = sum(busy) / len(busy)
        found[str(role)] = {
            "replicas": len(busy),
            "busy_mean_seconds": round(mean, 6),
            "busy_max_seconds": round(max(busy), 6),
            "max_over_mean": round(max(busy) / mean, 6) if mean else 1.0,
        }
    return found


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
