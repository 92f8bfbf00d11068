"""``segue up --detach``: the same command in a session of its own, watched until it is ready."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from orchestrator.cli import terminal
from orchestrator.cli.exits import Exit
from orchestrator.cli.foreground import owner_command, require_place
from orchestrator.cli.run_folder import RunFolder
from orchestrator.core.errors import SegueError
from orchestrator.core.spec import ClusterSpec

_POLL_SECONDS = 0.1
# Beyond what the owner itself allows a start and an end to take.
_MARGIN_SECONDS = 120.0


def run(spec: ClusterSpec, config_path: Path, ray_address: str | None) -> Exit:
    """Exit 0 once it is ready; the owner's own exit code if it ended before that."""
    require_place(spec)
    folder = RunFolder.of(spec.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    command = [*owner_command(spec, config_path, ray_address), "--background"]
    with folder.up_log.open("wb") as log:
        owner = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        return _until_ready(owner, folder, spec)
    except KeyboardInterrupt:
        owner.send_signal(signal.SIGTERM)
        raise


def _until_ready(owner: subprocess.Popen[bytes], folder: RunFolder, spec: ClusterSpec) -> Exit:
    console = terminal.out()
    deadline = time.monotonic() + spec.controller.start_timeout + _MARGIN_SECONDS
    with folder.up_log.open(errors="replace") as log:
        while time.monotonic() < deadline:
            code = owner.poll()
            ready = _is_ready(folder, owner.pid)
            # Read after asking, so that what was written before the end is shown.
            console.print(log.read(), end="", soft_wrap=True)
            if code is not None:
                return _as_exit(code)
            if ready:
                return Exit.OK
            time.sleep(_POLL_SECONDS)
    os.kill(owner.pid, signal.SIGTERM)
    raise SegueError("did not become ready", where=str(folder.up_log), hint="told it to stop")


def _is_ready(folder: RunFolder, pid: int) -> bool:
    record = folder.read()
    return record is not None and record.pid == pid and record.phase == "ready"


def _as_exit(code: int) -> Exit:
    return Exit(code) if code in list(Exit) and code != Exit.OK else Exit.FAILED
