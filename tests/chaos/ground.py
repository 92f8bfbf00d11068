"""A cluster as people start it, on Ray nodes of its own, with mock workers in bulk or a few real engines; and what its
processes are."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.conftest import RealCluster, running
from tests.ports import free_ports
from tests.ray_nodes import Nodes, several_nodes
from tests.workers.support import TINY_ENGINE

MODEL, MARK = "m", "SEGUE_CHAOS_RUN"
GATEWAYS = 2
ENGINES_SILENCE = 6  # an engine that starts takes all of a small machine for a while


def spec(prefill: int, decode: int, *, engines: bool = False) -> dict[str, Any]:
    http, grpc, controller = free_ports(3)
    mock = {
        "step_seconds": 0.02,
        "max_model_len": 1024,
        "block_size": 16,
        "kv_blocks": 2048,
        "lease_seconds": 5.0,
        "restores": True,
    }
    pool = {"device": "cpu"} if engines else {"backend": "mock", "device": "cpu"}
    return {
        "cluster": {"name": "chaos"},
        "gateway": {
            "http": f"127.0.0.1:{http}",
            "grpc": f"127.0.0.1:{grpc}",
            "processes": GATEWAYS,
            "queue_seconds": 60,
            "silence_seconds": ENGINES_SILENCE if engines else 4,
        },
        "controller": {
            "listen": f"127.0.0.1:{controller}",
            "restart_backoff_initial": 0.2,
            "restart_backoff_max": 2,
        },
        "models": [
            {
                "name": MODEL,
                "source": "tiny:llama",
                "routing": {"prefill": "apart"},
                "engine": TINY_ENGINE if engines else mock,
                "pools": {"prefill": {**pool, "replicas": prefill}, "decode": {**pool, "replicas": decode}},
            }
        ],
    }


@dataclass
class Ground:
    """A running cluster. ``mark`` is in the environment of each process of its Ray, whoever its parent is now."""

    cluster: RealCluster
    nodes: Nodes
    mark: str
    size: int  # workers, gateways and the controller
    memory: set[str] = field(default_factory=set)  # what was in /dev/shm before

    def processes(self) -> list[psutil.Process]:
        """All that belong to its Ray."""
        return [each for each in psutil.process_iter() if _is_marked(each, self.mark)]

    def owns(self, pid: int) -> bool:
        """A status may be older than a process's end, and its number somebody else's by now."""
        return any(each.pid == pid for each in self.processes())

    def raylets(self) -> list[psutil.Process]:
        """Oldest, and so the head's, first."""
        found = [each for each in self.processes() if _name(each) == "raylet"]
        return sorted(found, key=lambda each: each.create_time())

    def actors(self) -> list[psutil.Process]:
        """Of workers, their engines, gateways and the controller."""
        names = ("ray::WorkerActor", "ray::GatewayProcess", "ray::ControllerActor", "VLLM::")
        return [each for each in self.processes() if _title(each).startswith(names)]


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def ground(home: Path, prefill: int, decode: int, nodes: int, *, engines: bool = False) -> Iterator[Ground]:
    mark = uuid.uuid4().hex  # (a title that Ray gives to a process would be written over its environment)
    memory = set(os.listdir("/dev/shm"))  # noqa: S108
    with (
        several_nodes(nodes, **{MARK: mark, "SPT_NOENV": "1"}) as there,
        running(spec(prefill, decode, engines=engines), home, "--address", there.address) as cluster,
    ):
        yield Ground(cluster, there, mark, prefill + decode + GATEWAYS + 1, memory)
