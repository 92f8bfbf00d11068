from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.fleet import WorkerView
from orchestrator.core.policies.base import Ask, Policy


class Cost(Policy):
    """The shortest predicted time to the first token."""

    about = "the shortest predicted time to the first token"

    def score(self, views: Sequence[WorkerView], cached: Sequence[int], ask: Ask) -> list[float]:
        prompt = ask.session.prompt_tokens
        costs = []
        for view, held in zip(views, cached, strict=True):
            cost = view.cost
            work = view.wait_seconds + cost.prefill_seconds(prompt - held, held)
            if ask.fetches:
                work = min(work, cost.transfer_seconds(prompt - held))
            costs.append(work + cost.step_seconds(view.depth + 1))
        best = min(costs)
        return [best / seconds for seconds in costs]
