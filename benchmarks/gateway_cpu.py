"""What routing and admission take of a live gateway's CPU, a request::

    python -m benchmarks.gateway_cpu [--json] [--workers 64] [--rate 120] [--seconds 8]

A real gateway in front of mock workers, real requests over gRPC with shared prefixes. Inside the gateway process is
timed, with the thread's CPU clock,

- every step of the brain, whatever event it is for, those of idle workers included;
- what the driver does for a step before it: a prompt's block hashes, an arrival's event, and what a frame says of a
  worker's load and cache, on its way to the brain. A collection of garbage counts where it falls.

"total" is the sum of all that happens between the end of the warm-up and the last arrival, divided by the requests that
arrive in between. "null" is the same gateway in the same run with round robin, no hashes, and cache changes ignored.
"added" is the total less what the null gateway's books of a request take (the lesser of its rows): its arrival's event
and step, and the steps at its first token and its ends. Load reports are not taken off, though they are there without
routing too. "added warm" is that of the same steps and hashes taken once more, right after one another: what they cost
where the processor's caches were not used for other things before. The journal, which keeps what was decided for those
who ask, is beside it all. "frames": how many of workers there are a request; "busy": the gateway's thread, with all
that it does.

The gateway has a processor to itself, as what stands for other machines (workers, clients) would push its memory out of
the caches; nothing else on this machine should be busy. CPU matters where a gateway is busy, so the bar holds at a rate
that takes a third of its thread and more, and a request brings about as many frames as it does where a worker decodes
30 sequences of 150 tokens each at a time. One row is at a low rate: a thread that mostly sleeps finds its caches
colder, and frames of idle workers are shared by few requests.

Whatever else the machine does makes memory slower, and only ever adds: what the bar is about is measured twice, minutes
apart, with and without routing, and of each the lesser counts. Takes about six minutes. Ends with 1 if a prompt of
2,048 tokens adds more than the bar at the bar's rate, in one pool or apart, or if requests came faster than mock
workers could serve them; the other rows are for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.live import meter, results
from benchmarks.live.stack import Gateway, Places, Workers, workers
from benchmarks.live.trace import BLOCK, Asked, Shape, generated
from orchestrator.compiled import is_compiled
from orchestrator.core.spec import Backend, ClusterSpec, ModelSpec, PoolSpec, Role, RoutingSpec

BAR_MICROSECONDS = 150.0
BAR_PROMPT, LONG_PROMPT = 2048, 8192  # tokens
OUTPUT_TOKENS = 32
RATE, LOW_RATE = 120.0, 25.0  # requests a second
LONG_RATE = 0.5  # times as many where prompts are four times as long: mock workers share the processors that are left
KEPT_UP = 0.9  # of the requests that arrive also end meanwhile, or what was measured is a queue
WARM_UP_SECONDS = 6.0
ENGINE = {
    "step_seconds": 0.1,
    "prefill_tokens_per_second": 40_000.0,
    "transfer_bytes_per_second": 2e9,
    "block_size": 16,
    "kv_blocks": 16_384,
    "max_num_seqs": 64,
    "max_model_len": 16_384,
}
POOLS: Mapping[str, Mapping[Role, float]] = {
    "one pool": {Role.SERVE: 1.0},
    "apart": {Role.PREFILL: 0.5, Role.DECODE: 0.5},
}
NULL = RoutingSpec("round_robin")
CORE = "native" if is_compiled() else "interpreted"
# Under these names in the table; what is not named goes under "other".
PARTS = {
    meter.HASHING: "hashing",
    meter.ARRIVAL: "arrival",
    "Arrived": "decision",
    meter.LOAD: "load reports",
    "LoadReported": "load reports",
    meter.CACHE: "cache changes",
    "CacheChanged": "cache changes",
    meter.JOURNAL: "journal",
}
ENDS = ("FirstToken", "DecodeEnded")
SUMMED = ("hashing", "arrival", "decision", "load reports", "cache changes", "other")
BOOKS = ("arrival", "decision", "other")  # what a request's books take, where nothing is decided
SHOWN = (*SUMMED, "total", "added", "added warm", "journal")


def cluster(pools: Mapping[Role, float], count: int, routing: RoutingSpec | None = None) -> ClusterSpec:
    """``count`` mock workers, over pools by their shares."""
    specs = {
        role: PoolSpec(role, replicas=round(share * count), backend=Backend.MOCK, engine=ENGINE)
        for role, share in pools.items()
    }
    return ClusterSpec("benchmark", (ModelSpec("mock", "tiny:llama", specs, routing=routing or RoutingSpec()),))


class Load(NamedTuple):
    """What one row is measured under."""

    prompt_tokens: int
    rate: float  # requests a second


def loads(asked: argparse.Namespace) -> list[Load]:
    """The bar's prompt at its rate, twice, and at a low one, and a longer one in between."""
    judged = Load(BAR_PROMPT, asked.rate)
    return [judged, Load(LONG_PROMPT, asked.rate * LONG_RATE), Load(BAR_PROMPT, asked.low_rate), judged]


