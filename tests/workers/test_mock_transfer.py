"""The mocks' hand-over leaves no connection behind, whenever it ends."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from workers.mock_transfer import TransferServer


class Nothing:
    """No finished request waits."""

    def pinned_blocks(self, request_id: str) -> int | None:
        return None

    def unpin(self, request_id: str) -> None: ...


@pytest.mark.parametrize("turns", range(4))
async def test_a_connection_that_comes_as_the_server_ends_is_closed(turns: int) -> None:
    """The loop finds both at once, the end first; or the end comes some turns later."""
    loop = asyncio.get_running_loop()
    server = TransferServer(Nothing())
    port = await server.start("127.0.0.1")
    reader, writer = os.pipe()
    ending: asyncio.Future[asyncio.Task[None]] = loop.create_future()

    async def end() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.stop()

    def told() -> None:
        loop.remove_reader(reader)
        ending.set_result(asyncio.create_task(end()))

    loop.add_reader(reader, told)
    os.write(writer, b"e")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        await (await ending)
        await asyncio.sleep(0)
        assert peer.recv(1) == b""  # or this blocks until the time is up
    os.close(reader)
    os.close(writer)
