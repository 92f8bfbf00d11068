"""Writes a recording beside a gateway's event loop.

The loop's thread only appends to a queue: what is written of an event is made on a thread of its own, which lets the
loop go first after every few events. Nothing waits for the disk. Where it can't keep up the recording ends, and says so
in the log and in its last line: one with a hole in it would be worth nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from orchestrator.core import messages as m
from orchestrator.core.errors import SegueError
from orchestrator.record.codec import encode
from orchestrator.record.recording import CLOSED, Alias, End, Header, end_line, header_line, line

LOOK_SECONDS = 0.1  # how long an event may wait for the file; so long it may be lost if the process is killed
CLOSE_SECONDS = 10.0
BACKLOG_LIMIT = 65_536  # units of about 1 kB of memory
_HASHES_A_UNIT = 32
_BATCH = 16
_BREATH_SECONDS = 0.0005
_SLOW = "the disk did not keep up"

_Noted = tuple[float, m.Event, Sequence[m.Command], str]


class Recorder:
    """One recording. ``note`` and ``known_as`` are the event loop's, and take what nobody changes any more.

    Args:
        path: must not be there yet. ``open_recording`` finds one.
        failed: is told, once and on any thread, why a recording ends before its time.

    Raises:
        OSError: the file can't be made.
    """

    def __init__(self, path: str, header: Header, failed: Callable[[str], None]) -> None:
        self.path = path
        self._failed = failed
        self._queue: deque[_Noted | Alias] = deque()
        # Each is counted by one thread alone, so that neither takes a lock.
        self._taken = self._done = 0
        self._events = self._bytes = 0  # in the file, whole lines
        self._reason = ""  # why nothing more is taken
        self._wake = threading.Event()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._write(header_line(header))
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def note(self, now: float, event: m.Event, commands: Sequence[m.Command], raised: str = "") -> None:
        """A step of the brain: what it was fed when, and what it answered, or the name of the error that it raised."""
        if self._reason:
            return
        weight = _weight(event)
        if self._taken - self._done + weight > BACKLOG_LIMIT and self._taken > self._done:
            self._stop(_SLOW)
            return
        self._taken += weight
        self._queue.append((now, event, commands, raised))

    def known_as(self, request_id: str, client_id: str) -> None:
        """What the client calls a request that is about to arrive."""
        if not self._reason:
            self._queue.append(Alias(request_id, client_id))

    def close(self) -> None:
        """Writes what is left, ``CLOSE_SECONDS`` at most. Safe to call twice."""
        self._reason = self._reason or CLOSED
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._failed(f"{_SLOW}: it is not written to its end")

    def _stop(self, reason: str) -> None:
        self._reason = reason
        self._failed(reason)
        self._wake.set()

    # ---- on the recorder's own thread

    def _run(self) -> None:
        try:
            while not self._wake.wait(LOOK_SECONDS):
                self._drain()
            self._drain()
            self._write(end_line(End(self._reason, self._events)))
        except OSError as error:
            self._broken(f"it can't be written: {error.strerror}")
        except SegueError as error:
            self._broken(str(error))
        finally:
            self._queue.clear()
            os.close(self._file)

    def _broken(self, reason: str) -> None:
        self._stop(reason)
        try:
            os.ftruncate(self._file, self._bytes)  # a line may be there in part
            self._write(end_line(End(reason, self._events)))
        except OSError:
            pass  # told already; a reader sees that the end is missing

    def _drain(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))]
            self._write(b"".join(map(_line, batch)))
            events = [noted[1] for noted in batch if not isinstance(noted, Alias)]
            self._events += len(events)
            self._done += sum(map(_weight, events))
            if not self._wake.is_set() and self._taken - self._done < BACKLOG_LIMIT // 2:
                time.sleep(_BREATH_SECONDS)  # hands over the interpreter's lock

    def _write(self, lines: bytes) -> None:
        left = memoryview(lines)
        while left:
            left = left[os.write(self._file, left) :]
        self._bytes += len(lines)


def _line(noted: _Noted | Alias) -> bytes:
    if isinstance(noted, Alias):
        return line(encode(Alias, noted))
    now, event, commands, raised = noted
    plain: dict[str, object] = {"now": now, "event": encode(m.Event, event)}
    if commands:
        plain["commands"] = [encode(m.Command, command) for command in commands]
    if raised:
        plain["raised"] = raised
    return line(plain)


def _weight(event: m.Event) -> int:
    if isinstance(event, m.Arrived):
        return 1 + len(event.blocks) // _HASHES_A_UNIT
    if isinstance(event, m.CacheChanged):
        return 1 + (len(event.stored) + len(event.removed)) // _HASHES_A_UNIT
    return 1


def open_recording(path: str, header: Header, failed: Callable[[str], None]) -> Recorder:
    """Begins a recording at ``path``; where a gateway before this one left its own there, beside it, named by epoch.

    Raises:
        SegueError: the file can't be made.
    """
    for name in (path, f"{path}.epoch-{header.epoch}"):
        try:
            return Recorder(name, header, failed)
        except FileExistsError:
            continue
        except OSError as error:
            raise SegueError(
                f"the recording can't be written: {error.strerror}", where=name, hint="see `segue up --record`"
            ) from error
    raise SegueError("the recording exists already", where=path, hint="recordings are never overwritten")
