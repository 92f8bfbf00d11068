"""When one of several gateway processes begins to take connections.

They share their ports, and the kernel gives each that listens its share of the connections. So none that can't serve
may listen while another can. While none can, one listens all the same, to say what is missing.

What they go by is one lock on a file: shared by all that listen and can serve, exclusive to the one that listens though
it can't. Whoever dies gives it back.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from orchestrator.core.errors import SegueError
from orchestrator.telemetry import logs

PATIENCE_SECONDS = 10.0  # with one that listens and does not get to where others are
LOOK_SECONDS = 0.05  # between two looks at a lock that other processes change

log = logs.events("gateway.turn")


class Able(Protocol):
    """What a turn needs to know of its gateway."""

    draining: bool

    def not_ready(self) -> list[str]: ...

    def behind(self) -> bool:
        """Whether it serves nothing, or the fleet has what it can't use yet and another gateway perhaps can."""
        ...

    async def status_changed(self, timeout_seconds: float) -> bool: ...


class Turn:
    """A gateway's way to its ports: to listen once it ``comes``, and to let others follow as it ``passes``.

    Args:
        shared: the lock's file; None for a gateway with ports of its own, whose turn it always is.
        clock: monotonic seconds.
    """

    def __init__(self, gateway: Able, shared: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._lock = _PortsLock(shared) if shared else None
        self._clock = clock
        self._able_since: float | None = None

    def take(self) -> bool:
        """Whether to listen now; if so, its part of the lock is this gateway's."""
        if self._lock is None:
            return True
        if self._gateway.draining:
            return False
        missing = self._gateway.not_ready()
        if missing and self._lock.alone():
            return True
        if self._gateway.behind():
            return False
        return self._lock.together() or (not missing and self._waited_enough())

    async def comes(self) -> None:
        """Returns when it is time to listen."""
        while not self.take():
            await self._gateway.status_changed(LOOK_SECONDS)

    async def passes(self) -> None:
        """Returns once the gateway, which listens, can serve, so that others may join it."""
        while self._lock is not None and (self._gateway.not_ready() or not self._lock.together()):
            await self._gateway.status_changed(LOOK_SECONDS)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _waited_enough(self) -> bool:
        now = self._clock()
        if self._able_since is None:
            self._able_since = now
        if now - self._able_since < PATIENCE_SECONDS:
            return False
        log.warning("listens_beside_one_that_is_not_ready", waited_seconds=PATIENCE_SECONDS)
        return True


class _PortsLock:
    """A lock of one open file, and not of the process; the change from exclusive to shared lets nobody in between."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def alone(self) -> bool:
        return self._set(fcntl.F_WRLCK)

    def together(self) -> bool:
        return self._set(fcntl.F_RDLCK)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _set(self, kind: int) -> bool:
        whole_file = struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0)  # struct flock
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, whole_file)
        except BlockingIOError:
            return False
        except OSError as error:
            what = f"gateway processes can't agree on who listens: {error.strerror}"
            hint = "put SEGUE_HOME on a file system with record locks, or set gateway.processes: 1"
            raise SegueError(what, where=str(self._path), hint=hint) from error
        return True
