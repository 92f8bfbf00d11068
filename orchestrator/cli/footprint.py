"""What a cluster left its mark on: processes and shared-memory files. Recorded while it runs, swept when it ends.

The owner adopts orphans (it is a child subreaper): every process it caused, however indirectly, stays below it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_SHM = Path("/dev/shm")  # noqa: S108
_MAPPED = re.compile(rb" (\d+) +/dev/shm/[^\n]+$", re.MULTILINE)
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.1


@dataclass(slots=True)
class Swept:
    """What had to be ended or removed by force: descriptions of processes, and shared-memory files."""

    processes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Footprint:
    """``processes`` maps pids to when they were created: both name a process for good. ``guard`` is left out."""

    path: Path
    processes: dict[int, float] = field(default_factory=dict)
    shm: set[str] = field(default_factory=set)
    guard: int = 0

    @classmethod
    def load(cls, path: Path) -> Footprint:
        """An earlier owner's footprint; an empty one where none was recorded."""
        try:
            saved = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return cls(path)
        return cls(path, {int(pid): created for pid, created in saved["processes"].items()}, set(saved["shm"]))

    def sample(self) -> None:
        """Adds what is below this process now, and writes it down for whoever sweeps if this process is killed."""
        found = _descendants()
        found.pop(self.guard, None)
        self.processes = {pid: made for pid, made in (self.processes | found).items() if _alive(pid, made)}
        mapped = _mapped(self.processes)
        self.shm = {str(path) for path, inode in _shared_memory().items() if inode in mapped or str(path) in self.shm}
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps({"processes": self.processes, "shm": sorted(self.shm)}))
        draft.replace(self.path)

    def sweep(self, grace: float) -> Swept:
        """Lets the processes end of themselves, then ends them; removes shared memory that nobody maps any more."""
        swept = Swept()
        self._wait(grace)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in self._living():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if end is psutil.Process.terminate:
                        swept.processes.append(_describe(process))
                    end(process)
            self._wait(3.0)
        in_use = _mapped(psutil.pids())
        for path, inode in _shared_memory().items():
            if str(path) in self.shm and inode not in in_use:
                path.unlink(missing_ok=True)
                swept.files.append(str(path))
        self.path.unlink(missing_ok=True)
        return swept

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._living() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _living(self) -> list[psutil.Process]:
        living = []
        for pid, created in self.processes.items():
            if _alive(pid, created):
                with contextlib.suppress(psutil.NoSuchProcess):
                    living.append(psutil.Process(pid))
        return living


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent dies, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants() -> dict[int, float]:
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = process.create_time()
    return found


def _alive(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _mapped(pids: Iterable[int]) -> set[int]:
    """Inodes of the shared-memory files that processes map, as far as they may be looked at.

    Not names: a semaphore is mapped under another name, which is removed once it has its own.
    """
    inodes: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            inodes.update(map(int, _MAPPED.findall(Path(f"/proc/{pid}/maps").read_bytes())))
    return inodes


def _shared_memory() -> dict[Path, int]:
    """Shared-memory files and their inodes; none where the system keeps them elsewhere."""
    try:
        with os.scandir(_SHM) as entries:
            return {Path(entry.path): entry.inode() for entry in entries}
    except FileNotFoundError:
        return {}


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline()).strip()[:60] or process.name()}"
    except psutil.Error:
        return str(process.pid)
