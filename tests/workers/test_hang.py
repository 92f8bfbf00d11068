"""A real engine that hangs while all its processes run."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from orchestrator.core.hang import NEW_STEPS
from tests.workers.planned import WEIGHED
from tests.workers.support import TINY_ENGINE, engine_process, gateway

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


async def test_an_engine_that_makes_no_step_for_its_requests_is_given_up_and_an_idle_one_is_not(tmp_path: Path) -> None:
    with engine_process("serve", tmp_path, engine={**TINY_ENGINE, **WEIGHED}, hang_seconds=3.0) as worker:
        worker.ready()
        async with gateway(worker.address) as peer:
            await peer.generate("warm", range(100, 200), max_tokens=NEW_STEPS + 10)
            await asyncio.sleep(6.0)  # for longer than that it has nothing to do
            await peer.generate("well", range(300, 500), max_tokens=4)
            worker.ask("hang")
            began = time.monotonic()
            await peer.submit("stuck", range(100, 200), max_tokens=4)
            assert await peer.ended(30) is grpc.StatusCode.UNAVAILABLE
            assert 2.5 < time.monotonic() - began < 12.0
        assert "no step for" in worker.log.read_text()
