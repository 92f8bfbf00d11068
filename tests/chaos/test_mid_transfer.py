"""A node that freezes between the halves, under real engines: NIXL alone would wait for as long as it is frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core import messages as m
from orchestrator.core.spec import Role
from tests.gateway.support import Stack, cluster, model, running
from tests.workers.support import WorkerProcess, engine_process
from workers import inventory

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

SILENCE = 2.0


def tell(worker: WorkerProcess, what: signal.Signals) -> None:
    for pid in (worker.process.pid, *inventory.descendants(worker.process.pid)):
        os.kill(pid, what)


async def until(stack: Stack, true: Any, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await stack.gateway.status_changed(0.02)


async def answer(stack: Stack, first: int) -> str:
    prompt = [1000 + (first + 31 * place) % 20_000 for place in range(300)]
    body = {"model": "m", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    response = await stack.http.post("/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


async def test_what_fetches_from_an_engine_that_froze_is_taken_back_within_a_second(tmp_path: Path) -> None:
    spec = cluster(model("m", "tiny:llama", Role.PREFILL, Role.DECODE), queue_seconds=20.0, silence_seconds=SILENCE)
    with (
        engine_process("prefill", tmp_path, worker_id="p") as prefill,
        engine_process("decode", tmp_path, worker_id="d") as decode,
    ):
        prefill.ready()
        decode.ready()
        async with running(spec) as stack:
            driver = stack.gateway.driver
            for mock in list(stack.workers):
                stack.controller.remove(mock)
            stack.workers.clear()
            stack.controller.add("m", Role.PREFILL, "p", prefill.address)
            stack.controller.add("m", Role.DECODE, "d", decode.address)
            await until(stack, lambda: set(driver.workers) == {"p", "d"})
            await answer(stack, 1)  # so that the two have met: from then on nothing bounds a transfer
            step = driver._feed._step
            frozen: list[float] = []
            again: list[float] = []  # when it was told to be computed without what is fetched

            def watched(event: m.Event, now: float) -> list[m.Command]:
                commands = step(event, now)
                if any(isinstance(each, m.StartDecode) and each.collect for each in commands):
                    tell(prefill, signal.SIGSTOP)
                    frozen.append(now)
                elif frozen and any(isinstance(each, m.StartDecode) for each in commands):
                    again.append(time.monotonic())
                return commands

            driver._feed._step = watched
            asking = asyncio.create_task(answer(stack, 5000))
            try:
                await until(stack, lambda: frozen and "p" not in driver.workers)
                known = time.monotonic()
                assert not asking.done()
                said = await asyncio.wait_for(asking, 20.0)
                assert len(again) == 1
                assert again[0] - known < 1.0  # and then it computes, which on a busy machine takes its time
            finally:
                driver._feed._step = step  # else what is asked of it once it is back would freeze it again
                tell(prefill, signal.SIGCONT)
            assert len(frozen) == 1
            assert said == await answer(stack, 5000)
            await until(stack, lambda: not driver.load("d").kv_blocks_used)  # type: ignore[union-attr]
