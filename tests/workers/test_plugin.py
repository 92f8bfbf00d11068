"""Processes end with the worker that their environment names, and with no other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from workers import inventory, plugin

CHILD = "import time; from workers.plugin import register; register(); print('up', flush=True); time.sleep(60)"
WORKER = "import time; time.sleep(60)"


def run(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def test_a_process_ends_with_its_worker() -> None:
    with run(WORKER) as worker:
        environment = {plugin.WORKER_PID: str(worker.pid), plugin.WORKER_STARTED: str(inventory.started(worker.pid))}
        with run(CHILD, **environment) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n"
            assert child.poll() is None
            worker.kill()
            assert child.wait(2) == -9


def test_a_process_does_not_outlive_a_worker_that_is_gone_already() -> None:
    with run("") as worker:
        pid, ticks = worker.pid, inventory.started(worker.pid)
        worker.wait()
    with run(CHILD, **{plugin.WORKER_PID: str(pid), plugin.WORKER_STARTED: str(ticks)}) as child:
        assert child.wait(40) == -9


def test_a_pid_given_out_again_is_not_the_worker() -> None:
    with run(WORKER) as stranger:
        with run(CHILD, **{plugin.WORKER_PID: str(stranger.pid), plugin.WORKER_STARTED: "1"}) as child:
            assert child.wait(40) == -9
        stranger.kill()


def test_other_processes_are_left_alone() -> None:
    with run(CHILD) as free:
        assert free.stdout is not None
        assert free.stdout.readline() == "up\n"
        time.sleep(0.1)
        assert free.poll() is None
        assert Path(f"/proc/{free.pid}/task").exists()
        assert len(list(Path(f"/proc/{free.pid}/task").iterdir())) == 1
        free.kill()


def test_a_worker_does_not_watch_itself(monkeypatch: object) -> None:
    before = os.environ.get(plugin.WORKER_PID), os.environ.get(plugin.WORKER_STARTED)
    try:
        plugin.mark_environment()
        plugin.register()  # would kill this very process at its end, and start a thread now
        assert os.environ[plugin.WORKER_PID] == str(os.getpid())
    finally:
        for name, value in zip((plugin.WORKER_PID, plugin.WORKER_STARTED), before, strict=True):
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
