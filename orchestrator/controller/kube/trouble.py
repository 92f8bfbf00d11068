"""What keeps Kubernetes from being reached is said once, and asked about ever more seldom."""

from __future__ import annotations

import random
from collections.abc import Callable

from orchestrator.controller.kube.ports import KubeForbidden, KubeUnreachable
from orchestrator.core.errors import SegueError
from orchestrator.telemetry import logs

log = logs.events("controller.kube")
_PAUSE = (0.5, 30.0)  # seconds after the first and after many failures in a row
_FORBIDDEN = 300.0  # seconds; a right may be given while we run
_TOLD_TO_WAIT = 60.0  # seconds; however long the API server says


class Trouble:
    """Of one thing that goes on trying, ``what`` by its name in the log. ``jitter`` is from 0 to 1."""

    def __init__(self, what: str, jitter: Callable[[], float] = random.random) -> None:
        self._what = what
        self._jitter = jitter
        self._failures = 0
        self.error: SegueError | None = None

    def hit(self, error: SegueError) -> float:
        """Seconds until the next try. Said where it is of another kind than the one before."""
        if type(error) is not type(self.error):
            log.failure("kubernetes_failed", error, what=self._what)
        self.error = error
        self._failures += 1
        if isinstance(error, KubeForbidden):
            return _FORBIDDEN * (1 + self._jitter()) / 2
        return max(min(error.retry_after or 0.0, _TOLD_TO_WAIT), self.pause())

    def pause(self) -> float:
        """Doubles from failure to failure; half of it is chance, so that not all clients come back at once."""
        longest = min(_PAUSE[1], _PAUSE[0] * 2.0 ** min(max(self._failures - 1, 0), 16))
        return longest * (1 + self._jitter()) / 2

    def over(self) -> None:
        if self.error is not None:
            log.info("kubernetes_answers", what=self._what)
        self._failures, self.error = 0, None


def understood(error: Exception) -> SegueError:
    """What nobody thought of is trouble as well: it ends nothing."""
    if isinstance(error, SegueError):
        return error
    return KubeUnreachable(f"what the API server answers is not understood: {type(error).__name__}: {error}")
