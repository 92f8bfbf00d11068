from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.fleet import WorkerView
from orchestrator.core.policies.base import Ask, Policy

TIE = 1e-6  # weight of the load, which only tells equals apart


class PrefixAware(Policy):
    """The longest match in the prefix cache, whatever the load; the least loaded of equals."""

    about = "the longest match in the prefix cache, whatever the load; the least loaded of equals"

    def score(self, views: Sequence[WorkerView], cached: Sequence[int], ask: Ask) -> list[float]:
        prompt = max(1, ask.session.prompt_tokens)
        return [(1.0 - TIE) * held / prompt + TIE / (1 + view.depth) for view, held in zip(views, cached, strict=True)]