def null_loads(asked: argparse.Namespace) -> list[Load]:
    """At both rates, the bar's twice here too."""
    return [Load(BAR_PROMPT, rate) for rate in (asked.rate, asked.low_rate, asked.rate)]


def prompts(length: int, rate: float, seconds: float, seed: int) -> list[Asked]:
    """Prompts of about ``length`` tokens; three quarters of each are one of 16 shared beginnings."""
    shared = length * 3 // 4 // BLOCK
    tail, output = length - shared * BLOCK, OUTPUT_TOKENS
    return generated(Shape(rate, seconds, 16, (shared, shared), (tail, tail), (output, output)), seed)


async def measured(gateway: Gateway, name: str, load: Load, asked: argparse.Namespace, salt: int) -> dict[str, Any]:
    """CPU microseconds a request, by part, between the end of the warm-up and the last arrival."""
    trace = prompts(load.prompt_tokens, load.rate, asked.seconds + WARM_UP_SECONDS, asked.seed)
    report: dict[str, Any] = {}

    async def window(began: float) -> None:
        await asyncio.sleep(began + WARM_UP_SECONDS - time.perf_counter())
        await gateway.process.ask("reset")
        await asyncio.sleep(began + trace[-1].at - time.perf_counter())
        report.update(await gateway.process.ask("report"))

    summary = results.summary(await gateway.send(trace, name, salt, window))
    warm = await gateway.process.ask("warm")
    if summary.failed:
        raise RuntimeError(f"{summary.failed} of {summary.requests} requests failed: {summary.errors}")
    parts: dict[str, Any] = report["parts"]
    requests = parts[meter.ARRIVAL]["calls"]
    row = dict.fromkeys(SHOWN, 0.0)
    collector = parts.pop(meter.COLLECTOR, {}).get("microseconds", 0.0)  # in the steps where it fell
    parts.pop(meter.NOTHING)
    for part, spent in parts.items():
        row[PARTS.get(part, "other")] += spent["microseconds"] / requests
    row["total"] = sum(row[part] for part in SUMMED)
    return {
        "microseconds": {part: round(spent, 1) for part, spent in row.items()},
        "calls": {part: round(spent["calls"] / requests, 2) for part, spent in parts.items()},
        "each": {part: round(spent["microseconds"] / spent["calls"], 2) for part, spent in parts.items()},
        "warm": {part: round(spent / requests, 1) for part, spent in warm.items()},
        "collector_microseconds": round(collector / requests, 1),
        "kept_up": round(min(parts[event]["calls"] for event in ENDS) / requests, 3),
        "gateway_thread_microseconds": round(report["thread_seconds"] * 1e6 / requests),
        "gateway_thread_busy": round(report["thread_seconds"] / report["seconds"], 3),
        "prefix_hit_ratio": round(summary.prefix_hit_ratio, 3),
        "apart": round(summary.apart, 3),
        "late_ms": round(summary.late_ms, 1),
        "ttft_ms": summary.ttft_ms,
        "requests": requests,
    }


