"""The controller's process is lost or replaced: what it left runs on, and whoever comes after it takes that over."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from orchestrator.controller import ray_cluster, ray_memory
from orchestrator.controller.ports import Memory
from orchestrator.controller.ray_cluster import RayCluster
from orchestrator.controller.ray_controller import stop_controller
from orchestrator.controller.service import ControllerActor
from tests.controller.conftest import DECODE, GATEWAY, PREFILL
from tests.controller.standin import standin_gateway, standin_worker
from tests.controller.test_controller_ray import NAME, WAIT, Run, Watched, gone, run, spec_of

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
    assert after.controller.began_ms == before.controller.began_ms > 0
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


class Beside(RayCluster):
    """For a second controller of a cluster whose first one still has its process, and its port."""

    def restarted(self) -> bool:
        return True

    async def recall(self) -> Memory | None:
        kept = await super().recall()
        return replace(kept, listen="") if kept is not None else None


async def test_one_that_was_stopped_and_replaced_ends_by_itself_when_it_goes_on(run: Run, tmp_path: Path) -> None:
    live = await run()
    await live.until(lambda: live.status.ready)
    old = live.status
    os.kill(old.controller.pid, signal.SIGSTOP)
    second = await asyncio.to_thread(beside, tmp_path)
    try:
        address = ""
        async with asyncio.timeout(WAIT):
            while not address:
                address = await second.address.remote()
        async with grpc.aio.insecure_channel(address) as channel:
            new = Watched(address, tmp_path, channel)
            await new.until(lambda: new.status.ready)
            os.kill(old.controller.pid, signal.SIGCONT)
            await gone({old.controller.pid})
            with pytest.raises(ValueError, match="Failed to look up actor"):  # and Ray doesn't make it again
                ray.get_actor(f"segue-controller-{NAME}", namespace="segue")
            assert "replaced" in (tmp_path / "controller.log").read_text()
            new.rewatch()
            await new.until(lambda: new.status.ready)
            assert workers(new.status) == workers(old)
            assert new.status.gateways == old.gateways
            assert new.status.controller.term == old.controller.term + 1
    finally:
        ray.kill(second, no_restart=True)
    for slot_id in (PREFILL, DECODE, GATEWAY):
        assert len(starts(tmp_path, slot_id)) == 1
        assert not (tmp_path / f"{slot_id}.drained").exists()


def beside(log_dir: Path) -> Any:
    options = {"namespace": "segue", "num_cpus": 0, "max_restarts": 0}
    cluster = Beside(NAME, standin_worker, standin_gateway)
    return ray.remote(ControllerActor).options(**options).remote(spec_of(), str(log_dir), cluster, "127.0.0.1")


async def test_one_that_ends_again_and_again_comes_back_ever_later_and_can_be_stopped_meanwhile(run: Run) -> None:
    live = await run()
    await live.until(lambda: live.status.ready)
    log = live.log_dir / "controller.log"
    before = live.status
    for times in range(1, 5):
        if times > 1:
            await taken_over(live, live.status.controller.pid)
        os.kill(live.status.controller.pid, signal.SIGKILL)
        async with asyncio.timeout(WAIT):
            while log.read_text().count("begins_in=") < times:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert [float(said) for said in re.findall(r"begins_in=([\d.]+)", log.read_text())] == [0, 1, 2, 4]
    assert workers(before) == workers(live.status)
    await asyncio.to_thread(stop_controller, NAME, 5.0)
    assert not ray_cluster.names(NAME)
    assert all((live.log_dir / f"{slot_id}.drained").exists() for slot_id in (PREFILL, DECODE, GATEWAY))
