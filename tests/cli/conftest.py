"""A fake cluster, and run folders in the test's own directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.cli.run_folder import RunFolder, RunRecord
from tests.cli.fakes import FakeCluster, serving, status


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGUE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with serving(FakeCluster()) as fake:
        fake.tell(status(grpc_address=fake.address))
        yield fake


Runs = Callable[..., RunFolder]


@pytest.fixture
def runs() -> Iterator[Runs]:
    """Makes a folder look like that of a running cluster: with a record, and its lock held."""
    locks = []

    def run(name: str = "test", *, pid: int = 0, **record: str) -> RunFolder:
        folder = RunFolder.of(name)
        folder.logs.mkdir(parents=True)
        folder.write(RunRecord(name, pid or os.getpid(), "some.yaml", time.time(), **({"phase": "ready"} | record)))
        lock = (folder.path / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        locks.append(lock)
        return folder

    yield run
    for lock in locks:
        lock.close()
