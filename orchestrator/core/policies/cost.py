from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.fleet import WorkerView
from orchestrator.core.policies.base import Ask, Options, Policy, number

USUAL_OUTPUT = 128


@dataclass(frozen=True, slots=True)
class CostOptions(Options):
    spread: float = number(1.0, 0.0, 10.0, "x")
    decode: float = number(0.5, 0.0, 10.0, "x")
    floor: float = number(0.02, 0.0, 10.0, "x")


class Cost(Policy):
    """The shortest predicted time to the first token."""

    Options = CostOptions
    about = "the shortest predicted time to the first token"

    def score(self, views: Sequence[WorkerView], cached: Sequence[int], ask: Ask) -> list[float]:
        prompt = ask.session.prompt_tokens
        spread, decode, floor = self.options.spread, self.options.decode * USUAL_OUTPUT, self.options.floor
        costs = []
        for view, held in zip(views, cached, strict=True):
            cost = view.cost
            if ask.fetches:
                work = cost.transfer_seconds(prompt - held)
            else:
                work = view.wait_seconds + cost.prefill_seconds(prompt - held, held)
            if ask.role != "prefill":
                work += decode * (cost.step_seconds(view.depth + 1) - cost.step_seconds(0))
            costs.append((work + floor) * (1.0 + spread * view.busy))
        best = min(costs)
        return [best / seconds for seconds in costs]
