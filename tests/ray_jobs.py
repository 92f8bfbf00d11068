"""A Ray with its dashboard on this machine, behind a token of its own, and ``ray job`` on it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.ports import free_ports
from tests.ray_nodes import OBJECT_STORE_BYTES

START_SECONDS = 60
END_SECONDS = 30


class RayJobs:
    """``address`` is Ray's, for drivers; ``environment`` what a driver needs; ``dashboard`` and ``agent`` are URLs."""

    def __init__(self, address: str, dashboard: str, agent: str, environment: dict[str, str]) -> None:
        self.address = address
        self.environment = environment
        self.dashboard = f"http://{dashboard}"
        self.agent = f"http://{agent}"

    def submit(self, folder: Path, *words: str, name: str, environment: str = "{}") -> str:
        """Submits ``segue WORDS`` with the folder as its working directory; returns the job's id."""
        command = [sys.executable, "-m", "orchestrator.cli.main", *words]
        options = ["--no-wait", "--submission-id", name, "--working-dir", str(folder)]
        said = self._ray("submit", *options, "--runtime-env-json", environment, "--", *command)
        assert said.returncode == 0, said.stdout + said.stderr
        return name

    def stop(self, job: str) -> str:
        """Returns what it had printed when Ray held it for stopped."""
        said = self._ray("stop", job)
        assert said.returncode == 0, said.stdout + said.stderr
        return self.output(job)

    def output(self, job: str) -> str:
        """All that it printed so far, and nothing else."""
        return str(self._get(f"{job}/logs")["logs"]).partition("Running entrypoint for job")[2]

    def status(self, job: str) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        return str(self._get(job)["status"])

    def _get(self, path: str) -> Any:
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return httpx.get(f"{self.dashboard}/api/jobs/{path}", headers=token, timeout=30).raise_for_status().json()

    def _ray(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("ray"), "job", verb, "--address", self.dashboard, *words]
        environment = os.environ | self.environment
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=environment)


@contextmanager
def ray_jobs() -> Iterator[RayJobs]:
    """Yields once the dashboard answers. At the end nothing of it is left."""
    port, dashboard, agent = free_ports(3)
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    folder = tempfile.mkdtemp(prefix="rj-", dir="/tmp")  # sockets have short paths
    places = ["--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}"]
    board = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    sizes = ["--num-cpus=4", f"--object-store-memory={OBJECT_STORE_BYTES}", f"--dashboard-agent-listen-port={agent}"]
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *places, *board, *sizes]
    with (Path(folder) / "head.log").open("wb") as log:
        head = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True, cwd="/"
        )
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}/api/version", head)
        yield RayJobs(f"127.0.0.1:{port}", f"127.0.0.1:{dashboard}", f"127.0.0.1:{agent}", environment)
    finally:
        below = psutil.Process(head.pid).children(recursive=True)
        head.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs([*below, psutil.Process(head.pid)], END_SECONDS)
        for process in left:
            process.kill()
        head.wait(END_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended"
        try:
            httpx.get(url, timeout=5)  # whatever it says: it wants the token
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"no dashboard at {url}")
