from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.fleet import WorkerView
from orchestrator.core.policies.base import Ask, Policy


class LeastLoad(Policy):
    """The fewest requests, then the emptiest KV cache."""

    about = "the fewest requests, then the emptiest KV cache"

    def score(self, views: Sequence[WorkerView], cached: Sequence[int], ask: Ask) -> list[float]:
        return [1.0 / (1.0 + view.depth + min(view.kv_usage, 0.99)) for view in views]
