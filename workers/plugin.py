"""Binds the life of an engine's processes to their worker's.

vLLM loads ``register`` (entry point ``vllm.general_plugins``) in every process that it starts. An engine core whose
worker was killed would otherwise stay: nobody could reach it, and it would keep its memory and its ports. The engine
core itself loads plugins only after it has heard from its worker, so it is started through ``run_engine_core``.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import Any

from workers.executors import meet_in
from workers.inventory import remove_files, remove_run_folders, shared_memory, started
from workers.restoring import install
from workers.transfer import apply_progress_choice

WORKER_PID = "SEGUE_WORKER_PID"
WORKER_STARTED = "SEGUE_WORKER_STARTED"  # guards against a pid that was given out again
_WATCH = "segue-worker-watch"


def run_engine_core(*args: Any, **kwargs: Any) -> None:
    """In place of vLLM's entry point of an engine core's process: the watch begins first."""
    register()
    meet_in(os.environ["VLLM_RPC_BASE_PATH"])
    from vllm.v1.engine.core import EngineCoreProc

    EngineCoreProc.run_engine_core(*args, **kwargs)


def register() -> None:
    """Watches the worker that the environment names; does nothing in any other process, or in the worker itself."""
    pid = int(os.environ.get(WORKER_PID, "0"))
    if not pid or pid == os.getpid() or any(thread.name == _WATCH for thread in threading.enumerate()):
        return
    apply_progress_choice()
    install()
    ready = threading.Event()
    threading.Thread(target=_die_with, args=(pid, ready), name=_WATCH, daemon=True).start()
    ready.wait(timeout=5.0)


def mark_environment() -> None:
    """Names this process as the worker, for the processes that it is going to start."""
    os.environ[WORKER_PID] = str(os.getpid())
    os.environ[WORKER_STARTED] = str(started(os.getpid()))


def _die_with(pid: int, ready: threading.Event) -> None:
    try:
        worker = os.pidfd_open(pid)
    except ProcessLookupError:
        _die(pid)
        return
    # Opened first, looked at second: from here on the descriptor can only mean the process that we see now.
    if str(started(pid)) != os.environ.get(WORKER_STARTED, str(started(pid))):
        _die(pid)
    ready.set()
    poller = select.poll()
    poller.register(worker, select.POLLIN)
    while not poller.poll():
        pass
    _die(pid)


def _die(pid: int) -> None:
    remove_run_folders(pid)
    remove_files(shared_memory([os.getpid()]))
    # Not the process group: that is Ray's too. Every process below has a watch of its own.
    os.kill(os.getpid(), signal.SIGKILL)
