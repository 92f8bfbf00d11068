"""Outlives an owner that is killed, and ends what the owner no longer can: ``python -m orchestrator.cli.guard FOLDER``.

Ray's processes and the workers die with their owner, but some take a minute over it, and none of them removes files.
On a Ray of others nothing dies with the owner: what is to go from there is taken down here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cli.footprint import Footprint, Swept
from orchestrator.cli.run_folder import AlreadyUp, RunFolder, RunRecord

_RELEASED = b"released"
_APART = "--apart"
_GRACE_SECONDS = 2.0


@contextmanager
def guarded(folder: RunFolder, *, apart: bool = False) -> Iterator[int]:
    """While it lasts, the death of this process gets the folder's cluster cleaned up. Yields the guard's pid.

    ``apart``: the guard is no descendant of this process, and speaks where this one does. A Ray job that is stopped
    is killed with all its descendants, whatever their session.
    """
    command = [sys.executable, "-m", "orchestrator.cli.guard", str(folder.path), *([_APART] if apart else [])]
    # A session of its own: Ctrl-C and a closing terminal are for the owner.
    guard = subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if apart else subprocess.DEVNULL,
        stderr=None if apart else subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield _set_apart(guard) if apart else guard.pid
    finally:
        with contextlib.suppress(BrokenPipeError):
            guard.communicate(_RELEASED, timeout=10)


def _set_apart(guard: subprocess.Popen[bytes]) -> int:
    assert guard.stdout is not None  # noqa: S101
    pid = int(guard.stdout.readline())
    guard.wait(10)  # only then the child that it leaves is nobody's descendant
    return pid


def clean(folder: RunFolder, grace: float) -> Swept:
    """Ends and removes what a dead owner left. The caller holds the folder."""
    swept = Footprint.load(folder.footprint).sweep(grace)
    record = folder.read()
    if record and record.ray_folder:
        shutil.rmtree(record.ray_folder, ignore_errors=True)
    folder.forget()
    return swept


def main() -> None:
    if _APART in sys.argv:
        _step_aside()
    if sys.stdin.buffer.read() == _RELEASED:
        return
    folder = RunFolder(Path(sys.argv[1]))
    with contextlib.suppress(AlreadyUp), folder.claim():
        record = folder.read()
        if record and record.outlived:
            _take_down(record)
        clean(folder, _GRACE_SECONDS)


def _step_aside() -> None:
    """Goes on in a child, whose pid is told, and whose parent is the system's first process."""
    if pid := os.fork():
        os.write(1, f"{pid}\n".encode())
        os._exit(0)
    os.dup2(2, 1)


def _take_down(record: RunRecord) -> None:
    """From a Ray of others, what its owner did not come to take down."""
    from orchestrator.cli.ground import RayThatIsThere
    from orchestrator.core.errors import SegueError

    os.environ.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)  # that of a job which has ended
    seconds = max(0.0, record.ends_by - time.time()) if record.ends_by else record.drain_seconds
    _say(f"what owned cluster {record.name} was killed; taking the cluster down, {seconds:.0f} s for what runs")
    ground = RayThatIsThere(record.ray_address)
    try:
        ground.start(None)
        try:
            ground.stop_controller(record.name, seconds)
        finally:
            ground.stop()
    except SegueError as error:
        _say(f"{error}")
    else:
        _say(f"cluster {record.name} is down")


def _say(words: str) -> None:
    sys.stderr.write(f"segue: {words}\n")


if __name__ == "__main__":
    main()
