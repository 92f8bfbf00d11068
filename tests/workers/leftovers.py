"""What a worker's processes hold, and whether it is gone."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.workers.support import WorkerProcess
from workers.inventory import started


def wait(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until ``condition`` held; fails after ``seconds``."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began


def gone(pids: list[int]) -> bool:
    return not any(started(pid) for pid in pids)


def left_behind(worker: WorkerProcess) -> list[Path]:
    """Socket folders and shared memory that name a worker's processes."""
    return list(Path(tempfile.gettempdir()).glob(f"segue-worker-{worker.process.pid}-*"))


def shared_memory(pids: list[int]) -> set[Path]:
    """Files of shared memory that processes have open or mapped: the machine may hold others, of others."""
    found: set[Path] = set()
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found.add(Path(line.split(maxsplit=5)[-1]))
        found.update(Path(os.readlink(each)) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink())
    return {path for path in found if path.is_relative_to("/dev/shm") and path.exists()}  # noqa: S108
