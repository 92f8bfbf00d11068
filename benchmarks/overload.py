"""Goodput from half of a cluster's capacity to ten times of it, simulated, and live behind a real gateway::

    python -m benchmarks.overload [--json] [--seconds 60] [--live SECONDS]

Simulated: four mock workers in one pool, and two and two apart, with a target of 2 s to the first token; four tenants,
prompts of 512 tokens and answers of 128 on average, arriving at random. Capacity is the offered load from which a tenth
more brings less than 5% more. Goodput is requests a second that finished with their first token within 2 s and a mean
gap of at most 100 ms, after a warm-up of 10 s; the mean of three runs. Clients that were turned away
stay away, or come again up to six times: after as long as they were told and up to half of that more (polite), or
within 50 ms (storm).

Live (``--live``): a real gateway over HTTP in front of mock workers, at six times what they can serve. It, its workers
and its clients share this machine, so rejects take as long as the processors are busy.

Ends with 1 where goodput at ten times capacity is below 95% of the peak, or over 5% of what was served was not in time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from typing import Any

from benchmarks.live import overload as live
from orchestrator import config
from orchestrator.core.spec import ClusterSpec, Role, SloSpec
from orchestrator.sim.measure import Slo, percentiles
from orchestrator.sim.run import Options, Result, simulate
from orchestrator.sim.traces import Limits, offers

ENGINE = {"block_size": 16, "kv_blocks": 2048, "max_num_seqs": 16, "max_model_len": 4096}
TTFT, GAP = 2.0, 0.1
WARM_UP = 10.0
BAR, IN_TIME = 0.95, 0.95
TIMES = (0.5, 1.0, 2.0, 4.0, 10.0)
TRIES, SEEDS = 6, 3


def cluster(roles: tuple[Role, ...]) -> ClusterSpec:
    pools = {role.value: {"backend": "mock", "replicas": 4 // len(roles)} for role in roles}
    model = {"name": "mock", "source": "tiny:llama", "engine": ENGINE, "pools": pools}
    spec = config.parse({"cluster": {"name": "overload"}, "models": [model]}, "benchmark")
    return replace(spec, models=(replace(spec.models[0], slo=SloSpec(ttft_ms=1e3 * TTFT)),))


def offered(spec: ClusterSpec, rate: float, seconds: float, seed: int, **clients: Any) -> dict[str, Any]:
    """One run at ``rate`` requests a second."""
    asked = offers("generate:poisson,tenants=4", 16, Limits(rate=rate, duration=seconds), seed, 4)
    result = simulate(spec, spec.models[0], asked, Options(seed=seed, slo=Slo(TTFT, GAP), **clients))
    return {"rate": rate, **_row(result, seconds)}


def mean(spec: ClusterSpec, rate: float, seconds: float, seed: int, **clients: Any) -> dict[str, Any]:
    """Of as many runs as there are seeds; counts are sums, times those of the worst."""
    rows = [offered(spec, rate, seconds, seed + number, **clients) for number in range(SEEDS)]
    found: dict[str, Any] = {"rate": rate}
    for name in ("goodput", "in_time", "at_once"):
        found[name] = sum(row[name] for row in rows) / len(rows)
    for name in ("rejects", "failed"):
        found[name] = sum(row[name] for row in rows)
    for name in ("ttft_ms", "reject_ms"):
        found[name] = {percent: max(row[name][percent] or 0.0 for row in rows) for percent in rows[0][name]}
    return found


def _row(result: Result, seconds: float) -> dict[str, Any]:
    measure = result.measure
    moments = [moment for moment in measure.moments if WARM_UP < moment.at <= seconds]
    length = moments[-1].at - moments[0].at
    return {
        "goodput": sum(moment.good for moment in moments[1:]) / length,
        "in_time": measure.good / max(1, measure.outcomes["finished"]),
        "ttft_ms": percentiles(measure.ttft),
        "reject_ms": percentiles(measure.rejects),
        "at_once": sum(each == 0.0 for each in measure.rejects) / max(1, len(measure.rejects)),
        "rejects": len(measure.rejects),
        "errors": measure.errors,
        "failed": measure.outcomes["failed"],
    }


def capacity(spec: ClusterSpec, seconds: float, seed: int) -> float:
    """Requests a second beyond which a tenth more brings less than 5% more goodput."""
    rate, best = 8.0, 0.0
    while True:
        found = offered(spec, rate, seconds, seed)["goodput"]
        if found < 1.05 * best:
            return rate / 1.1
        rate, best = rate * 1.1, found


def swept(roles: tuple[Role, ...], seconds: float, seed: int) -> list[dict[str, Any]]:
    """From half of the capacity to ten times, and at ten times with clients that come again."""
    spec = cluster(roles)
    full = capacity(spec, seconds, seed)
    name = " and ".join(roles)
    rows = [{"pools": name, "times": t, "clients": "", **mean(spec, t * full, seconds, seed)} for t in TIMES]
    for clients, storm in (("polite", False), ("storm", True)):
        more = mean(spec, 10.0 * full, seconds, seed, retries=TRIES, storm=storm)
        rows.append({"pools": name, "times": 10.0, "clients": clients, **more})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals, simulated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--live", type=float, default=0.0, help="seconds of a live run")
    args = parser.parse_args()
    met = True
    everything: list[dict[str, Any]] = []
    for roles in ((Role.SERVE,), (Role.PREFILL, Role.DECODE)):
        rows = swept(roles, args.seconds, args.seed)
        peak = max(row["goodput"] for row in rows if not row["clients"] and row["times"] < 10)
        for row in rows:
            row["of_peak"] = row["goodput"] / peak
            met &= row["times"] < 10 or (row["of_peak"] >= BAR and row["in_time"] >= IN_TIME and not row["failed"])
        everything += rows
    answer: dict[str, Any] = {"simulated": everything, "met": bool(met)}
    if args.live:
        answer["live"] = asyncio.run(live.measured(args.live, args.seed))
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        _print(answer)
    return 0 if met else 1


def _print(answer: dict[str, Any]) -> None:
    print(
        "pools              times  clients  offered/s goodput/s  of peak  in time  TTFT p99  "
        "rejects  at once  reject p99"
    )
    for row in answer["simulated"]:
        print(
            f"{row['pools']:18} {row['times']:6g}  {row['clients'] or '-':7} {row['rate']:10.0f} {row['goodput']:9.1f} "
            f"{row['of_peak']:8.0%} {row['in_time']:8.1%} {row['ttft_ms']['p99']:6.0f} ms {row['rejects']:8} "
            f"{row['at_once']:8.1%} {row['reject_ms']['p99'] or 0.0:8.0f} ms"
        )
    if "live" in answer:
        print(json.dumps(answer["live"], indent=2))
    print("met" if answer["met"] else "missed")


if __name__ == "__main__":
    sys.exit(main())
