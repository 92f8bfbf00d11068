"""The hand-over between two mock engines: a small TCP exchange in place of NIXL's.

The decode side asks for a finished prefill by its request id, takes the time that the bytes would take, and says that
it is done; only then are the blocks free on the prefill side. One JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

_TIMEOUT = 5.0  # seconds for any one answer


class Pinned(Protocol):
    """The prefill side's finished requests whose blocks wait to be collected."""

    def pinned_blocks(self, request_id: str) -> int | None:
        """How many blocks wait; None if there are none of that id."""
        ...

    def unpin(self, request_id: str) -> None: ...


class TransferServer:
    """The prefill side."""

    def __init__(self, pinned: Pinned) -> None:
        self._pinned = pinned
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, host: str) -> int:
        """Listens on a free port and returns it."""
        self._server = await asyncio.start_server(self._accept, host, 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            await close(self._server)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        # Not in the task itself: one that is cancelled before it began never comes to its end.
        task.add_done_callback(lambda done: self._served(done, writer))

    def _served(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        self._serving.discard(task)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                ask = json.loads(line)
                if ask["op"] == "free":
                    self._pinned.unpin(ask["request"])
                answer = {"blocks": self._pinned.pinned_blocks(ask["request"])}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # the decode side died; what it did not free stays until its lease ends


async def close(server: asyncio.Server) -> None:
    """Takes no more connections; those that it has are its protocols' when this returns.

    asyncio (3.11, 3.12) loses one that is taken in the very turn of the loop in which its server is closed: nobody
    hears of it, and its socket stays open until it is collected.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    for _ in range(2):  # a turn in which its transport is made, and one in which its protocol gets that
        await asyncio.sleep(0)
    server.close()


def offer(engine_id: str, request_id: str, blocks: int, tokens: int) -> dict[str, Any]:
    """Transfer parameters under NIXL's names, without the address."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [list(range(blocks))],
        "remote_engine_id": engine_id,
        "remote_request_id": request_id,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": tokens,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
    }


@asynccontextmanager
async def dial(transfer: Mapping[str, Any]) -> AsyncIterator[Callable[[str], Any]]:
    """The decode side: yields ``ask(op)``, which returns how many blocks wait. Raises OSError, TimeoutError."""
    reader, writer = await asyncio.wait_for(
        asyncio.open_connection(transfer["remote_host"], transfer["remote_port"]), _TIMEOUT
    )

    async def ask(op: str) -> int | None:
        writer.write(json.dumps({"op": op, "request": transfer["remote_request_id"]}).encode() + b"\n")
        line = await asyncio.wait_for(reader.readline(), _TIMEOUT)
        if not line:
            raise ConnectionError("the prefill side hung up")
        blocks: int | None = json.loads(line)["blocks"]
        return blocks

    try:
        yield ask
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
