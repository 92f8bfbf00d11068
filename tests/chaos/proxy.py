"""A TCP link that can go wrong: cut, slow, or silent (half-open: nothing passes and nobody is told)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from workers.mock_transfer import close

CHUNK = 1 << 16


class Proxy:
    """Stands between whoever dials ``address`` and ``target``.

    ``delay``: seconds that each chunk takes. While ``held``, chunks wait and connections stay open.
    """

    def __init__(self, target: str) -> None:
        self.address = ""
        self.delay = 0.0
        self._target = target
        self._through = asyncio.Event()
        self._through.set()
        self._refuses = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.cut()
        self.release()
        if self._server is not None:
            await close(self._server)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for what was aborted to be closed

    def cut(self, *, refuse: bool = True) -> None:
        """Resets all connections; new ones are refused until ``mend`` (or are let through: a blip)."""
        self._refuses = refuse
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self._refuses = False
        self.delay = 0.0
        self.release()

    def hold(self) -> None:
        self._through.clear()

    def release(self) -> None:
        self._through.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        self._writers.add(writer)
        # Not in the task itself: one that is cancelled before it began never comes to its end.
        task.add_done_callback(lambda done: self._served(done, writer))

    def _served(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        self._tasks.discard(task)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._refuses:
            await self._join(reader, writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        try:
            back_reader, back = await asyncio.open_connection(host, int(port))
        except OSError:
            return
        self._writers.add(back)
        ways = [asyncio.ensure_future(self._pump(*way)) for way in ((reader, back), (back_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._writers.discard(back)
            back.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                await self._through.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(chunk)
                await writer.drain()


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
