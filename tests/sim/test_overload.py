"""Far over its capacity a cluster serves as much as at its peak, and in time; the rest it refuses at once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from orchestrator.core.spec import Role, SloSpec
from orchestrator.sim.measure import Slo, percentiles
from orchestrator.sim.run import Result
from tests.sim.support import cluster, play, requests

ENGINE = {"block_size": 16, "kv_blocks": 2048, "max_num_seqs": 16, "max_model_len": 4096}
CAPACITY = 40.0  # requests a second that four such workers can serve
SECONDS = 25.0
WARM_UP = 5.0
TTFT = 2.0


@cache
def offered(times: float, *roles: str, **options: Any) -> Result:
    """So many times its capacity, of four tenants."""
    spec = cluster(*roles, engine=ENGINE)
    spec = replace(spec, models=(replace(spec.models[0], slo=SloSpec(ttft_ms=1e3 * TTFT)),))
    trace = f"generate:poisson,rate={CAPACITY * times},tenants=4"
    asked = requests(spec, trace, duration=SECONDS)
    replicas = {Role(role): 4 // len(roles) for role in roles}
    return play(spec, asked, replicas=replicas, deep=False, slo=Slo(TTFT, 0.1), **options)


def goodput(result: Result) -> float:
    """Requests a second that were served in time, once the load was there."""
    some = [moment for moment in result.measure.moments if WARM_UP < moment.at <= SECONDS]
    return sum(moment.good for moment in some) / (SECONDS - WARM_UP)


def check(result: Result, peak: float) -> None:
    measure = result.measure
    assert goodput(result) >= 0.95 * peak
    ttft = percentiles(measure.ttft)["p95"]
    assert ttft is not None
    assert ttft <= 1e3 * TTFT
    assert measure.good >= 0.95 * measure.outcomes["finished"]
    assert measure.outcomes["failed"] == 0
    assert set(measure.errors) <= {"overloaded", "cluster_full"}


@pytest.mark.parametrize("roles", [("serve",), ("prefill", "decode")])
def test_goodput_at_ten_times_capacity_is_that_of_the_peak(roles: tuple[str, ...]) -> None:
    peak = max(goodput(offered(times, *roles)) for times in (0.7, 1.0, 1.3))
    for times in (3.0, 10.0):
        check(offered(times, *roles), peak)


def test_rejects_are_told_at_once() -> None:
    rejects = sorted(offered(10.0, "serve").measure.rejects)
    assert len(rejects) > 5000
    assert rejects[int(0.9 * len(rejects))] == 0.0  # before any time has passed
    assert rejects[-1] < TTFT + 0.2


@pytest.mark.parametrize("storm", [False, True])
def test_clients_that_come_again_do_no_harm(storm: bool) -> None:
    peak = max(goodput(offered(times, "serve")) for times in (0.7, 1.0, 1.3))
    result = offered(3.0, "serve", retries=6, storm=storm)
    assert len(result.measure.rejects) > result.offered
    check(result, peak)


def test_without_a_target_nobody_is_let_in_who_would_wait_for_longer_than_anybody_may() -> None:
    spec = cluster(engine=ENGINE, queue_seconds=3.0)
    asked = requests(spec, f"generate:poisson,rate={10 * CAPACITY}", duration=10.0)
    measure = play(spec, asked, replicas={Role.SERVE: 4}, deep=False).measure
    ttft = percentiles(measure.ttft)["p99"]
    assert ttft is not None
    assert ttft < 3000 + 1000
    assert sum(seconds == 0.0 for seconds in measure.rejects) > 0.5 * len(measure.rejects)
