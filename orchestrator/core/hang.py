"""Whether an engine that has requests hangs, or is only in a step that takes long.

An engine speaks after each step, also after one that brought no token. How long a step may take is bound from above by
what it can have to do at most, as the cost model guesses it (low for the device, of all weights, on one device), and by
the longest that it took so far.
"""

from __future__ import annotations

from orchestrator.core.cost import CostModel
from orchestrator.core.types import EngineFacts

TIMES = 10.0  # what explains a step: a machine may be that much slower than thought, or than it was
NEW_STEPS = 64  # in which an engine may still compile what it runs,
NEW_TIMES = 5.0  # and may stand still for so many times ``least``


class Stillness:
    """One engine's.

    Args:
        batch_tokens: the most prompt tokens of one step.
        least: seconds without a step that are never a hang; 0: nothing ever is.
    """

    def __init__(self, facts: EngineFacts, batch_tokens: int, least: float) -> None:
        self.seconds = 0.0  # with requests and without a step, up to the newest look
        self._largest = CostModel(facts).prefill_seconds(batch_tokens, facts.max_model_len)
        self._longest = 0.0
        self._least = least
        self._steps = 0

    @property
    def bound(self) -> float:
        """Seconds beyond which it hangs."""
        least = self._least * (NEW_TIMES if self._steps < NEW_STEPS else 1.0)
        return max(least, TIMES * self._largest, TIMES * self._longest)

    def looked(self, seconds: float, *, busy: bool, steps: int) -> bool:
        """Whether it hangs. ``seconds`` since the look before, ``steps`` of all so far, ``busy`` with any request."""
        if steps != self._steps:
            self._longest = max(self._longest, self.seconds)
            self.seconds, self._steps = 0.0, steps
        elif busy:  # what was aborted since makes no step: only those do
            self.seconds += seconds
        return self._least > 0.0 and self.seconds > self.bound
