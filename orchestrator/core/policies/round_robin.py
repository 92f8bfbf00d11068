from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.fleet import Pool, WorkerView
from orchestrator.core.policies.base import Ask, Policy

NEXT = 8  # candidates, so that a few may be full


class RoundRobin(Policy):
    """One after the other."""

    about = "one worker after the other"

    def __init__(self, options: object) -> None:
        super().__init__(options)
        self._turn = 0

    def narrow(self, pool: Pool, ask: Ask) -> Sequence[WorkerView]:
        views = pool.views
        first = self._turn % len(views)
        return [*views[first : first + NEXT], *views[: max(0, min(first, first + NEXT - len(views)))]]

    def score(self, views: Sequence[WorkerView], cached: Sequence[int], ask: Ask) -> list[float]:
        return [1.0 - place / len(views) for place in range(len(views))]

    def chosen(self, view: WorkerView) -> None:
        self._turn = view.place + 1
