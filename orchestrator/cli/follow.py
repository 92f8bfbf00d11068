"""Watches the fleet through the controller while `segue up` owns it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.cli import rpc
from orchestrator.cli.board import StepState, broken, fleet_steps
from orchestrator.cli.progress import Progress
from orchestrator.cli.terminal import without_control
from orchestrator.core.errors import ClusterUnreachable, DeadlineExceeded, WorkerStartFailed
from orchestrator.core.spec import ClusterSpec

_RECONNECT_SECONDS = 0.5
# The controller tries again by itself, which helps against a port taken or memory short for a moment. Not against more.
_ATTEMPTS = 2
_LOG_LINES = 15


def until_ready(address: str, spec: ClusterSpec, logs: Path, progress: Progress, each: Callable[[], None]) -> Any:
    """Shows the stages of workers and gateways; returns the first ready status.

    Raises WorkerStartFailed, after start_timeout at the latest.
    """
    deadline = time.monotonic() + spec.controller.start_timeout
    failures = _Failures(logs, progress)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _too_slow(spec, logs, progress)
        try:
            for status in rpc.watch(address, left):
                each()
                _show(status, progress)
                failures.note(status)
                if status.ready:
                    return status
        except (ClusterUnreachable, DeadlineExceeded):
            time.sleep(min(_RECONNECT_SECONDS, max(left, 0)))


def changes(address: str, progress: Progress, each: Callable[[], None]) -> None:
    """Goes on for ever: one line for each worker or gateway that is lost or comes back."""
    reachable = True
    while True:
        try:
            for status in rpc.watch(address):
                if not reachable:
                    progress.done("controller", "back")
                    reachable = True
                each()
                _show(status, progress)
        except DeadlineExceeded:
            continue
        except ClusterUnreachable:
            if reachable:
                progress.failed("controller", "does not answer; gateways go on with the fleet they know")
            reachable = False
        time.sleep(_RECONNECT_SECONDS)


def _show(status: Any, progress: Progress) -> None:
    for name, state, detail in fleet_steps(status):
        progress.put(name, state, detail)


class _Failures:
    """Shows why something did not come up, once; ends the wait when it fails again."""

    def __init__(self, logs: Path, progress: Progress) -> None:
        self._logs = logs
        self._progress = progress
        self._down: dict[str, int] = {}
        self._was_down: set[str] = set()

    def note(self, status: Any) -> None:
        down = {actor.id: actor for actor in broken(status)}
        for name in down.keys() - self._was_down:
            self._down[name] = self._down.get(name, 0) + 1
            log = self._logs / f"{name}.log"
            detail = down[name].detail or down[name].state
            if self._down[name] >= _ATTEMPTS:
                raise WorkerStartFailed(detail, where=name, hint=f"its whole log: {log}")
            self._progress.say(f"{name} did not come up; trying once more. Its last lines ({log}):")
            for line in tail(log, _LOG_LINES):
                self._progress.say(f"  | {line}")
        self._was_down = set(down)


def _too_slow(spec: ClusterSpec, logs: Path, progress: Progress) -> WorkerStartFailed:
    late = ", ".join(step.name for step in progress.board.unfinished() if step.state is not StepState.FAILED)
    return WorkerStartFailed(
        f"not ready after {spec.controller.start_timeout:.0f} s; still waiting for {late or 'the controller'}",
        hint=f"look into {logs}, or raise controller.start_timeout",
    )


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; none where there is no log."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return [without_control(line) for line in text.splitlines()[-lines:]]
