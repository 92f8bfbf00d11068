"""``segue down``."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable

from orchestrator.cli import attach, guard, rpc, run_folder, terminal
from orchestrator.cli.exits import Exit
from orchestrator.cli.progress import Progress
from orchestrator.cli.run_folder import RunFolder, RunRecord
from orchestrator.core.errors import ClusterUnreachable, DeadlineExceeded, SegueError
from orchestrator.core.spec import ControllerSpec

_POLL_SECONDS = 0.2
# Beyond the drain itself: ending processes, Ray, and looking that nothing is left.
_MARGIN_SECONDS = 60.0


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 when it is gone, 1 when it would not go in time, 3 when nothing was running."""
    progress = Progress(terminal.out())
    if args.address:
        return _from_ray(args.address, args.name, progress)
    for folder in run_folder.stale(args.name):
        _clean(folder, progress)
    folder, record = _owned(args.name)
    os.kill(record.pid, signal.SIGTERM)
    with progress.live():
        _wait(folder, record, progress)
    return Exit.OK


def _owned(name: str | None) -> tuple[RunFolder, RunRecord]:
    try:
        return run_folder.find(name)
    except ClusterUnreachable as error:
        hint = "one on a Ray that others started, whose segue up has died, is taken down with --address RAY --name NAME"
        raise ClusterUnreachable(error.what, hint=hint) from error


def _from_ray(address: str, name: str | None, progress: Progress) -> Exit:
    """A cluster whose owner is gone lives on in a Ray that wasn't the owner's."""
    with attach.joined(address) as ground, progress.live():
        name = name or attach.only_cluster(ground, address)
        progress.running(f"cluster {name}", "finishing running requests")
        ground.stop_controller(name, drain_seconds(ground.controller, name, progress))
        progress.done(f"cluster {name}", "stopped")
    return Exit.OK


def drain_seconds(
    controller: Callable[[str], str],
    name: str,
    progress: Progress,
    seconds: float = ControllerSpec().drain_timeout,
) -> float:
    """By the configuration of the cluster that runs; where its controller can't be asked ``seconds``, and that is said.

    ``controller`` finds its address.
    """
    try:
        address = controller(name)
        return rpc.topology(address)[1].controller.drain_timeout if address else seconds
    except (ClusterUnreachable, DeadlineExceeded) as error:
        progress.say(f"segue: running requests get {seconds:g} s, as the controller does not say how long: {error}")
        return seconds


def _clean(folder: RunFolder, progress: Progress) -> None:
    with folder.claim():
        record = folder.read()
        swept = guard.clean(folder, grace=0.0)
    if record:
        progress.say(f"segue: cluster {record.name} had died (process {record.pid}); cleaned up after it")
    for what in (*swept.processes, *swept.files):
        progress.say(f"segue: removed {what}")


def _wait(folder: RunFolder, record: RunRecord, progress: Progress) -> None:
    name = f"cluster {record.name}"
    deadline = time.monotonic() + record.drain_seconds + _MARGIN_SECONDS
    while folder.is_owned():
        if time.monotonic() > deadline:
            hint = f"see {folder.up_log}; kill {record.pid} hurries it"
            raise SegueError(f"process {record.pid} is still stopping", where=name, hint=hint)
        progress.running(name, _requests_left(record))
        time.sleep(_POLL_SECONDS)
    progress.done(name, "stopped")


def _requests_left(record: RunRecord) -> str:
    addresses = [address for address in (record.controller,) if address]
    try:
        status = rpc.first_status(addresses, seconds=1.0)
    except DeadlineExceeded:
        return "waiting; the controller is busy"
    if status is None:
        return "ending processes"
    workers = [worker for model in status.models for pool in model.pools for worker in pool.workers]
    left = sum(worker.running + worker.waiting for worker in workers)
    return f"finishing {left} running requests" if left else "ending workers and gateways"
