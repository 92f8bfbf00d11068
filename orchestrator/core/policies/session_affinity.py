from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.candidates import bounded
from orchestrator.core.fleet import Pool, WorkerView
from orchestrator.core.policies.base import Ask, Options, Policy, number
from orchestrator.core.policies.ring import Ring

SUCCESSORS = 4  # workers that a key may move on to


@dataclass(frozen=True, slots=True)
class _Options(Options):
    bound: float = number(1.25, 1.0, 10.0, "times the mean depth that the worker of a session or adapter may have")
    free: int = number(4, 1, 1024, "depth up to which it is always taken")


class SessionAffinity(Policy):
    """The requests of a session on one worker, by consistent hashing with bounded loads (Mirrokni, Thorup and
    Zadimoghaddam, 2018): where that worker is over its bound, the next one on the ring. Without a session: the least
    loaded."""

    Options = _Options
    about = "a session's requests on one worker, by consistent hashing with bounded loads; others on the least loaded"

    def __init__(self, options: object) -> None:
        super().__init__(options)
        self._ring = Ring()
        self._order: dict[int, int] = {}

    def key(self, ask: Ask) -> str:
        """What the request belongs to; empty if to nothing."""
        return ask.session.affinity

    def narrow(self, pool: Pool, ask: Ask) -> Sequence[WorkerView]:
        key = self.key(ask)
        own = self._ring.after(key, SUCCESSORS, pool) if key else []
        self._order = {view.slot: place for place, view in enumerate(own)}
        return bounded(pool, ask.matches, ask.rng, own)

    def score(self, views: Sequence[WorkerView], cached: Sequence[int], ask: Ask) -> list[float]:
        depths = [view.depth for view in views]
        most = max(self.options.free, self.options.bound * (sum(depths) + 1) / len(depths))
        scores = []
        for view, depth in zip(views, depths, strict=True):
            place = self._order.get(view.slot)
            within = place is not None and depth < most
            scores.append(1.0 - 0.1 * place if within and place is not None else 0.5 / (1 + depth))
        return scores
