"""What routing and admission take of a live gateway's CPU, a request::

    python -m benchmarks.gateway_cpu [--json] [--workers 64] [--requests 600] [--rate 25]

A real gateway in front of mock workers, real requests over gRPC with shared prefixes; inside the gateway process every
step of the brain is timed with the thread's CPU clock, and so is what is done for its sake before it: a prompt's block
hashes, an arrival's event, a cache change on its way from the frame to the index. "total" is the sum over all events,
those of idle workers included, divided by the requests.

"null" is the same gateway in the same run with round robin, no hashes, and cache changes ignored. "added" is the total
less what the null gateway's books of a request take: its arrival's event and step, and the steps at its first token and
its ends. "added warm" is that of the same steps and hashes taken once more, right after one another: what they cost
where the processor's caches were not used for other things before. The journal, which keeps what was decided for those
who ask, is beside it all.

Takes about six minutes. Ends with 1 if anything added is over the bar.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.live import meter, results
from benchmarks.live.stack import Gateway, Workers, workers
from benchmarks.live.trace import BLOCK, Asked, Shape, generated
from orchestrator.core.spec import Backend, ClusterSpec, ModelSpec, PoolSpec, Role, RoutingSpec

BAR_MICROSECONDS = 150.0
PROMPTS = (2048, 8192)  # tokens
OUTPUT_TOKENS = 32
WARM_UP = 0.25  # of the requests, before those that count
ENGINE = {
    "step_seconds": 0.25,  # long, so that a few hundred requests run at once without much to do for anybody
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
# Under these names in the table; what is not named goes under "other".
PARTS = {
    meter.HASHING: "hashing",
    meter.ARRIVAL: "arrival",
    "Arrived": "decision",
    "LoadReported": "load reports",
    meter.CACHE: "cache changes",
    "CacheChanged": "cache changes",
    meter.JOURNAL: "journal",
}
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


def prompts(length: int, requests: int, rate: float, seed: int) -> list[Asked]:
    """Prompts of about ``length`` tokens; three quarters of each are one of 16 shared beginnings."""
    shared = length * 3 // 4 // BLOCK
    tail = length - shared * BLOCK
    shape = Shape(rate, 2 * requests / rate, 16, (shared, shared), (tail, tail), (OUTPUT_TOKENS, OUTPUT_TOKENS))
    return generated(shape, seed)[:requests]


async def measured(gateway: Gateway, name: str, asked: list[Asked], salt: int) -> dict[str, Any]:
    """CPU microseconds a request, by part, once caches and speeds are known."""
    warm = int(len(asked) * WARM_UP)
    await gateway.send(asked[:warm], f"{name}-warm", salt)
    await gateway.process.ask("reset")
    start = asked[warm].at
    counted = [dataclasses.replace(each, at=each.at - start) for each in asked[warm:]]
    summary = results.summary(await gateway.send(counted, name, salt))
    report = await gateway.process.ask("report")
    if summary.failed:
        raise RuntimeError(f"{summary.failed} of {summary.requests} requests failed: {summary.errors}")
    parts, requests = report["parts"], summary.requests
    row = dict.fromkeys(SHOWN, 0.0)
    for part, spent in parts.items():
        row[PARTS.get(part, "other")] += spent["microseconds"] / requests
    row["total"] = sum(row[part] for part in SUMMED)
    return {
        "microseconds": {part: round(spent, 1) for part, spent in row.items()},
        "calls": {part: round(spent["calls"] / requests, 2) for part, spent in parts.items()},
        "each": {part: round(spent["microseconds"] / spent["calls"], 2) for part, spent in parts.items()},
        "warm": {part: round(spent / requests, 1) for part, spent in report["warm"].items()},
        "gateway_thread_microseconds": round(report["thread_seconds"] * 1e6 / requests),
        "prefix_hit_ratio": round(summary.prefix_hit_ratio, 3),
        "apart": round(summary.apart, 3),
        "ttft_ms": summary.ttft_ms,
        "requests": requests,
    }


async def variants(running: Workers, pools: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The default gateway and the null one, one after the other."""
    rows: list[dict[str, Any]] = []
    for variant in ("default", "null"):
        spec = cluster(POOLS[pools], asked.workers, NULL if variant == "null" else None)
        async with running.gateway(spec, metered=True, blind=variant == "null") as gateway:
            for length in PROMPTS:
                trace = prompts(length, asked.requests, asked.rate, asked.seed)
                name = f"{pools}-{variant}-{length}".replace(" ", "-")
                found = await measured(gateway, name, trace, salt=len(rows) + 1)
                rows.append({"pools": pools, "prompt_tokens": length, "variant": variant, **found})
    return rows


async def run(asked: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for pools, shares in POOLS.items():
        logs = folder / pools.replace(" ", "-")
        logs.mkdir()
        async with workers(cluster(shares, asked.workers), logs) as running:
            rows += await variants(running, pools, asked)
    for row in rows:
        spent, null = row["microseconds"], null_of(rows, row)
        spent["added"] = round(spent["total"] - sum(null["microseconds"][part] for part in BOOKS), 1)
        spent["added warm"] = round(sum(row["warm"].values()) - warm_books(null), 1)
    return rows


def null_of(rows: list[dict[str, Any]], like: dict[str, Any]) -> dict[str, Any]:
    """The null gateway's row of the same requests."""
    same = ("pools", "prompt_tokens")
    return next(row for row in rows if row["variant"] == "null" and all(row[key] == like[key] for key in same))


def warm_books(null: dict[str, Any]) -> float:
    """Microseconds of its books, taken back to back."""
    warm: dict[str, float] = null["warm"]
    return sum(spent for event, spent in warm.items() if event not in ("LoadReported", meter.HASHING))


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'pools':9} {'prompt':>6} {'':8} "
        + " ".join(f"{part:>13}" for part in SHOWN)
        + f" {'gateway':>9} {'hits':>5}"
    )
    for row in rows:
        spent = " ".join(f"{row['microseconds'][part]:13.1f}" for part in SHOWN)
        whole, hits = row["gateway_thread_microseconds"], row["prefix_hit_ratio"]
        print(f"{row['pools']:9} {row['prompt_tokens']:6} {row['variant']:8} {spent} {whole:9} {hits:5.2f}")
    print(f"CPU microseconds a request, {OUTPUT_TOKENS} tokens of output each; gateway: all of its thread's")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--requests", type=int, default=600, help="for each row, warm-up included")
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segue-benchmark-") as folder:
        rows = asyncio.run(run(asked, Path(folder)))
    if asked.json:
        print(json.dumps({"bar_microseconds": BAR_MICROSECONDS, "workers": asked.workers, "rows": rows}))
    else:
        show(rows)
    return int(any(row["microseconds"]["added"] > BAR_MICROSECONDS for row in rows if row["variant"] == "default"))


if __name__ == "__main__":
    sys.exit(main())
