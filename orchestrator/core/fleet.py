"""A router's view of the workers: what they reported, and what this router sent since.

Requests that this router has at a worker are counted here from the moment they are decided, not from the worker's next
report, so a burst between two reports spreads out. What other gateways have there is what the report says beyond ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.core.spec import Role
from orchestrator.core.types import Load, WorkerInfo


@dataclass(slots=True)
class WorkerView:
    """One worker. ``ours`` are the requests that this router has, or is about to have, there."""

    info: WorkerInfo
    load: Load = field(default_factory=Load)
    draining: bool = False
    ours: set[str] = field(default_factory=set)
    foreign: int = 0

    @property
    def depth(self) -> int:
        """Requests running, waiting or on their way."""
        return len(self.ours) + self.foreign


class Fleet:
    """All workers that a session is open with."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerView] = {}

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def __iter__(self) -> Iterator[WorkerView]:
        return iter(self._workers.values())

    def get(self, worker_id: str) -> WorkerView | None:
        return self._workers.get(worker_id)

    def up(self, info: WorkerInfo) -> None:
        """Adds a worker, or replaces what was known of it."""
        self._workers[info.worker_id] = WorkerView(info)

    def down(self, worker_id: str) -> frozenset[str]:
        """Removes a worker; returns the requests that were there. Unknown workers are no error: news crosses."""
        view = self._workers.pop(worker_id, None)
        return frozenset(view.ours) if view else frozenset()

    def drain(self, worker_id: str) -> None:
        if view := self._workers.get(worker_id):
            view.draining = True

    def reported(self, worker_id: str, load: Load) -> None:
        if view := self._workers.get(worker_id):
            view.load = load
            view.foreign = max(0, load.running + load.waiting - len(view.ours))

    def took(self, worker_id: str, request_id: str) -> None:
        if view := self._workers.get(worker_id):
            view.ours.add(request_id)

    def left(self, worker_id: str, request_id: str) -> None:
        if view := self._workers.get(worker_id):
            view.ours.discard(request_id)

    def open(self, model: str, *roles: Role) -> list[WorkerView]:
        """Workers of the model in one of these roles that take requests."""
        return [v for v in self if v.info.model == model and v.info.role in roles and not v.draining]
