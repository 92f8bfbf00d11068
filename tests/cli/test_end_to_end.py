"""The real `segue` on a real Ray with real gateways; only the engines are mocks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from orchestrator.cli.run_folder import RunFolder
from tests.cli.owner_program import SHM
from tests.ports import free_ports

pytestmark = pytest.mark.ray

START_SECONDS = 180.0
END_SECONDS = 60.0

CONFIG = """
cluster: {{name: e2e}}
gateway: {{http: "127.0.0.1:{}", grpc: "127.0.0.1:{}", processes: 2}}
controller: {{listen: "127.0.0.1:{}"}}
models:
  - name: tiny
    source: "tiny:llama"
    routing: {{prefill: apart}}
    pools:
      prefill: {{replicas: 1, backend: mock}}
      decode: {{replicas: 1, backend: mock}}
"""


def segue(*words: str, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def wait_until(true: Callable[[], object], what: str, seconds: float = END_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.1)


class Scene:
    """The machine as it was before, to compare with what it is after."""

    def __init__(self, folder: Path) -> None:
        self.ports = free_ports(3)
        self.config = folder / "e2e.yaml"
        self.config.write_text(CONFIG.format(*self.ports))
        self.owner = 0
        self._shm = set(SHM.iterdir())
        self._started: list[psutil.Process] = []

    def look(self) -> list[psutil.Process]:
        """Remembers the owner's whole tree, itself included."""
        owner = psutil.Process(self.owner)
        self._started = [owner, *owner.children(recursive=True)]
        return self._started

    def living(self) -> list[psutil.Process]:
        return [one for one in self._started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def assert_nothing_is_left(self) -> None:
        assert not self.living()
        mapped = "".join(_maps(pid) for pid in psutil.pids())
        assert not [path for path in set(SHM.iterdir()) - self._shm if f" {path.stat().st_ino} " not in mapped]
        for port in self.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        folder = RunFolder.of("e2e")
        assert {path.name for path in folder.path.iterdir()} <= {"lock", "logs", "logs.previous", "up.log"}

    def end(self) -> None:
        """After a test that failed half-way."""
        for process in self.living():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return ""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.end()


def test_up_status_chat_and_an_end_without_traces(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "output"
    recorded = ["--record", str(tmp_path / "recording")]
    command = [sys.executable, "-m", "orchestrator.cli.main", "up", str(scene.config), *recorded]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    scene.owner = process.pid
    try:
        over = lambda: "Stop it: Ctrl-C" in output.read_text() or process.poll() is not None  # noqa: E731
        wait_until(over, "ready", START_SECONDS)
        assert process.poll() is None, output.read_text()
        started = scene.look()

        told = segue("status", "--json")
        assert told.returncode == 0, told.stderr
        cluster = json.loads(told.stdout)
        assert cluster["ready"] is True
        assert [pool["role"] for pool in cluster["models"][0]["pools"]] == ["prefill", "decode"]
        pids = {worker["pids"]["actor"] for pool in cluster["models"][0]["pools"] for worker in pool["workers"]}
        assert pids <= {one.pid for one in started}
        assert len({gateway["pid"] for gateway in cluster["gateways"]}) == 2
        wait_until(lambda: _who_answers(cluster["gateways"][0]["http"]) == "gateway-0", "the first of two on a port")
        wait_until(lambda: _who_answers(cluster["gateways"][0]["http"]) == "gateway-1", "the second of two on a port")

        answer = segue("chat", "--max-tokens", "5", "Say anything")
        assert (answer.returncode, bool(answer.stdout.strip())) == (0, True), answer.stderr
        assert "prefill on tiny-prefill-0 · decode on tiny-decode-0" in answer.stderr
        assert "KV cache moved" in answer.stderr

        (request,) = [line.split('"')[3] for path in tmp_path.glob("recording*") for line in _aliases(path)][-1:]
        explained = segue("explain", request)
        assert (explained.returncode, "decode on tiny-decode-0" in explained.stdout) == (0, True), explained.stderr

        assert _beyond_loopback(started) == []
        record = RunFolder.of("e2e").read()
        assert record is not None
        assert stat.S_IMODE(Path(record.ray_folder).stat().st_mode) == 0o700
        process.send_signal(signal.SIGINT)
        assert process.wait(END_SECONDS) == 0, output.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    shown = output.read_text()
    assert "none left, ports free" in shown
    assert "had to end" not in shown
    scene.assert_nothing_is_left()
    assert segue("status").returncode == 3
    recordings = sorted(tmp_path.glob("recording*"))
    assert [path.name for path in recordings] == ["recording.gateway-0", "recording.gateway-1"]
    for path in recordings:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        replayed = segue("replay", str(path))
        assert (replayed.returncode, replayed.stderr) == (0, ""), replayed.stdout + replayed.stderr


def _aliases(recording: Path) -> list[str]:
    """Its lines that tell what requests are called outside."""
    return [line for line in recording.read_text().splitlines() if line.startswith('{"request"')]


def _who_answers(address: str) -> str:
    """The gateway that took one connection, by the label that its metrics carry."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return re.search(r'gateway="([^"]+)"', answer.read().decode())[1]


def _beyond_loopback(processes: list[psutil.Process]) -> list[str]:
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN and one.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                    found.append(f"{process.name()} {one.laddr.ip}:{one.laddr.port}")
    return found


def test_detached_and_then_killed(scene: Scene) -> None:
    started = segue("up", "--detach", str(scene.config), seconds=START_SECONDS)
    assert started.returncode == 0, started.stdout + started.stderr
    assert "Stop it: segue down --name e2e" in started.stdout
    record = RunFolder.of("e2e").read()
    assert record is not None
    scene.owner = record.pid
    scene.look()
    assert segue("chat", "--max-tokens", "3", "Say anything").returncode == 0

    os.kill(record.pid, signal.SIGKILL)
    wait_until(lambda: RunFolder.of("e2e").read() is None and not scene.living(), "the guard's work")
    scene.assert_nothing_is_left()
    assert segue("down").returncode == 3


def test_a_signal_to_the_whole_group_is_an_orderly_end(scene: Scene, tmp_path: Path) -> None:
    """As ``timeout`` or a service manager sends it: it must not reach Ray before the drain is over."""
    output = tmp_path / "output"
    command = [sys.executable, "-m", "orchestrator.cli.main", "up", str(scene.config)]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    scene.owner = process.pid
    wait_until(lambda: "Stop it: Ctrl-C" in output.read_text() or process.poll() is not None, "ready", START_SECONDS)
    scene.look()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(END_SECONDS) == 0, output.read_text()
    assert "none left, ports free" in output.read_text()
    assert "had to end" not in output.read_text()
    scene.assert_nothing_is_left()
