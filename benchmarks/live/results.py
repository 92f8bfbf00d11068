"""What clients saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Served:
    """One request. ``times``: seconds from sending to each message with tokens; ``counts``: tokens in each.

    ``late``: seconds after its time in the trace that it was sent; the rest is the gateway's own account.
    """

    late: float
    times: Sequence[float]
    counts: Sequence[int]
    error: str = ""
    prefill_worker: str = ""
    decode_worker: str = ""
    cached_tokens: int = 0
    prompt_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    transfer_seconds: float = 0.0
    gateway_ttft_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """Milliseconds; ``itl`` over all gaps of all requests, a message with several tokens counting each."""

    requests: int
    failed: int
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]
    prefix_hit_ratio: float
    apart: float  # share of requests with prefill on a worker of its own
    late_ms: float  # the longest time that a request was sent after its own
    errors: dict[str, int] = field(default_factory=dict)


def read(path: Path) -> list[Served]:
    return [Served(**json.loads(line)) for line in path.read_text().splitlines()]


def summary(served: Sequence[Served]) -> Summary:
    good = [each for each in served if not each.error]
    ttft = [each.times[0] * 1000 for each in good]
    errors: dict[str, int] = {}
    for each in served:
        if each.error:
            errors[each.error] = errors.get(each.error, 0) + 1
    return Summary(
        len(served),
        len(served) - len(good),
        percentiles(ttft),
        percentiles([gap for each in good for gap in gaps_ms(each)]),
        sum(each.cached_tokens for each in good) / max(1, sum(each.prompt_tokens for each in good)),
        sum(bool(each.prefill_worker) for each in good) / max(1, len(good)),
        max((each.late for each in served), default=0.0) * 1000,
        errors,
    )


def gaps_ms(served: Served) -> list[float]:
    """Times between tokens after the first message's; each token of a message gets its share of the gap."""
    gaps = []
    for before, now, count in zip(served.times, served.times[1:], served.counts[1:], strict=False):
        gaps += [(now - before) * 1000 / count] * count
    return gaps


def percentiles(values: Sequence[float], shares: Sequence[float] = (0.5, 0.95, 0.99)) -> dict[str, float]:
    """By nearest rank, named p50 and so on; empty where there are no values."""
    ranked = sorted(values)
    return {f"p{share * 100:g}": ranked[min(len(ranked) - 1, int(share * len(ranked)))] for share in shares if ranked}


def plain(value: Any) -> Any:
    """Dataclasses with slots as JSON's types."""
    return {name: getattr(value, name) for name in value.__slots__}
