"""A folder a key, made once even when several processes ask at the same moment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.core.errors import ModelSourceError

LOCK_SECONDS = 900.0  # past any conversion's own limit, so whoever waits outlives whoever works
POLL_SECONDS = 0.2
PARTIAL = ".partial-"

Progress = Callable[[str], None]


def root() -> Path:
    """$SEGUE_CACHE, or ~/.cache/segue; models are in its folder ``models``."""
    return Path(os.environ.get("SEGUE_CACHE") or Path.home() / ".cache" / "segue") / "models"


def made_once(key: str, make: Callable[[Path], None], progress: Progress) -> Path:
    """The folder of that key, which ``make`` fills if it isn't there yet.

    ``make`` works in a partial folder that is renamed when it is complete, so a folder under its own name always is.
    """
    folder = root() / key
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{key}.lock"), progress):
            if not folder.is_dir():
                _make(folder, make)
    except OSError as error:
        hint = "set SEGUE_CACHE to a folder with room that you may write to"
        raise ModelSourceError(
            f"the model can't be stored: {error.strerror or error}", where=str(folder), hint=hint
        ) from error
    return folder


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    for stale in folder.parent.glob(f"{folder.name}{PARTIAL}*"):  # whoever made it died: we hold its lock
        shutil.rmtree(stale)
    partial = folder.with_name(f"{folder.name}{PARTIAL}{os.getpid()}")
    partial.mkdir()
    try:
        make(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """An exclusive lock that ends with the process. The empty file stays: removing it would let two hold "the" lock."""
    deadline = time.monotonic() + LOCK_SECONDS
    told = False
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    what = f"another process has been making this model for {LOCK_SECONDS:.0f} s"
                    raise ModelSourceError(what, where=str(path), hint="end that process") from None
            if not told:
                progress("waiting for another process that makes this model")
                told = True
            time.sleep(POLL_SECONDS)
        yield
