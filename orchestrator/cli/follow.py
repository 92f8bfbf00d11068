"""Watches the fleet through the controller while `segue up` owns it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text

from orchestrator.cli import rpc
from orchestrator.cli.board import StepState, broken, fleet_steps, why
from orchestrator.cli.progress import Progress
from orchestrator.cli.terminal import without_control
from orchestrator.core.errors import ClusterUnreachable, DeadlineExceeded, WorkerStartFailed
from orchestrator.core.spec import ClusterSpec
from orchestrator.telemetry.output import root_cause

_RECONNECT_SECONDS = 0.5
_PATIENCE_SECONDS = 5.0  # a controller that Ray restarts is back in two or three
# The controller tries again by itself, which helps against a port taken or memory short for a moment. Not against more.
_ATTEMPTS = 2
_LOG_LINES = 15
_CAUSE_LINES = 200


def until_ready(address: str, spec: ClusterSpec, logs: Path, progress: Progress, each: Callable[[], None]) -> Any:
    """Shows the stages of workers and gateways; returns a gateway that serves, once the cluster is ready.

    Of several gateway processes one is enough: the others share its ports, and take connections once they can serve.
    None where the cluster is to have no gateway.

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
                show(status, progress)
                failures.note(status)
                gateway = serving(status)
                if status.ready and (gateway or not spec.gateway.processes):
                    return gateway
        except (ClusterUnreachable, DeadlineExceeded):
            time.sleep(min(_RECONNECT_SECONDS, max(left, 0)))


def changes(address: str, progress: Progress, each: Callable[[], None], is_gone: Callable[[], bool]) -> None:
    """One line for each worker or gateway that is lost or comes back; returns once somebody took the cluster down."""
    absence = _Absence(progress)
    while True:
        try:
            for status in rpc.watch(address):
                absence.heard(status.controller.term)
                each()
                show(status, progress)
        except DeadlineExceeded:
            continue
        except ClusterUnreachable:
            if is_gone():
                return
            absence.unheard()
        time.sleep(_RECONNECT_SECONDS)


class _Absence:
    """Tells of the controller once it is back, or has been away for longer than a restart takes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._since: float | None = None
        self._told = False
        self._term = 0

    def heard(self, term: int) -> None:
        if self._since is not None:
            took_over = f"; it took over what runs (term {term})" if term != self._term else ""
            gone = time.monotonic() - self._since
            self._progress.done("controller", f"was gone for {gone:.1f} s and is back{took_over}")
        self._since, self._told, self._term = None, False, term

    def unheard(self) -> None:
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since >= _PATIENCE_SECONDS and not self._told:
            self._progress.failed("controller", "does not answer; gateways go on with the fleet they know")
            self._told = True


def serving(status: Any) -> Any | None:
    """The first of its own gateways that is ready; None if none is."""
    return next((each for each in status.gateways if each.state == "ready" and not each.outside), None)


def show(status: Any, progress: Progress) -> None:
    """Each worker and gateway as a step."""
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
            cause = root_cause(tail(log, _CAUSE_LINES))
            if self._down[name] >= _ATTEMPTS:
                self._quote(name, tail(log, _LOG_LINES))
                raise WorkerStartFailed(cause or why(down[name]), where=name, hint=f"its whole log: {log}")
            self._quote(name, [cause] if cause else tail(log, _LOG_LINES))
            self._progress.say(f"{name} did not come up; trying once more. Its log: {log}")
        self._was_down = set(down)

    def _quote(self, name: str, lines: list[str]) -> None:
        for line in lines:
            self._progress.say(Text.assemble((f"{name} | ", "red"), line))


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
