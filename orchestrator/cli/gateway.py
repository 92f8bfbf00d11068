"""``segue gateway``: one gateway process of a cluster that starts none of its own, as a Deployment's pod is one."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable
from contextlib import suppress

from orchestrator.cli.exits import Exit
from orchestrator.config import endpoint_of
from orchestrator.core.errors import SegueError
from orchestrator.core.types import GatewayAssignment
from orchestrator.gateway.process import GatewayProcess, Outside


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 when stopped with all requests ended, 1 when some were cut off or it broke, 3 without a controller."""
    http = endpoint_of(args.http, "--http") if args.http else None
    grpc = endpoint_of(args.grpc, "--grpc") if args.grpc else None
    endpoint_of(args.controller, "--controller")
    name = args.name or f"{socket.gethostname()}-{os.getpid()}"
    assignment = GatewayAssignment("", name, 0, args.controller, args.log_dir or "")
    process = GatewayProcess(assignment, Outside(http, grpc, args.wait))
    code = asyncio.run(_Life(process, args.linger).run())
    sys.stdout.flush()
    os._exit(code)  # and so ends what refuses those that still come


class _Life:
    """From the start to the end of a gateway. The first signal ends it in order, the second hurries it."""

    def __init__(self, process: GatewayProcess, linger: float) -> None:
        self._process = process
        self._linger = linger
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()

    async def run(self) -> Exit:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        _say("starting")
        if not await _first(self._process.start(), self._asked.wait()):
            _say("stopped before it served anybody")
            os._exit(Exit.OK)  # a start can't be interrupted, and has nothing yet that would have to end in order
        word = await self._process.snapshot()
        _say(f"listens: http://{word.address}  grpc {word.grpc_address}")
        try:
            if await _first(self._process.wait_closed(), self._asked.wait()):
                word = await self._process.snapshot()
                raise SegueError(f"the gateway broke: {word.detail or 'see its log'}")
            return await self._end()
        finally:
            await self._process.stop()

    async def _end(self) -> Exit:
        self._process.leave()
        _say(f"leaving: not ready for who asks, serving for {self._linger:g} s more")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), self._linger)
        seconds = self._process.drain_timeout
        _say(f"draining: {seconds:g} s for what runs")
        drain = asyncio.ensure_future(self._process.drain(seconds))
        done = await _first(drain, self._hurried.wait()) and drain.result()
        _say("stopped, all requests ended" if done else "stopped; requests that were under way are cut off")
        return Exit.OK if done else Exit.FAILED

    def _signalled(self) -> None:
        (self._hurried if self._asked.is_set() else self._asked).set()


async def _first(wanted: Awaitable[object], other: Awaitable[object]) -> bool:
    """Whether ``wanted`` ended before ``other`` did, which is then given up. Raises what ``wanted`` raised."""
    tasks = [asyncio.ensure_future(each) for each in (wanted, other)]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    if tasks[0] not in done:
        return False
    tasks[0].result()
    return True


def _say(words: str) -> None:
    print(f"segue: {words}", flush=True)  # noqa: T201
