"""A request may end anywhere between its halves; no block stays behind."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import APART, RealCluster

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(300)]

LEASE_SECONDS = 30  # what vLLM would free by itself; we must be well under it


async def test_two_hundred_aborts_at_random_moments_leave_no_block(cluster: RealCluster) -> None:
    chance = random.Random(7)
    alone = await _seconds_of_one(cluster)

    async def one(http: httpx.AsyncClient, index: int, gate: asyncio.Semaphore) -> None:
        async with gate:
            words = " ".join(str(chance.randrange(1000)) for _ in range(chance.randrange(5, 150)))
            body = {"model": APART, "prompt": f"{index} {words}", "max_tokens": 200, "ignore_eos": True}
            task = asyncio.create_task(http.post("/v1/completions", json=body))
            await asyncio.sleep(chance.uniform(0, 4 * alone))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async with httpx.AsyncClient(base_url=cluster.url, timeout=60, limits=httpx.Limits(max_connections=64)) as http:
        gate = asyncio.Semaphore(16)
        await asyncio.gather(*(one(http, index, gate) for index in range(200)))
    began = time.monotonic()
    while not _quiet(workers := await asyncio.to_thread(cluster.workers, APART)):
        assert time.monotonic() - began < LEASE_SECONDS / 2, workers
        await asyncio.sleep(0.2)


async def _seconds_of_one(cluster: RealCluster) -> float:
    """How long a prefill and a hand-over take here and now: aborts are spread around that."""
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as http:
        await http.post("/v1/completions", json={"model": APART, "prompt": "warm " * 100, "max_tokens": 1})
    return time.monotonic() - began


def _quiet(workers: dict[str, dict[str, Any]]) -> bool:
    return all(not (w["running"] or w["waiting"] or w["kv_blocks_used"]) for w in workers.values())


async def test_disconnect_frees_the_engine_at_once(cluster: RealCluster) -> None:
    body = {"model": APART, "prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "stream": True}
    async with (
        httpx.AsyncClient(base_url=cluster.url, timeout=60) as http,
        http.stream("POST", "/v1/completions", json=body) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                break
    began = time.monotonic()
    while not _quiet(await asyncio.to_thread(cluster.workers, APART)):
        assert time.monotonic() - began < 5
        await asyncio.sleep(0.1)
