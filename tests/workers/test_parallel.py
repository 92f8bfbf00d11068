"""A replica cut over several processes says what one process says, holds what was planned, and ends as a whole."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.planning.catalogue import this_cpu
from tests.workers.leftovers import gone, left_behind, shared_memory, wait
from tests.workers.planned import WEIGHED, check
from tests.workers.support import TINY_ENGINE, WorkerProcess, engine_process, gateway, tokens
from workers import inventory
from workers.inventory import descendants

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PROMPTS = [[10 + (n * 7919 + k * 31) % 40000 for k in range(length)] for n, length in enumerate((5, 33, 100, 300))]
OUTPUT_TOKENS = 24
WHOLE_BLOCKS = 512  # of the tiny model in one process, the placeholder too


def cut(tensor: int, pipeline: int) -> dict[str, Any]:
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    return {"tensor_parallel": tensor, "pipeline_parallel": pipeline, "engine": {**TINY_ENGINE, **sizes}}


async def greedy(address: str) -> list[list[int]]:
    """What follows each prompt, all of them asked for at once."""
    async with gateway(address) as peer:
        for n, prompt in enumerate(PROMPTS):
            await peer.submit(f"r{n}", prompt, max_tokens=OUTPUT_TOKENS)
        return [tokens(await peer.finished(f"r{n}", 60)) for n in range(len(PROMPTS))]


def ranks(worker: WorkerProcess) -> list[int]:
    """The processes that compute: those that share memory with one another."""
    below = descendants(worker.engine_pid)
    return [pid for pid in below if any("vllm_dist" in each.name for each in inventory.shared_memory([pid]))]


@pytest.fixture(scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    with engine_process("serve", tmp_path_factory.mktemp("whole")) as worker:
        said = await greedy(worker.ready().address)
        await asyncio.to_thread(worker.ask, "stop")
    assert [len(each) for each in said] == [OUTPUT_TOKENS] * len(PROMPTS)
    return said


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2)])
async def test_a_model_in_parts_says_what_it_says_whole_and_leaves_nothing(
    whole: list[list[int]], tensor: int, pipeline: int, tiny_path: str, tmp_path: Path
) -> None:
    parts = cut(tensor, pipeline)
    parts["engine"] |= WEIGHED
    with engine_process("serve", tmp_path, **parts) as worker:
        facts = worker.ready().snapshot["facts"]
        await asyncio.to_thread(check, worker, tiny_path, parts["engine"], this_cpu())
        assert len(ranks(worker)) == tensor * pipeline
        # Each rank has as much memory as the one process had, for its part of every block.
        assert facts["kv_blocks_total"] + 1 == WHOLE_BLOCKS * tensor * pipeline
        assert await greedy(worker.address) == whole
        family = [worker.process.pid, *descendants(worker.process.pid)]
        memory = shared_memory(family)
        await asyncio.to_thread(worker.ask, "stop")
        assert worker.process.wait(10) == 0
        wait(lambda: gone(family), 5)
    assert not left_behind(worker)
    assert not [path for path in memory if path.exists()]


async def test_a_prefill_in_one_process_hands_over_to_a_decode_in_two(whole: list[list[int]], tmp_path: Path) -> None:
    with (
        engine_process("prefill", tmp_path) as one,
        engine_process("decode", tmp_path, **cut(2, 1)) as two,
    ):
        async with gateway(one.ready().address) as prefill, gateway(two.ready().address) as decode:
            for n, prompt in enumerate(PROMPTS):
                transfer = await prefill.prefill(f"p{n}", prompt)
                made = await decode.generate(f"d{n}", prompt, transfer=transfer, max_tokens=OUTPUT_TOKENS)
                assert made == whole[n]
                stats = decode.outputs[f"d{n}"][0].prefill_stats
                assert stats is not None
                assert stats.num_external_cached_tokens == len(prompt)  # fetched, not computed again
        family = [pid for each in (one, two) for pid in descendants(each.process.pid)]
        for each in (two, one):
            await asyncio.to_thread(each.ask, "stop")
        wait(lambda: gone(family), 5)
    assert not left_behind(one)
    assert not left_behind(two)


async def test_a_killed_rank_ends_the_replica(tmp_path: Path) -> None:
    with engine_process("serve", tmp_path, **cut(2, 1)) as worker:
        async with gateway(worker.ready().address) as peer:
            await peer.submit("running", PROMPTS[1], max_tokens=400)
            await peer.until(lambda g: g.outputs.get("running"))
            family = [worker.process.pid, *descendants(worker.process.pid)]
            memory = shared_memory(family)
            (folder,) = left_behind(worker)
            assert list(folder.glob("vllm_dist_*"))  # where ranks met: it is no one else's, and goes with the folder
            os.kill(ranks(worker)[1], signal.SIGKILL)
            assert await peer.ended(20) is grpc.StatusCode.UNAVAILABLE
        assert worker.process.wait(10) == 1
        wait(lambda: gone(family), 10)
        wait(lambda: not left_behind(worker) and not any(path.exists() for path in memory), 5)
