"""A real gateway over HTTP, offered several times what its mock workers can serve."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.live.stack import Gateway, workers
from orchestrator.core.spec import Backend, ClusterSpec, ModelSpec, PoolSpec, Role, SloSpec

ENGINE = {"step_seconds": 0.05, "prefill_tokens_per_second": 20_000.0, "max_num_seqs": 4, "max_model_len": 2048}
WORKERS, OUTPUT = 2, 20
CAPACITY = WORKERS * ENGINE["max_num_seqs"] / (OUTPUT * ENGINE["step_seconds"])  # requests a second, at most
TIMES = 6.0
TTFT = 1.5
WARM_UP = 5.0  # until the pace is known


@dataclass(slots=True)
class _Seen:
    """``good`` and ``served`` after the warm-up; times in seconds."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    untold: int = 0  # rejects without Retry-After
    served: int = 0
    good: int = 0
    broken: int = 0
    ttft: list[float] = field(default_factory=list)
    rejects: list[float] = field(default_factory=list)


async def measured(seconds: float, seed: int) -> dict[str, Any]:
    """What clients saw in so many seconds, and what the gateway's memory did."""
    pool = PoolSpec(Role.SERVE, replicas=WORKERS, backend=Backend.MOCK, engine=ENGINE)
    model = ModelSpec("mock", "tiny:llama", {Role.SERVE: pool}, slo=SloSpec(ttft_ms=1e3 * TTFT))
    with tempfile.TemporaryDirectory() as folder:
        spec = ClusterSpec("overload", (model,))
        async with workers(spec, Path(folder), 1) as running, running.gateway() as gateway:
            return await _offer(gateway, seconds, Random(seed))


async def _offer(gateway: Gateway, seconds: float, rng: Random) -> dict[str, Any]:
    seen, began = _Seen(), time.perf_counter()
    await _one(gateway, _Seen(), counts=False)
    before = _resident(gateway.pid)
    under_way: set[asyncio.Task[None]] = set()
    at = began = time.perf_counter()
    while (at := at + rng.expovariate(TIMES * CAPACITY)) < began + seconds:
        await asyncio.sleep(at - time.perf_counter())
        task = asyncio.create_task(_one(gateway, seen, counts=at > began + WARM_UP))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    after = _resident(gateway.pid)
    await asyncio.wait_for(asyncio.gather(*under_way), 60.0)
    return {
        "offered_per_second": TIMES * CAPACITY,
        "capacity_per_second": CAPACITY,
        "goodput_per_second": round(seen.good / (seconds - WARM_UP), 2),
        "in_time": round(seen.good / max(1, seen.served), 4),
        "statuses": dict(seen.statuses),
        "codes": dict(seen.codes),
        "rejects_without_retry_after": seen.untold,
        "broken": seen.broken,
        "ttft_ms": _percentiles(seen.ttft),
        "reject_ms": _percentiles(seen.rejects),
        "gateway_mb": [round(before), round(after)],
    }


async def _one(gateway: Gateway, seen: _Seen, *, counts: bool) -> None:
    """One streamed completion over a connection of its own."""
    seen.sent += 1
    body = {"model": gateway.model, "prompt": [7] * 64, "max_tokens": OUTPUT, "ignore_eos": True, "stream": True}
    payload = json.dumps(body).encode()
    host, _, port = gateway.http.rpartition(":")
    began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        seen.broken += 1
        return
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode() + payload)
        status = int((await reader.readline()).split()[1])
        headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        seen.statuses[status] += 1
        if status == 200:
            await _stream(reader, began, seen, counts=counts)
        else:
            error = (await reader.read()).decode()
            seen.codes[next((c for c in ("overloaded", "cluster_full") if c in error), "other")] += 1
            seen.untold += "retry-after" not in headers
            if counts:
                seen.rejects.append(time.perf_counter() - began)
    except (OSError, asyncio.IncompleteReadError, ValueError, IndexError):
        seen.broken += 1
    finally:
        writer.close()


async def _stream(reader: asyncio.StreamReader, began: float, seen: _Seen, *, counts: bool) -> None:
    first, done = 0.0, False
    while line := await reader.readline():
        if line.startswith(b"data: {") and not first:
            first = time.perf_counter() - began
        done = done or line.startswith(b"data: [DONE]")
    seen.broken += not done
    if counts and done:
        seen.served += 1
        seen.ttft.append(first)
        seen.good += first <= TTFT


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def _percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return (
        {f"p{p}": round(1e3 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 1) for p in (50, 95, 99)}
        if ordered
        else {}
    )
