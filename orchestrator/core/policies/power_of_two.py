from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.fleet import Pool, WorkerView
from orchestrator.core.policies.base import Ask, Options, number
from orchestrator.core.policies.least_load import LeastLoad


@dataclass(frozen=True, slots=True)
class _Options(Options):
    choices: int = number(2, 2, 32, "workers that are drawn")


class PowerOfTwo(LeastLoad):
    """The least loaded of a few drawn at random (Mitzenmacher, "The power of two choices in randomized load balancing",
    2001)."""

    Options = _Options
    about = "the least loaded of a few that are drawn"

    def narrow(self, pool: Pool, ask: Ask) -> Sequence[WorkerView]:
        views, choices = pool.views, self.options.choices
        if len(views) <= choices:
            return views
        drawn: dict[int, WorkerView] = {}
        while len(drawn) < choices:
            place = int(ask.rng.random() * len(views))
            drawn[place] = views[place]
        return list(drawn.values())
