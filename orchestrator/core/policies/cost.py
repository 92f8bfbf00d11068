from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from orchestrator.core.candidates import computes, in_place_weight
from orchestrator.core.fleet import WorkerView
from orchestrator.core.policies.base import Ask, Options, Policy, number
from orchestrator.core.spec import Role

USUAL_OUTPUT = 128  # tokens, where a request names no lower limit
GRAIN_SECONDS = 0.02  # shorter differences count less than who was less busy


@dataclass(frozen=True, slots=True)
class _Options(Options):
    work: float = number(
        2.0, 0.0, 10.0, "weight of computing over waiting: what is computed twice is lost to everybody"
    )
    decode: float = number(
        0.5, 0.0, 10.0, "weight of the seconds by which its decoding is slowed down by what runs there"
    )
    balance: float = number(
        2.0, 0.0, 10.0, "how much longer a worker that was always busy is taken to need; 1 is twice as long"
    )


class Cost(Policy):
    """The shortest predicted time to the first token, with what the load costs after it.

    Seconds until the prompts there are computed, ``work`` times those for its own uncached tokens, ``decode`` times
    those that the sequences there add to its output. All of it grows by ``balance`` times the share of the newest
    minutes in which the worker was busy, so that new prefixes go where least was done, and a fleet with little to do is
    even too. Where a prefill worker may compute the prompt: the shorter of that (and of fetching what this worker
    lacks) and of computing it here, at the cost of those that decode.
    """

    Options = _Options
    about = "the shortest predicted time to the first token, what decodes there and how busy it was counted in"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        # Said what they are, so that compiled arithmetic has plain numbers.
        self._work: float = options.work
        self._decode: float = options.decode
        self._balance: float = options.balance

    def score(self, views: Sequence[WorkerView], cached: Sequence[int], ask: Ask) -> list[float]:
        prompt, limit = ask.session.prompt_tokens, ask.session.output_limit
        ahead, work, balance = ask.ahead, self._work, self._balance
        output = self._decode * (min(limit, USUAL_OUTPUT) if limit else USUAL_OUTPUT)
        decodes = ask.role is not Role.PREFILL
        costs: list[float] = []
        best = inf
        for place in range(len(cached)):
            view, held = views[place], cached[place]
            cost, depth = view.cost, view.depth
            later = output * cost.slowdown_seconds(depth) if depth and decodes else 0.0
            more, besides = 1.0 + balance * view.busy, GRAIN_SECONDS + later
            weight = work if ahead is None else in_place_weight(view)
            seconds = more * (besides + cost.ready_seconds(view.prefill_tokens, prompt - held, held, weight))
            if ahead is not None:
                apart = ahead + more * (besides + cost.transfer_seconds(prompt - held))
                if apart < seconds or not computes(view, held):
                    seconds = apart
            costs.append(seconds)
            if seconds < best:
                best = seconds
        return [best / seconds for seconds in costs]
