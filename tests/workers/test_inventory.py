"""Ports, processes and folders as the machine has them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from orchestrator.core.errors import WorkerStartFailed
from workers import inventory


def test_a_free_port_can_be_bound_and_is_none_of_the_kernels_or_rays() -> None:
    port = inventory.free_port("127.0.0.1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not low <= port <= high
    assert not 10002 <= port <= 19999


def test_a_process_is_known_by_when_it_started() -> None:
    assert inventory.started(os.getpid()) == inventory.started(os.getpid()) is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert inventory.started(child.pid) is not None
        assert child.pid in inventory.descendants(os.getpid())
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert inventory.started(child.pid) is None  # not reaped yet, and gone all the same
        assert child.pid not in inventory.descendants(os.getpid())


def test_a_stopped_process_is_told_from_one_that_waits_or_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert inventory.stopped([child.pid, os.getpid()]) == []
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert inventory.stopped([child.pid, os.getpid()]) == [child.pid]
        child.kill()
    assert inventory.stopped([child.pid]) == []


def test_an_engines_shared_memory_is_known_by_its_name() -> None:
    block = SharedMemory(create=True, size=4096)
    try:
        name = Path("/dev/shm", block.name)  # noqa: S108
        assert name in inventory.shared_memory([os.getpid()])
        inventory.remove_files([name, name])
        assert not name.exists()
    finally:
        block.close()
        resource_tracker.unregister(f"/{block.name}", "shared_memory")
    assert inventory.shared_memory([4_000_000]) == set()


def test_folders_of_workers_that_are_gone_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        monkeypatch.setattr("tempfile.tempdir", parent)
        stale, stranger = Path(parent, "segue-worker-4000000-17-abc"), Path(parent, "segue-worker-odd")
        for folder in (stale, stranger):
            folder.mkdir()
        mine, again = inventory.make_run_folder(), inventory.make_run_folder()
        assert mine.is_dir()
        assert again.is_dir()
        assert not stale.exists()
        assert stranger.exists()


def test_a_folder_whose_sockets_could_not_be_named_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(WorkerStartFailed, match="TMPDIR"):
        inventory.make_run_folder()
    assert not list(tmp_path.iterdir())


def test_affinity_is_widened_for_every_thread() -> None:
    code = "import os, threading; os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        while len(os.sched_getaffinity(child.pid)) == len(os.sched_getaffinity(0)) > 1:
            pass
        inventory.widen_affinity(child.pid)
        assert os.sched_getaffinity(child.pid) == os.sched_getaffinity(0)
        child.kill()


def test_what_ray_adds_to_an_actors_environment_is_told_from_an_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS_OF_RAY", "1")
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    assert inventory.added_by_ray("OMP_NUM_THREADS_OF_RAY")
    assert not inventory.added_by_ray("PATH")  # this process was started with it
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert not inventory.added_by_ray("OMP_NUM_THREADS_OF_RAY")


def test_the_interface_of_an_address() -> None:
    assert inventory.interface_of("127.0.0.1") == "lo"
    assert inventory.interface_of("203.0.113.7") == ""
