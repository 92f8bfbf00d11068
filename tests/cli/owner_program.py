"""``segue up`` with everything real but Ray: run as a program, so that its signals, children and end are its own.

    python -m tests.cli.owner_program CONFIG ADDRESS [--background]

ADDRESS is a fake cluster that plays controller and gateway. "Ray" is a process that ends when asked; its only node has
the GPUs that SEGUE_TEST_GPUS says, as in "L4 x 4". With SEGUE_TEST_ORPHAN set there is an orphan beside it, which maps
shared memory and ends only by force, as an engine may whose actor was killed.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestrator import config
from orchestrator.cli import terminal, up
from orchestrator.cli.progress import Progress
from orchestrator.cli.up import Owner
from orchestrator.core.errors import NameTaken
from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.spec import ClusterSpec

ORPHAN = "import tests.cli.owner_program as program; program.orphan()"
BEAR_AND_DIE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ORPHAN!r}])"
LOG = "Traceback\nValueError: no memory for the cache\nRuntimeError: failed. See root cause above.\n"
SHM = Path("/dev/shm")  # noqa: S108


class FakeRay:
    def __init__(self, address: str) -> None:
        self._address = address
        self._child: subprocess.Popen[bytes] | None = None

    def folder(self, run_folder: Path) -> Path:
        return run_folder / "ray"

    def start(self, folder: Path | None) -> str:
        assert folder
        (folder / "session").mkdir(parents=True)
        self._child = subprocess.Popen(["sleep", "600"])
        if "SEGUE_TEST_ORPHAN" in os.environ:
            subprocess.run([sys.executable, "-c", BEAR_AND_DIE], check=True)
            while not list(SHM.glob(f"segue-test-{os.getpid()}-*")):
                time.sleep(0.02)
        return "127.0.0.1:1"

    def topology(self, name: str) -> Topology:
        gpu, _, gpus = os.environ.get("SEGUE_TEST_GPUS", "").partition(" x ")
        return Topology((Host("0", "here", int(gpus or 0), gpu, cpus=2, memory_bytes=8 << 30),))

    def require_name(self, name: str) -> None:
        if os.environ.get("SEGUE_TEST_TAKEN") == "before":
            raise NameTaken("the name is taken", where="cluster.name")

    def controller(self, name: str) -> str:
        return ""

    def is_gone(self, name: str) -> bool:
        return False

    def start_controller(self, spec: ClusterSpec, log_dir: str) -> str:
        if os.environ.get("SEGUE_TEST_TAKEN") == "meanwhile":
            raise NameTaken("the name is taken", where="cluster.name")
        for model in spec.models:
            for pool in model.pools.values():
                print(f"{pool.replicas} x TP {pool.tensor_parallel} of {model.name}", file=sys.stderr)  # noqa: T201
        (Path(log_dir) / "tiny-decode-0.log").write_text(LOG)
        return self._address

    def stop_controller(self, name: str, drain_seconds: float) -> None:
        print(f"draining {name} for {drain_seconds:g} s", file=sys.stderr, flush=True)  # noqa: T201
        # The request that never ends: only hurrying gets past it.
        time.sleep(drain_seconds if drain_seconds == 600 else 0)

    def stop(self) -> None:
        if self._child:
            self._child.terminate()
            self._child.wait()


def orphan() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    owner = os.environ["SEGUE_TEST_OWNER"]
    name, draft = SHM / f"segue-test-{owner}-{os.getpid()}", SHM / f"segue-draft-{os.getpid()}"
    with draft.open("wb+") as file:
        file.truncate(4096)
        held = mmap.mmap(file.fileno(), 4096)
        name.hardlink_to(draft)  # as semaphores get their names: what is mapped then counts as deleted
        draft.unlink()
        time.sleep(600)
        held.close()


def main() -> int:
    path, address, *options = sys.argv[1:]
    os.environ["SEGUE_TEST_OWNER"] = str(os.getpid())
    background = "--background" in options
    up._GRACE_SECONDS = 1.0  # the orphan lets it pass anyway
    return Owner(config.load(path), Path(path), FakeRay(address), Progress(terminal.out()), background=background).run()


if __name__ == "__main__":
    sys.exit(main())
