"""Prefix hits and spread of load when a recorded trace is replayed, for each of a few policies::

    python -m benchmarks.mooncake --trace FILE.jsonl [--json] [--replicas 8] [--speed 1 --speed 3] [--seed 0]

Simulates a trace in Mooncake's format on alike engines, each of which could cache all of it. "of the bound" are prefix
hits over those of one cache without bounds; "busiest" is the busiest worker's time in engine steps over the mean. Ends
with 1 if the default policy is below 95% of the bound or above 1.15 times the mean at any pace that was asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator import config
from orchestrator.core.spec import ClusterSpec, Role, RoutingSpec
from orchestrator.sim.report import as_json
from orchestrator.sim.run import Options, routed, simulate
from orchestrator.sim.traces import Limits, offers

DEFAULT = RoutingSpec().policy
POLICIES = (DEFAULT, "prefix_aware", "power_of_two", "round_robin")
HITS_BAR, BUSY_BAR = 0.95, 1.15
ENGINE = {
    "prefill_tokens_per_second": 20_000.0,
    "step_seconds": 0.01,
    "block_size": 512,  # the trace's own
    "kv_blocks": 65_536,  # all of the trace
    "max_num_seqs": 256,
    "max_model_len": 262_144,
}


def fleet(replicas: int) -> ClusterSpec:
    pool = {"replicas": replicas, "backend": "mock"}
    model = {"name": "mooncake", "source": "tiny:llama", "engine": ENGINE, "pools": {"serve": pool}}
    return config.parse({"cluster": {"name": "benchmark"}, "models": [model]}, "benchmark")


def replayed(trace: str, replicas: int, speed: float, policy: str, seed: int) -> dict[str, Any]:
    """One run, as ``segue sim --json`` tells it, with what the bars are about."""
    spec = fleet(replicas)
    asked = offers(trace, ENGINE["block_size"], Limits(speed=speed), seed, replicas)  # type: ignore[arg-type]
    model = routed(spec.models[0], policy)
    answer = as_json(simulate(spec, model, asked, Options({Role.SERVE: replicas}, seed)))
    answer.update(policy=policy, speed=speed, of_bound=answer["prefix_hit_ratio"] / answer["prefix_hit_bound"])
    return answer


def met(row: dict[str, Any]) -> bool:
    """Whether a run keeps both bars at once."""
    return bool(row["of_bound"] >= HITS_BAR and row["busy_max_over_mean"] <= BUSY_BAR)


def table(rows: list[dict[str, Any]], replicas: int) -> Table:
    drawn = Table(title=f"{rows[0]['requests']} requests on {replicas} replicas", box=None)
    headings = ("speed", "policy", "prefix hits", "of the bound", "busiest", "TTFT p50", "p95", "ITL p95", "")
    for heading in headings:
        drawn.add_column(heading, justify="left" if heading == "policy" else "right")
    for row in rows:
        drawn.add_row(
            f"{row['speed']:g}x",
            row["policy"],
            f"{row['prefix_hit_ratio']:.1%}",
            f"{row['of_bound']:.1%}",
            f"{row['busy_max_over_mean']:.3f}",
            f"{row['ttft_ms']['p50']:,.0f} ms",
            f"{row['ttft_ms']['p95']:,.0f} ms",
            f"{row['itl_ms']['p95']:,.0f} ms",
            "" if row["policy"] != DEFAULT else "met" if met(row) else "missed",
        )
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", required=True, metavar="FILE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument(
        "--speed", type=float, action="append", help="the trace's own pace times this; default: 1 and 3"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [
        replayed(args.trace, args.replicas, speed, policy, args.seed)
        for speed in args.speed or (1.0, 3.0)
        for policy in POLICIES
    ]
    if args.json:
        print(json.dumps({"replicas": args.replicas, "rows": rows}, indent=2))
    else:
        Console(width=120).print(table(rows, args.replicas))
    return 0 if all(met(row) for row in rows if row["policy"] == DEFAULT) else 1


if __name__ == "__main__":
    sys.exit(main())
