"""``segue up`` in a terminal: the owner in a session of its own, and this process between it and the terminal.

A signal to a whole process group (Ctrl-C, ``timeout``, a service manager) would reach Ray's processes too, and kill
under a drain what the drain needs. So it reaches this process alone, which hands it on to the owner.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

from orchestrator.cli import ports
from orchestrator.cli.exits import Exit
from orchestrator.cli.run_folder import RunFolder
from orchestrator.cli.signals import SIGNALS
from orchestrator.core.errors import SegueError
from orchestrator.core.spec import ClusterSpec


def run(spec: ClusterSpec, config_path: Path, ray_address: str | None) -> Exit:
    """The owner's exit code, once it has ended."""
    require_place(spec)
    command = [*owner_command(spec, config_path, ray_address), "--in-session"]
    # The owner's standard input is a pipe that only this process holds: it closes when this process goes.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as owner:  # noqa: S603

        def hand_on(number: int, frame: FrameType | None) -> None:
            if owner.poll() is None:
                owner.send_signal(number)

        for number in SIGNALS:
            signal.signal(number, hand_on)
        code = owner.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if code < 0:
        raise SegueError(
            f"the process that owned the cluster was killed (signal {-code})", hint=_after(spec, ray_address)
        )
    return Exit(code)


def _after(spec: ClusterSpec, ray_address: str | None) -> str:
    if not ray_address:
        return "its guard cleans up"
    return f"what it started on Ray goes on: segue down --name {spec.name} --address {ray_address}"


def owner_command(spec: ClusterSpec, config_path: Path, ray_address: str | None) -> list[str]:
    """``segue up`` again, for the process that will own the cluster."""
    record = ["--record", spec.gateway.record] if spec.gateway.record else []
    there = ["--address", ray_address] if ray_address else []
    bare = [] if spec.gateway.processes else ["--no-gateways"]
    return [sys.executable, "-m", "orchestrator.cli.main", "up", str(config_path), *record, *there, *bare]


def require_place(spec: ClusterSpec) -> None:
    """Raises SegueError where the name or a port is taken. The owner looks again, under its lock."""
    folder = RunFolder.of(spec.name)
    if folder.is_owned():
        raise folder.already_up()
    ports.require_free(spec)


def end_with_parent() -> None:
    """In the owner: its parent's end, however it came, is a SIGTERM."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()