async def variants(running: Workers, pools: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The default gateway and the null one, one after the other."""
    rows: list[dict[str, Any]] = []
    for variant in ("default", "null"):
        spec = cluster(POOLS[pools], asked.workers, NULL if variant == "null" else None)
        async with running.gateway(spec, metered=True, blind=variant == "null") as gateway:
            for load in loads(asked) if variant == "default" else null_loads(asked):
                name = f"{pools}-{variant}-{load.prompt_tokens}-{load.rate:g}-{len(rows)}".replace(" ", "-")
                found = await measured(gateway, name, load, asked, salt=len(rows) + 1)
                rows.append({"pools": pools, **load._asdict(), "variant": variant, **found})
    return rows


async def run(asked: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for pools, shares in POOLS.items():
        logs = folder / pools.replace(" ", "-")
        logs.mkdir()
        async with workers(cluster(shares, asked.workers), logs, places=Places.apart()) as running:
            rows += await variants(running, pools, asked)
    for row in rows:
        nulls = [null for null in rows if null["variant"] == "null" and alike(row, null, asked.low_rate)]
        spent = row["microseconds"]
        spent["added"] = round(spent["total"] - min(map(books, nulls)), 1)
        spent["added warm"] = round(sum(row["warm"].values()) - min(map(warm_books, nulls)), 1)
    return rows


def alike(row: dict[str, Any], null: dict[str, Any], low_rate: float) -> bool:
    """Whether the books are the same: they don't depend on how long prompts are, but on how busy the thread is."""
    return bool(row["pools"] == null["pools"] and (row["rate"] == low_rate) == (null["rate"] == low_rate))


def books(null: dict[str, Any]) -> float:
    """Microseconds of a request's books."""
    return float(sum(null["microseconds"][part] for part in BOOKS))


def warm_books(null: dict[str, Any]) -> float:
    """The same, taken back to back."""
    warm: dict[str, float] = null["warm"]
    return sum(spent for event, spent in warm.items() if event not in ("LoadReported", meter.HASHING))


def show(rows: list[dict[str, Any]]) -> None:
    names = " ".join(f"{part:>13}" for part in SHOWN)
    print(f"{'pools':9} {'prompt':>6} {'rate':>4} {'':8} {names} {'frames':>6} {'busy':>5} {'hits':>5}")
    for row in rows:
        spent = " ".join(f"{row['microseconds'][part]:13.1f}" for part in SHOWN)
        under = f"{row['pools']:9} {row['prompt_tokens']:6} {row['rate']:4g} {row['variant']:8}"
        frames, busy = row["calls"][meter.LOAD], row["gateway_thread_busy"]
        print(f"{under} {spent} {frames:6.1f} {busy:5.2f} {row['prefix_hit_ratio']:5.2f}")
    print(f"CPU microseconds a request, {OUTPUT_TOKENS} tokens of output each; core: {CORE}")


def complaints(rows: list[dict[str, Any]], asked: argparse.Namespace) -> list[str]:
    """What is not as it should be, for people."""
    found = [
        f"{row['pools']}, {row['prompt_tokens']} tokens at {row['rate']:g}/s, {row['variant']}: "
        f"of the requests only {row['kept_up']:.0%} were served: too much for this machine"
        for row in rows
        if row["kept_up"] < KEPT_UP
    ]
    for pools in POOLS:
        added = least(rows, pools, asked.rate)
        if added > BAR_MICROSECONDS:
            found.append(f"{pools}: {added:.0f} microseconds are added, the bar is {BAR_MICROSECONDS:g}")
    return found


def least(rows: list[dict[str, Any]], pools: str, rate: float) -> float:
    """What is added by the bar's rows, the lesser one: whatever disturbs only ever adds."""
    wanted = {"pools": pools, "rate": rate, "prompt_tokens": BAR_PROMPT, "variant": "default"}
    judged = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return min(float(row["microseconds"]["added"]) for row in judged)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="that are counted, for each row")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument("--low-rate", type=float, default=LOW_RATE, help="requests a second, where little is to do")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segue-benchmark-") as folder:
        rows = asyncio.run(run(asked, Path(folder)))
    if asked.json:
        about = {"bar_microseconds": BAR_MICROSECONDS, "workers": asked.workers, "core": CORE}
        print(json.dumps({**about, "rows": rows}))
    else:
        show(rows)
    missed = complaints(rows, asked)
    for line in missed:
        print(line, file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
