"""Outlives an owner that is killed, and ends what the owner no longer can: ``python -m orchestrator.cli.guard FOLDER``.

Ray's processes and the workers die with their owner, but some take a minute over it, and none of them removes files.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cli.footprint import Footprint, Swept
from orchestrator.cli.run_folder import AlreadyUp, RunFolder

_RELEASED = b"released"
_GRACE_SECONDS = 2.0


@contextmanager
def guarded(folder: RunFolder) -> Iterator[int]:
    """While it lasts, the death of this process gets the folder's cluster cleaned up. Yields the guard's pid."""
    command = [sys.executable, "-m", "orchestrator.cli.guard", str(folder.path)]
    # A session of its own: Ctrl-C and a closing terminal are for the owner.
    guard = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield guard.pid
    finally:
        with contextlib.suppress(BrokenPipeError):
            guard.communicate(_RELEASED, timeout=10)


def clean(folder: RunFolder, grace: float) -> Swept:
    """Ends and removes what a dead owner left. The caller holds the folder."""
    swept = Footprint.load(folder.footprint).sweep(grace)
    record = folder.read()
    if record and record.ray_folder:
        shutil.rmtree(record.ray_folder, ignore_errors=True)
    folder.forget()
    return swept


def main() -> None:
    if sys.stdin.buffer.read() == _RELEASED:
        return
    folder = RunFolder(Path(sys.argv[1]))
    with contextlib.suppress(AlreadyUp), folder.claim():
        clean(folder, _GRACE_SECONDS)


if __name__ == "__main__":
    main()
