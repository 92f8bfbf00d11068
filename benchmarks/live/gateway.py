"""A gateway as the product starts it: ``python -m benchmarks.live.gateway '{"controller": ..., "workers": N}'``.

Answers with its addresses once all workers are linked. Orders: ``reset`` and ``report``, between which is counted, and
``warm``, once nothing is under way. ``metered``: what its decisions take is measured. ``blind``: no prompt gets block
hashes, and what workers tell of their caches is not looked at. ``seed``: of what its brain draws, as the simulator
seeds its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TextIO

from benchmarks.live.children import answer, answers, orders

READY_SECONDS = 60.0


def _blind() -> None:
    from orchestrator.gateway.driver import Driver

    driver: Any = Driver
    driver._blocks = lambda *_: ()
    driver._take_cache = lambda *_: None


async def _linked(gateway: Any, workers: int) -> None:
    async with asyncio.timeout(READY_SECONDS):
        while gateway.not_ready() or len(gateway.driver.workers) < workers:
            await gateway.status_changed(0.1)


async def _count(out: TextIO, run: Callable[[Callable[[], Any]], Awaitable[Any]], meter: Any, spec: Any) -> None:
    """Carries out orders until there are no more; ``run`` calls something on the gateway's own thread."""
    thread_began, began = 0.0, 0.0
    async for order in orders():
        if order == "reset":
            if meter is not None:
                await run(meter.reset)
            thread_began, began = await run(time.thread_time), time.perf_counter()
            answer(out, {})
        elif order == "report":
            seconds, wall = await run(time.thread_time) - thread_began, time.perf_counter() - began
            parts = await run(meter.report) if meter is not None else {}
            answer(out, {"thread_seconds": seconds, "seconds": wall, "parts": parts})
        elif order == "warm":
            answer(out, await run(lambda: meter.warm(spec)))


async def main() -> None:
    out = answers()
    given = json.loads(sys.argv[1])
    os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"  # a mock engine's context is not its tokenizer's model's
    meter: Any = None
    if given.get("blind"):
        _blind()
    if given.get("metered"):
        from benchmarks.live.meter import Meter  # imports vLLM

        meter = Meter()
        meter.attach()
    from orchestrator.core.types import GatewayAssignment
    from orchestrator.gateway.process import GatewayProcess

    actor = GatewayProcess(GatewayAssignment("benchmark", "gw-0", 1, given["controller"]))
    await actor.start()
    serving, loop = actor._serving, actor._loop
    assert serving is not None
    assert loop is not None

    async def run(call: Callable[[], Any]) -> Any:
        """On the gateway's own thread."""

        async def called() -> Any:
            return call()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(called(), loop))

    linked = asyncio.run_coroutine_threadsafe(_linked(serving.gateway, given["workers"]), loop)
    await asyncio.wrap_future(linked)
    if "seed" in given:
        await run(lambda: serving.gateway.driver._brain._rng.seed(f"{given['seed']} brain 0"))
    snapshot = await actor.snapshot()
    answer(out, {"http": snapshot.address, "grpc": snapshot.grpc_address, "pid": os.getpid()})
    await _count(out, run, meter, serving.gateway.spec)
    await actor.stop()


if __name__ == "__main__":
    asyncio.run(main())
