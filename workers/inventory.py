"""What this machine has and holds: addresses, ports, processes, and the folder of a worker's sockets."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from orchestrator.core.errors import WorkerStartFailed
from orchestrator.core.spec import Bind

LOOPBACK = "127.0.0.1"
_RUN_PREFIX = "segue-worker-"
# Python's own, and those that vLLM's CPU ranks talk through.
_ENGINE_MEMORY = ("/dev/shm/psm_", "/dev/shm/vllm_dist_")  # noqa: S108
_SOCKET_NAME = 37  # a slash and a UUID, as vLLM names its sockets
_SOCKET_PATH = 107
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_AFTER_RAYS = 20000  # `ray start` gives its workers 10002 to 19999


def bind_host(bind: Bind) -> str:
    """The address to listen on: loopback, or the one that Ray knows this node by."""
    return LOOPBACK if bind is Bind.LOOPBACK else ray_host()


def ray_host() -> str:
    """The address that Ray knows this node by."""
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def ray_address() -> str:
    """host:port by which other processes join this one's Ray cluster. Raises WorkerStartFailed outside of one."""
    import ray

    if not ray.is_initialized():
        raise WorkerStartFailed("its ranks are Ray actors, and this process is in no Ray cluster")
    return str(ray.get_runtime_context().gcs_address)


def added_by_ray(name: str) -> bool:
    """Whether Ray, in whose actor this is, has set an environment variable here: the process started without it."""
    ray = sys.modules.get("ray")
    given = Path("/proc/self/environ").read_bytes().split(b"\0")
    started_with = any(each.startswith(f"{name}=".encode()) for each in given)
    return name in os.environ and not started_with and ray is not None and bool(ray.is_initialized())


def interface_of(host: str) -> str:
    """The network interface that has an address; empty if none has."""
    import psutil

    found = (name for name, addresses in psutil.net_if_addrs().items() if host in {each.address for each in addresses})
    return next(found, "")


def free_port(host: str) -> int:
    """A port that is free now, and that neither the kernel nor Ray hands to somebody else in the meantime.

    For listeners that can't be told to bind port 0. Raises WorkerStartFailed if none is found.
    """
    first_ephemeral = int(_EPHEMERAL_RANGE.read_text().split()[0]) if _EPHEMERAL_RANGE.exists() else 32768
    last = first_ephemeral if first_ephemeral > _AFTER_RAYS + 1000 else 65536
    for _ in range(200):
        port = random.randrange(_AFTER_RAYS, last)  # noqa: S311  (nothing secret about a port)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    raise WorkerStartFailed("no free TCP port found", where=host, hint="see which processes listen with `ss -ltnp`")


def started(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot: with the pid, a name that is never used twice.

    None if there is no such process (a zombie counts as gone).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name in front may hold spaces and parentheses
    return None if fields[0] in "ZX" else int(fields[19])


def stopped(pids: Iterable[int]) -> list[int]:
    """Those of the processes that a signal has stopped (SIGSTOP): they hold all that they have, and do nothing."""
    found = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                found.append(pid)
    return found


def descendants(pid: int) -> list[int]:
    """All live processes below ``pid``, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    return list(_below(pid, children))


def _below(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _below(child, children)


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Files of shared memory that engines' processes have mapped and that no other kind of process has."""
    found: set[Path] = set()
    for pid in pids:
        with suppress(OSError):  # it has gone
            mapped = (line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
            found.update(Path(path) for path in mapped if path.startswith(_ENGINE_MEMORY))
    return found


def remove_files(paths: Iterable[Path]) -> None:
    """Removes files, as far as they are there."""
    for path in paths:
        path.unlink(missing_ok=True)


def widen_affinity(pid: int) -> None:
    """Lets every thread of a process run on all of this process's cores again."""
    cores = os.sched_getaffinity(0)
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def make_run_folder() -> Path:
    """A private folder for this process's Unix sockets. Raises WorkerStartFailed if their names would be too long."""
    sweep_run_folders()
    pid = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=f"{_RUN_PREFIX}{pid}-{started(pid)}-"))
    if len(str(folder)) + _SOCKET_NAME > _SOCKET_PATH:
        folder.rmdir()
        hint = "set TMPDIR to a folder with a shorter name"
        raise WorkerStartFailed("the path is too long for Unix sockets", where=str(folder), hint=hint)
    return folder


def sweep_run_folders() -> None:
    """Removes the folders of workers that are gone without having done so themselves."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_RUN_PREFIX}*"):
        with suppress(FileNotFoundError, ValueError):  # another worker sweeps too; or the folder is none of ours
            pid, ticks = folder.name.removeprefix(_RUN_PREFIX).split("-")[:2]
            if folder.stat().st_uid == os.getuid() and started(int(pid)) != int(ticks):
                shutil.rmtree(folder, ignore_errors=True)


def remove_run_folders(pid: int) -> None:
    """Removes the folders of a worker, whoever does it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_RUN_PREFIX}{pid}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def weight_bytes(model: str) -> int:
    """Bytes of a model's weights, as they lie in its folder; 0 where it has none here."""
    return sum(each.stat().st_size for each in Path(model).glob("*.safetensors"))
