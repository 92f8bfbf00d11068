"""A thousand simulated replicas under faults, with every promise checked, and with and without the breaker::

    python -m benchmarks.faults [--json] [--replicas 1000] [--rate 3] [--seconds 30] [--pools one,apart] [--gateways 1]

Requests arrive at random, ``--rate`` a second for each replica, in one pool and in two. In the middle third of the time
a twentieth of all workers crash, as many turn slow (8 times), fail half of what they get, have their sessions break
every other second, or are cut off from one gateway for 3 or 20 s. All along one in a thousand load and cache reports is
lost (a lost cache report breaks its stream), and 5% of load reports come late. The checker is that of every simulated
run: one outcome a request, each token once and in its place, nothing started on a worker that is draining, gone or of
the wrong pool, no more attempts and no longer waits than allowed, and no claim, KV block or lease left at the end. A
broken promise ends the run.

Goodput is the share of requests that finished with their first token within 2 s and a mean gap within three of the
engine's steps, by when they ended. Ends with 1 where a promise was broken, or more than one request in a thousand
failed with the breaker.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from random import Random
from typing import Any

from orchestrator import config
from orchestrator.core.spec import ClusterSpec, Role
from orchestrator.sim.faults import Fault, Kind
from orchestrator.sim.measure import Slo, percentiles
from orchestrator.sim.promise import PromiseBroken
from orchestrator.sim.run import Options, routed, simulate
from orchestrator.sim.traces import Limits, offers

STEP, BLOCK = 0.01, 32
ENGINE = {"block_size": BLOCK, "kv_blocks": 2048, "max_num_seqs": 16, "max_model_len": 4096, "step_seconds": STEP}
POOLS = {"one": (Role.SERVE,), "apart": (Role.PREFILL, Role.DECODE)}
SHARE = 20  # one worker in so many has each kind of fault
SLOW, FAILING = 8.0, 0.5
FAILED_BAR = 1e-3


def cluster(roles: tuple[Role, ...], replicas: int, breaker: bool, policy: str) -> ClusterSpec:
    pools = {role.value: {"backend": "mock", "replicas": replicas // len(roles)} for role in roles}
    model = {"name": "mock", "source": "tiny:llama", "engine": ENGINE, "pools": pools}
    gateway = {"health": {"enabled": breaker}}
    spec = config.parse({"cluster": {"name": "faults"}, "gateway": gateway, "models": [model]}, "benchmark")
    return replace(spec, models=(routed(spec.models[0], policy),))


def faults(replicas: int, gateways: int, seconds: float, rng: Random) -> list[Fault]:
    """Those of the middle third, and the weather."""
    found = [Fault(Kind.LOSE, share=0.001), Fault(Kind.REORDER, share=0.05)]
    names = [str(number) for number in rng.sample(range(replicas), 5 * (replicas // SHARE))]
    third = seconds / 3
    for number, name in enumerate(names):
        at = third + rng.random() * third / 2
        left = 2 * third - at
        match number % 5:
            case 0:
                found.append(Fault(Kind.CRASH, name, at))
            case 1:
                found.append(Fault(Kind.SLOW, name, at, seconds=left, factor=SLOW))
            case 2:
                found.append(Fault(Kind.FAIL, name, at, seconds=left, share=FAILING))
            case 3:
                found.append(Fault(Kind.FLAP, name, at, seconds=left))
            case _:
                found.append(Fault(Kind.PARTITION, name, at, rng.randrange(gateways), rng.choice((3.0, 20.0))))
    return found


def run(roles: tuple[Role, ...], breaker: bool, args: argparse.Namespace) -> dict[str, Any]:
    """One run; raises PromiseBroken where there is reason to."""
    spec = cluster(roles, args.replicas, breaker, args.policy)
    limits = Limits(rate=args.rate * args.replicas, duration=args.seconds)
    asked = offers("generate:poisson", BLOCK, limits, args.seed, args.replicas)
    wrong = faults(args.replicas, args.gateways, args.seconds, Random(f"{args.seed} faults"))
    options = Options(seed=args.seed, gateways=args.gateways, faults=wrong, slo=Slo(2.0, 3 * STEP))
    result = simulate(spec, spec.models[0], asked, options)
    measure, third = result.measure, args.seconds / 3
    parts = {}
    for place, name in enumerate(("before", "during", "after")):
        some = [moment for moment in measure.moments if place * third < moment.at <= (place + 1) * third]
        parts[name] = sum(moment.good for moment in some) / max(1, sum(moment.arrived for moment in some))
    return {
        "pools": " and ".join(roles),
        "breaker": breaker,
        "requests": result.offered,
        "outcomes": measure.outcomes,
        "errors": measure.errors,
        "goodput": parts,
        "ttft_ms": percentiles(measure.ttft),
        "retried": measure.retried,
        "resumed": len(measure.pauses),
        "pause_ms": percentiles(measure.pauses),
        "taken_out": result.taken_out,
        "leases_expired": sum(worker.expired for worker in result.workers),
        "wall_seconds": result.wall_seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second for each replica")
    parser.add_argument("--pools", default="one,apart")
    parser.add_argument("--policy", default="cost")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    try:
        for pools in args.pools.split(","):
            rows += [run(POOLS[pools], breaker, args) for breaker in (True, False)]
    except PromiseBroken as error:
        print(error, file=sys.stderr)
        return 1
    met = all(row["outcomes"]["failed"] <= FAILED_BAR * row["requests"] for row in rows if row["breaker"])
    if args.json:
        print(json.dumps({"runs": rows, "violations": 0, "met": met}, indent=2))
        return 0 if met else 1
    print(f"{args.replicas} replicas, {args.gateways} gateways, {args.policy}: 0 broken promises")
    for row in rows:
        parts = ", ".join(f"{name} {share:.2%}" for name, share in row["goodput"].items())
        print(
            f"{row['pools']:18} {'with   ' if row['breaker'] else 'without'} breaker: {row['requests']} requests, "
            f"{row['outcomes']['failed']} failed, {row['outcomes']['rejected']} rejected; goodput {parts}; TTFT p99 "
            f"{row['ttft_ms']['p99']:.0f} ms; {row['retried']} retried, {row['resumed']} went on elsewhere (p99 "
            f"{row['pause_ms']['p99'] or 0:.0f} ms), {row['taken_out']} times taken out"
        )
    print("met" if met else "missed")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
