"""The controller's process is lost or replaced: what it left runs on, and whoever comes after it takes that over."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from orchestrator.controller import ray_cluster, ray_memory
from orchestrator.controller.ray_cluster import stop_controller
from tests.controller.conftest import DECODE, PREFILL
from tests.controller.test_controller_ray import NAME, WAIT, Run, Watched, gone, run

__all__ = ["run"]
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


async def taken_over(live: Watched, from_pid: int) -> None:
    """Until another controller answers at the same address, seen as a gateway sees it."""
    async with asyncio.timeout(WAIT):
        while True:
            live.rewatch()
            try:
                await live.until(lambda: live.status.controller.pid != from_pid)
                return
            except Exception:  # it is away
                await asyncio.sleep(0.1)


def starts(log_dir: Path, slot_id: str) -> list[int]:
    return [int(line) for line in (log_dir / f"{slot_id}.started").read_text().split()]


async def test_a_killed_controller_is_restarted_at_its_address_and_takes_over_all_that_runs(run: Run) -> None:
    live = await run()
    await live.until(lambda: live.status.ready)
    before = live.status
    os.kill(before.controller.pid, signal.SIGKILL)
    await taken_over(live, before.controller.pid)
    # The first word of the new one already has all that serves: gateways keep their links by it.
    after = next(each.status for each in live.seen if each.status.controller.pid != before.controller.pid)
    assert after.ready
    assert after.controller.address == before.controller.address
    assert after.controller.term > before.controller.term
    assert after.controller.epoch >= before.controller.epoch
    assert [*after.gateways] == [*before.gateways]
    assert [worker.actor_pid for worker in workers(after)] == [worker.actor_pid for worker in workers(before)]
    assert [worker.epoch for worker in workers(after)] == [worker.epoch for worker in workers(before)]

    os.kill(live.worker(DECODE).actor_pid, signal.SIGKILL)
    await live.until(lambda: not live.status.ready)
    await live.until(lambda: live.status.ready)
    assert live.worker(DECODE).restarts == 1
    assert live.worker(DECODE).epoch > before.controller.epoch
    assert len(starts(live.log_dir, DECODE)) == 2
    assert len(starts(live.log_dir, PREFILL)) == 1

    pids = live.pids()
    await asyncio.to_thread(stop_controller, NAME, 5.0)
    await gone(pids)
    assert not ray_cluster.names(NAME)
    assert ray_memory.recall(NAME) is None
    assert ray_memory.ages(NAME) == []


def workers(status: object) -> list[object]:
    return [worker for model in status.models for pool in model.pools for worker in pool.workers]  # type: ignore[attr-defined]
