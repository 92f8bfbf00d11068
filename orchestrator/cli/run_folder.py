"""The folder of a cluster that runs on this machine: who owns it, where it answers, where its logs are."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from orchestrator.core.errors import ClusterUnreachable, ConfigError, SegueError

# A look at the lock (see `is_owned`) holds it for an instant, the guard of an owner that was killed for some seconds.
_CLAIM_SECONDS = 0.5
_CLAIM_FROM_GUARD_SECONDS = 15.0


class AlreadyUp(SegueError):  # noqa: N818  # named as its relatives in core.errors
    """A cluster of that name runs on this machine."""

    code = "already_up"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """run.json: what other commands need to know of a running cluster. Addresses are host:port, empty until known."""

    name: str
    pid: int
    config: str
    started: float  # seconds since the epoch
    phase: str = "preparing"  # preparing, starting, ready or stopping
    controller: str = ""
    http: str = ""
    grpc: str = ""
    ray_address: str = ""
    ray_folder: str = ""
    drain_seconds: float = 30.0
    attached: bool = False  # what is on a Ray of others goes with its owner, however that ends
    ends_by: float = 0.0  # seconds since the epoch; 0 while it is not to end

    @property
    def outlived(self) -> bool:
        """Whether a dead owner's cluster may go on, on a Ray of others, though it is to end."""
        return bool(self.ray_address and not self.ray_folder and (self.attached or self.ends_by))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and the lock. The owner holds the lock as long as it lives: a dead one is never taken for a live one."""

    path: Path

    @classmethod
    def of(cls, name: str) -> RunFolder:
        return cls(home() / name)

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def up_log(self) -> Path:
        return self.path / "up.log"

    @property
    def footprint(self) -> Path:
        return self.path / "footprint.json"

    @property
    def record_path(self) -> Path:
        return self.path / "run.json"

    def is_owned(self) -> bool:
        """Whether an owner is alive."""
        try:
            handle = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Owns the folder inside the block. Raises AlreadyUp."""
        self.logs.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            record = self.read()
            dying = record is not None and not psutil.pid_exists(record.pid)
            if not _lock(handle, _CLAIM_FROM_GUARD_SECONDS if dying else _CLAIM_SECONDS):
                raise self.already_up()
            yield
        finally:
            os.close(handle)

    def already_up(self) -> AlreadyUp:
        record = self.read()
        by = f" (process {record.pid}, {record.config})" if record else ""
        name = self.path.name
        return AlreadyUp(f"cluster {name} is already up{by}", hint=f"stop it with: segue down --name {name}")

    def read(self) -> RunRecord | None:
        """The record, whether or not its owner is alive; None without one. Raises SegueError if it is not a record."""
        try:
            fields: dict[str, Any] = json.loads(self.record_path.read_text())
            return RunRecord(**fields)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise SegueError(
                f"not a record of a run: {error}", where=str(self.record_path), hint="remove it"
            ) from error

    def write(self, record: RunRecord) -> None:
        """Readers see the old record or the new one, never a half."""
        draft = self.path / "run.json.new"
        draft.write_text(json.dumps(asdict(record), indent=2) + "\n")
        draft.replace(self.record_path)

    def update(self, **changes: Any) -> None:
        record = self.read()
        if record:
            self.write(replace(record, **changes))

    def forget(self) -> None:
        """Removes the record."""
        with suppress(FileNotFoundError):
            self.record_path.unlink()


def home() -> Path:
    """Where run folders are."""
    return Path(os.environ.get("SEGUE_HOME") or Path.home() / ".segue").absolute()


def running() -> list[RunFolder]:
    """Folders whose owner is alive, by name."""
    return [folder for folder in _all() if folder.is_owned() and folder.record_path.exists()]


def find(name: str | None) -> tuple[RunFolder, RunRecord]:
    """The running cluster of that name, or the only one. Raises ClusterUnreachable, or ConfigError for several."""
    folders = [RunFolder.of(name)] if name else running()
    if len(folders) > 1:
        names = ", ".join(folder.path.name for folder in folders)
        raise ConfigError(f"several clusters are up: {names}", hint="choose one with --name")
    for folder in folders:
        record = folder.read() if folder.is_owned() else None
        if record:
            return folder, record
    what = f"cluster {name} is not running on this machine" if name else "no cluster is running on this machine"
    raise ClusterUnreachable(what, hint="start one with: segue up CONFIG")


def stale(name: str | None) -> list[RunFolder]:
    """Folders with a record whose owner is dead."""
    folders = [RunFolder.of(name)] if name else _all()
    return [folder for folder in folders if folder.record_path.exists() and not folder.is_owned()]


def _all() -> list[RunFolder]:
    return [RunFolder(path.parent) for path in sorted(home().glob("*/run.json"))]


def _lock(handle: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True
