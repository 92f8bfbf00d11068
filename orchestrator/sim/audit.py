"""Promises that hold in every run: watched from outside the brain while it goes on, and looked at again at its end."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.brain import Brain
from orchestrator.sim.promise import PromiseBroken
from orchestrator.sim.worker import Worker

_MOST = 20  # broken promises that are kept in words


class Audit:
    """Collects broken promises. ``deep``: brains check their books after each step, which is slow."""

    __slots__ = ("broken", "count", "deep")

    def __init__(self, *, deep: bool = False) -> None:
        self.deep = deep
        self.broken: list[str] = []
        self.count = 0

    def say(self, what: str) -> None:
        """A promise was broken."""
        self.count += 1
        if len(self.broken) < _MOST:
            self.broken.append(what)

    def end(self, brains: Sequence[Brain], workers: Sequence[Worker]) -> None:
        """Looks at what is left when every request has its outcome.

        Raises:
            PromiseBroken: one or more were.
        """
        for brain in brains:
            brain.check()
            if brain.live:
                self.say(f"{brain.live} requests have no outcome")
            for view in brain.fleet:
                if view.claims:
                    self.say(f"{view.info.worker_id}: {len(view.claims)} requests are still counted there")
        for worker in workers:
            self._worker(worker)
        if self.count:
            raise PromiseBroken(f"{self.count} broken promises: " + "; ".join(self.broken))

    def _worker(self, worker: Worker) -> None:
        engine = worker.engine
        if not worker.alive:
            return
        name = worker.info.worker_id
        if not engine.idle:
            self.say(f"{name}: its engine still has work or blocks that nobody collected")
        elif engine.cache.used:
            self.say(f"{name}: {engine.cache.used} KV blocks are used by nobody")
        engine.cache.check()
