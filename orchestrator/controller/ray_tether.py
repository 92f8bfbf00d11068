"""Ends an actor's process with its node.

A raylet that is killed leaves its workers behind. Ray has each of them end by itself, but in peace: once its running
calls have returned, and ``wait_closed`` returns at an actor's end only. Such an actor would go on for ever, unknown to
the controller, which has long filled its place.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import Any


def tethered(actor: type) -> type:
    """The same class, but its process dies with its parent, which is the node's raylet."""

    def begin(self: Any, *args: Any) -> None:
        threading.Thread(target=_die_with, args=(os.getppid(),), name="segue-node-watch", daemon=True).start()
        actor.__init__(self, *args)  # type: ignore[misc]

    return type(actor.__name__, (actor,), {"__init__": begin, "__doc__": actor.__doc__})


def _die_with(parent: int) -> None:
    try:
        watched = os.pidfd_open(parent)
    except ProcessLookupError:
        watched = -1
    if watched >= 0 and os.getppid() == parent:  # opened first, looked at second: it can only be the one that we mean
        poller = select.poll()
        poller.register(watched, select.POLLIN)
        while not poller.poll():
            pass
    os.kill(os.getpid(), signal.SIGKILL)
