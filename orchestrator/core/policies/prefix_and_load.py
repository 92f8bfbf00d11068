from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.fleet import WorkerView
from orchestrator.core.policies.base import Ask, Options, Policy, number


@dataclass(frozen=True, slots=True)
class _Options(Options):
    prefix: float = number(1.0, 0.0, 1000.0, "weight of the share of the prompt that is cached")
    load: float = number(1.0, 0.0, 1000.0, "weight of how much emptier it is than the fullest candidate")


class PrefixAndLoad(Policy):
    """A weighted mean of the prompt's cached share and of the room, by depth."""

    Options = _Options
    about = "a weighted mean of the prompt's cached share and of how empty the worker is"

    def score(self, views: Sequence[WorkerView], cached: Sequence[int], ask: Ask) -> list[float]:
        prompt = max(1, ask.session.prompt_tokens)
        prefix, load = self.options.prefix, self.options.load
        both = prefix + load or 1.0
        deepest = max(view.depth for view in views) or 1
        return [
            (prefix * held / prompt + load * (1.0 - view.depth / deepest)) / both
            for view, held in zip(views, cached, strict=True)
        ]
