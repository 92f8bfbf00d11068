"""A worker's process from its start to each of its ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest

from orchestrator.proto.worker_pb2 import Rejected
from tests.workers.leftovers import gone, left_behind, shared_memory, wait
from tests.workers.support import TINY_ENGINE, engine_process, gateway, tokens
from workers.inventory import descendants

MOCK = {"backend": "mock", "engine": {"step_seconds": 0.02}}
KINDS = [pytest.param(MOCK, id="mock"), pytest.param({}, id="vllm", marks=pytest.mark.engine)]


def commands(pid: int) -> list[str]:
    """The command lines of a process's descendants."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found.append(" ".join(child.cmdline()))
    return found


@pytest.mark.parametrize("assignment", KINDS)
async def test_drain_lets_the_running_finish_and_stop_leaves_nothing(
    assignment: dict[str, object], tmp_path: Path
) -> None:
    with engine_process("serve", tmp_path, **assignment) as worker:
        snapshot = worker.ready().snapshot
        assert worker.snapshot["stages"]
        assert snapshot["facts"]["kv_blocks_total"] > 0
        assert snapshot["actor_pid"] == worker.process.pid
        async with gateway(worker.address) as peer:
            await peer.submit("running", list(range(1000, 1040)), max_tokens=100)
            await peer.until(lambda g: g.outputs.get("running"))
            draining = asyncio.create_task(asyncio.to_thread(worker.ask, "drain 20"))
            await peer.until(lambda g: g.steps[-1].draining)
            await peer.submit("new", [1, 2, 3])
            await peer.until(lambda g: "new" in g.rejected)
            assert peer.rejected["new"].reason == Rejected.DRAINING
            assert len(tokens(await peer.finished("running"))) == 100
            after = await draining
            assert after["state"] == "draining"
            assert after["load"]["kv_blocks_used"] == 0
            assert 0.0 < snapshot["ready_for"] < after["ready_for"]
            family = [worker.process.pid, *descendants(worker.process.pid)]
            memory = shared_memory(family)
            await asyncio.to_thread(worker.ask, "stop")
            assert await peer.ended() is grpc.StatusCode.UNAVAILABLE
        assert worker.process.wait(10) == 0
        wait(lambda: gone(family), 2)
    assert not left_behind(worker)
    assert not [path for path in memory if path.exists()]


@pytest.mark.engine
async def test_a_killed_engine_ends_sessions_and_the_worker(tmp_path: Path) -> None:
    with engine_process("serve", tmp_path) as worker:
        async with gateway(worker.ready().address) as peer:
            await peer.submit("running", list(range(1000, 1040)), max_tokens=400)
            await peer.until(lambda g: g.outputs.get("running"))
            (folder,) = left_behind(worker)
            assert list(folder.glob("vllm_dist_*"))  # where a rank meets itself: it goes with the folder
            os.kill(worker.engine_pid, signal.SIGKILL)
            began = time.monotonic()
            assert await peer.ended(5) is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - began < 2
        assert worker.process.wait(5) == 1
    assert not left_behind(worker)
    assert "engine_lost" in worker.log.read_text()


@pytest.mark.engine
def test_a_killed_worker_takes_its_engine_along(tmp_path: Path) -> None:
    assignment = {"tensor_parallel": 2, "engine": {**TINY_ENGINE, "tensor_parallel_size": 2}}
    with engine_process("serve", tmp_path, **assignment) as worker:
        engines = descendants(worker.ready().process.pid)
        assert worker.engine_pid in engines
        assert len(descendants(worker.engine_pid)) >= 2
        memory = shared_memory(engines)
        assert memory
        worker.process.kill()
        worker.process.wait(5)
        assert wait(lambda: gone(engines), 4) < 2
        wait(lambda: not left_behind(worker) and not any(path.exists() for path in memory), 5)


@pytest.mark.engine
def test_a_worker_killed_during_the_start_leaves_no_engine(tmp_path: Path) -> None:
    with engine_process("serve", tmp_path) as worker:
        wait(lambda: any("multiprocessing.spawn" in command for command in commands(worker.process.pid)), 60)
        engines = descendants(worker.process.pid)
        worker.process.kill()
        worker.process.wait(5)
        wait(lambda: gone(engines), 60)


@pytest.mark.parametrize(
    ("assignment", "seconds"),
    [
        pytest.param({"backend": "mock", "engine": {"start_seconds": 100.0}}, 0.1, id="importing"),
        pytest.param({}, 8.0, id="engine", marks=pytest.mark.engine),
    ],
)
def test_a_stop_during_the_start_leaves_nothing(assignment: dict[str, object], seconds: float, tmp_path: Path) -> None:
    with engine_process("serve", tmp_path, stop_after=seconds, **assignment) as worker:
        end = worker.read()
        assert "stopped while it started" in end["error"]
        family = descendants(worker.process.pid)
        assert worker.process.wait(20) == 0
        wait(lambda: gone(family), 5)
    assert not left_behind(worker)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        pytest.param({"source": "./no/such/folder"}, "no such folder", id="source"),
        pytest.param({"engine": {"max_model_len": 1 << 30}}, "max_model_len", id="argument", marks=pytest.mark.engine),
        pytest.param(
            {"engine": {"kv_cache_memory_bytes": 1 << 10, "enforce_eager": True}},
            "vLLM did not start: ValueError: ",
            id="engine",
            marks=pytest.mark.engine,
        ),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    assignment: dict[str, object], words: str, tmp_path: Path
) -> None:
    with engine_process("serve", tmp_path, **assignment) as worker:
        end = worker.read()
        assert end["state"] == "failed"
        assert words in end["error"]
        assert end["detail"]
        family = descendants(worker.process.pid)
        assert worker.process.wait(10) == 0
        wait(lambda: gone(family), 5)
    assert not left_behind(worker)
