"""What a cluster stands on: a Ray of its own on this machine, or one that is there. The only Ray calls here."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Protocol

from orchestrator.core.errors import ClusterUnreachable, NameTaken, SegueError
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.spec import ClusterSpec

# Unix sockets allow 107 bytes; Ray puts "/session_<date>_<pid>/sockets/plasma_store" below its folder, which it opens
# to every user: it goes into one that is for this user only.
_SOCKET_PATH_MAX = 107
_RAY_SOCKET_TAIL = len("/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
_KNOCK_SECONDS = 5.0
# No token ever goes through Ray's object store; this is the least it takes.
_OBJECT_STORE_BYTES = 80 << 20


class Ground(Protocol):
    """Starts and ends what a cluster runs on."""

    def folder(self, run_folder: Path) -> Path | None:
        """Where Ray is to keep its files; None where it is not ours."""

    def start(self, folder: Path | None) -> str:
        """Starts Ray, or joins it; returns its address."""

    def topology(self, name: str) -> Topology:
        """The hosts, and what the cluster of that name holds of them."""

    def require_name(self, name: str) -> None:
        """Raises NameTaken where a cluster has that name already."""

    def controller(self, name: str) -> str:
        """host:port of the controller of a cluster that runs here; empty if none of that name does."""

    def is_gone(self, name: str) -> bool:
        """Whether nothing is left of the cluster of that name."""

    def start_controller(self, spec: ClusterSpec, log_dir: str) -> str:
        """Returns host:port of the controller's gRPC side."""

    def stop_controller(self, name: str, drain_seconds: float) -> None:
        """Drains and ends gateways, workers and controller."""

    def stop(self) -> None:
        """Ends Ray, or leaves it."""


class _Ray:
    """What is the same on every Ray."""

    def topology(self, name: str) -> Topology:
        from orchestrator.controller import ray_hosts

        return ray_hosts.topology(name)

    def require_name(self, name: str) -> None:
        from orchestrator.controller import ray_controller

        ray_controller.require_name(name)

    def controller(self, name: str) -> str:
        """host:port of the controller of a cluster that runs here; empty if none of that name does."""
        from orchestrator.controller import ray_controller

        return ray_controller.controller_address(name)

    def is_gone(self, name: str) -> bool:
        try:
            self.require_name(name)
        except NameTaken:
            return False
        return True

    def clusters(self) -> list[str]:
        """The names of all that run here."""
        from orchestrator.controller import ray_controller

        return ray_controller.clusters()

    def start_controller(self, spec: ClusterSpec, log_dir: str) -> str:
        from orchestrator.controller import ray_controller

        return ray_controller.start_controller(spec, log_dir)

    def stop_controller(self, name: str, drain_seconds: float) -> None:
        from orchestrator.controller import ray_controller

        ray_controller.stop_controller(name, drain_seconds)

    def stop(self) -> None:
        import ray

        ray.shutdown()


class LocalRay(_Ray):
    """A Ray of its own, which ends with the cluster."""

    def folder(self, run_folder: Path) -> Path:
        below = run_folder / "ray"
        if len(os.fsencode(below)) + _RAY_SOCKET_TAIL <= _SOCKET_PATH_MAX:
            return below
        return Path(tempfile.mkdtemp(prefix="segue-", dir="/tmp"))  # a short path

    def start(self, folder: Path | None) -> str:
        assert folder is not None  # noqa: S101 - what ``folder`` returned
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        os.environ.update(_environment())
        import ray  # only once the environment is set: Ray reads it when imported

        try:
            ray.init(
                address="local",
                namespace="segue",
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder / "r"),
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise SegueError(f"Ray did not start: {error}", where=str(folder)) from error
        return str(ray.get_runtime_context().gcs_address)


class RayThatIsThere(_Ray):
    """A Ray that others started and may use too: a cluster comes onto it, and goes without a trace.

    ``kubernetes``: the name of the RayCluster that it is; empty where it is none.
    """

    def __init__(self, address: str, kubernetes: str = "") -> None:
        self._address = address
        self._kubernetes = kubernetes

    def folder(self, run_folder: Path) -> Path | None:
        return None

    def start(self, folder: Path | None) -> str:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        try:
            address = self._found()
            _knock(address)
            ray.init(address=address, namespace="segue", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            hint = "is a Ray node running on this machine, with the same versions of Ray and Python?"
            raise ClusterUnreachable(f"Ray can't be joined: {reason}", where=self._address, hint=hint) from error
        return str(ray.get_runtime_context().gcs_address)

    def start_controller(self, spec: ClusterSpec, log_dir: str) -> str:
        from orchestrator.controller import ray_controller

        return ray_controller.start_controller(spec, log_dir, kubernetes=self._kubernetes)

    def _found(self) -> str:
        """HOST:PORT; of ``auto`` what RAY_ADDRESS says, or the Ray on this machine. ConnectionError, ValueError."""
        from ray._private.services import canonicalize_bootstrap_address

        if self._address == "local" or "://" in self._address:
            raise ValueError("it has to be HOST:PORT, or auto")  # by others Ray starts one, or is a client of one
        return str(canonicalize_bootstrap_address(self._address))


def _knock(address: str) -> None:
    """Ray itself goes on for minutes where nobody answers. OSError."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"{address} does not answer: {error.strerror or error}") from error


def _environment() -> dict[str, str]:
    """Ray's switches: no reports home, nothing beyond loopback, nobody without the token, no idle workers."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # A single node: Ray then takes 127.0.0.1 for the node's address and listens nowhere else. (Its name is Ray's.)
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
