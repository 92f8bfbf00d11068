"""The journal of ``segue batch`` as a file: a result counts once it is on the disk."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.cli import batch_lines as lines
from orchestrator.cli.batch_lines import Line, Task
from orchestrator.core.errors import ConfigError, SegueError


class Busy(SegueError):  # noqa: N818  # named as its relatives in core.errors
    """Another process works on the same output."""

    code = "batch_busy"


class Journal:
    """Beside the output, which is made of it at the end. Locked as long as it is open.

    Raises:
        ConfigError: it belongs to another input, or the output is there already.
        Busy: another process has it.
    """

    def __init__(self, output: Path, task: Task, model: str | None, each: Callable[[dict[str, Any]], None]) -> None:
        self._output = output
        self._task = task
        self._path = output.with_name(f"{output.name}.journal")
        if output.exists() and not self._path.exists():
            raise ConfigError("exists", where=str(output), hint="results are never overwritten: name another")
        self._file = self._path.open("a+b")
        try:
            self._lock()
            self._file.seek(0)
            self.progress = lines.recover(self._file, task, model, each)
            self.torn = self._file.seek(0, os.SEEK_END) - self.progress.end
            self._file.truncate(self.progress.end)
            if not self.progress.end:
                header = lines.header(task, model)
                self._write(header)
                self.progress.end = len(header)
                _sync_folder(self._path.parent)
        except BaseException:
            self._file.close()
            raise
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flush: asyncio.Task[None] | None = None

    def left(self) -> list[Line]:
        return lines.left(self._task, self.progress)

    async def add(self, number: int, output: dict[str, Any]) -> None:
        """Returns once it is on the disk. Those that come together share the wait."""
        raw = lines.entry(number, output)
        start = self.progress.end + sum(len(each) for each, _ in self._waiting)
        size = len(raw) - raw.index(b"{") - 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((raw, future))
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._flushed())
        await asyncio.shield(future)
        self.progress.done[number] = (start + raw.index(b"{"), size)

    async def _flushed(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            text = b"".join(raw for raw, _ in group)
            self.progress.end += len(text)
            try:
                await asyncio.to_thread(self._write, text)
            except OSError as error:
                self._break(group, error)
                return
            for _, future in group:
                future.set_result(None)

    def _break(self, group: list[tuple[bytes, asyncio.Future[None]]], error: OSError) -> None:
        what = f"results can't be kept: {error.strerror or error}"
        for _, future in (*group, *self._waiting):
            future.set_exception(SegueError(what, where=str(self._path), hint="make room, and run the same again"))
        self._waiting.clear()

    def finish(self) -> None:
        """Makes the output, and ends the journal. Whoever looks finds no output, or all of it."""
        draft = self._output.with_name(f"{self._output.name}.partial")
        with draft.open("wb") as file:
            file.writelines(lines.in_order(self._task, self.progress, self._read))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._output)
        _sync_folder(self._output.parent)
        self._path.unlink()
        self._file.close()

    def close(self) -> None:
        """One without results goes: who was refused may come again with another model."""
        if not self._file.closed:
            if not self.progress.done:
                self._path.unlink(missing_ok=True)
            self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:  # or its file has just been removed by whoever had it
            raise Busy("another segue batch is at it", where=str(self._output))

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def _write(self, text: bytes) -> None:
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())


def _sync_folder(folder: Path) -> None:
    """So that a name in it outlives the machine's end too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
