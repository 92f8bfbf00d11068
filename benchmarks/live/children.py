"""Processes of a benchmark: each is started with one JSON argument, answers in JSON lines and ends with its stdin."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

START_SECONDS = 120.0  # an import of vLLM on a busy machine
END_SECONDS = 15.0
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}


class Child:
    """One process; ``log`` has what it wrote besides its answers."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: Path) -> None:
        self._process = process
        self._name = name
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    async def read(self, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Its next answer. Raises RuntimeError where there is none within ``seconds``."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), seconds)
        except TimeoutError:
            line = b""
        if not line:
            raise RuntimeError(f"{self._name} gave no answer; the end of its log:\n{self._log.read_text()[-3000:]}")
        return dict(json.loads(line))

    async def ask(self, order: str, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Gives an order, one line; returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(order.encode() + b"\n")
        await self._process.stdin.drain()
        return await self.read(seconds)

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_SECONDS)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def child(
    module: str, argument: Mapping[str, Any], logs: Path, name: str = "", processors: AbstractSet[int] = frozenset()
) -> AsyncIterator[Child]:
    """``python -m module ARGUMENT``, ended when the context ends; on these processors only, if any are named."""
    name = name or module
    log = logs / f"{name}.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            json.dumps(argument),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env={**_ENVIRONMENT, **os.environ},
        )
    if processors:
        os.sched_setaffinity(process.pid, processors)
    started = Child(process, name, log)
    try:
        yield started
    finally:
        await started.end()


# ---- in the child


def answers() -> TextIO:
    """Where a child's answers go. What anyone else prints from here on goes to the log."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def answer(out: TextIO, what: Mapping[str, Any]) -> None:
    print(json.dumps(what), file=out, flush=True)


async def orders() -> AsyncIterator[str]:
    """Lines of stdin, until the parent closes it or is gone."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        yield line.decode().strip()
