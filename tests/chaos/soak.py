"""A steady load with aborts and losses: ``python -m tests.chaos.soak --seconds 600 --plot soak.html``.

Memory, descriptors, threads and tasks of each process that lives all through have to be flat, and blocks and sessions
gone at the end. Exit 0 if so, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from tests.chaos.campaign import Campaign
from tests.chaos.checker import accounts, check
from tests.chaos.faults import KINDS, serving
from tests.chaos.ground import GATEWAYS, Ground, ground
from tests.chaos.soak_page import page
from tests.chaos.transcript import Ask, asks

EVERY_SECONDS = 2.0
CHUNK = 500  # requests of one seed
# What may grow from the second quarter of the time to the last: an amount, and a share of what it was.
ALLOWED = {"memory": (8.0, 0.02), "descriptors": (4.0, 0.05), "threads": (2.0, 0.0), "tasks": (16.0, 0.1)}
LOSSES = ("kill -9 decode worker", "SIGSTOP decode worker, short", "SIGSTOP prefill worker")


@dataclass
class Samples:
    """By measure and process, values over time (seconds since the beginning). Memory is in MB."""

    began: float
    of: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)

    def add(self, measure: str, process: str, value: float) -> None:
        at = time.monotonic() - self.began
        self.of.setdefault(measure, {}).setdefault(process, []).append((at, value))

    def grown(self, seconds: float) -> Iterator[str]:
        """What is not flat, in words, of those that were there all the time."""
        for measure, (amount, share) in ALLOWED.items():
            for process, points in self.of.get(measure, {}).items():
                early = [value for at, value in points if 0.25 * seconds <= at < 0.5 * seconds]
                late = [value for at, value in points if at >= 0.75 * seconds]
                if not early or not late or points[0][0] > 0.25 * seconds or points[-1][0] < 0.95 * seconds:
                    continue
                was, now = sum(early) / len(early), sum(late) / len(late)
                if now - was > amount + share * was:
                    yield f"{process}: {measure} went from {was:.1f} to {now:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-a-time", type=int, default=16)
    parser.add_argument("--losses-every", type=float, default=30.0)
    parser.add_argument("--plot", default="soak.html")
    args = parser.parse_args()
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a Ray on loopback is found there only so
    with tempfile.TemporaryDirectory(prefix="soak") as home, ground(Path(home), 1, 3, 1) as there:
        return asyncio.run(_soak(there, args))


async def _soak(there: Ground, args: argparse.Namespace) -> int:
    kinds = tuple(kind for kind in KINDS if kind.name in LOSSES)
    campaign = Campaign(there, args.seed, args.losses_every, kinds)
    samples, wrong = Samples(time.monotonic()), []
    load = asyncio.create_task(campaign.clients.run(_until(samples.began + args.seconds, args.seed), args.at_a_time))
    striker = asyncio.create_task(campaign.strike_until(load))
    through = 0
    while not load.done():
        await asyncio.wait([load], timeout=EVERY_SECONDS)
        done, campaign.clients.transcripts[:] = list(campaign.clients.transcripts), []
        wrong += check(done)
        through += len(done)
        samples.add("requests", "through", through)
        await _sample(there, campaign, samples)
    await striker
    try:
        await campaign.whole()
    except AssertionError as error:
        wrong.append(str(error))
    wrong += samples.grown(args.seconds)
    page(Path(args.plot), samples.of, args.seconds, f"{through} requests, {len(campaign.struck)} losses")
    print(f"{through} requests and {len(campaign.struck)} losses in {args.seconds:g} s: {args.plot}")  # noqa: T201
    for each in wrong:
        print(each)  # noqa: T201
    return 1 if wrong else 0


def _until(end: float, seed: int) -> Iterator[Ask]:
    for chunk in itertools.count():
        for ask in asks(CHUNK, seed * 1000 + chunk):
            if time.monotonic() >= end:
                return
            yield ask


async def _sample(there: Ground, campaign: Campaign, samples: Samples) -> None:
    status = await campaign.status()
    if status is None:
        return
    for sort, processes in serving(status).items():
        for name, pid in processes.items():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                called = f"{name} ({pid})" if "worker" in sort else name
                samples.add("memory", called, process.memory_info().rss / 1e6)
                samples.add("descriptors", called, process.num_fds())
                samples.add("threads", called, process.num_threads())
    workers = [worker for model in status.models for pool in model.pools for worker in pool.workers]
    samples.add("KV blocks", "in use", sum(worker.kv_blocks_used for worker in workers))
    with suppress(OSError, AssertionError, aiohttp.ClientError):
        found = await accounts(there.cluster.url, there.cluster.grpc, GATEWAYS)
        for (gateway, name), value in found.held.items():
            if name == "segue_tasks":
                samples.add("tasks", gateway, value)
        for (gateway, name), value in found.open.items():
            if name == "segue_open_requests":
                samples.add("sessions", gateway, value)


if __name__ == "__main__":
    sys.exit(main())
