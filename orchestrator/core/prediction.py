"""How well cached tokens are predicted, and one clear word when they are not.

A router that sends prompts to caches which aren't there costs money without any error: a wrong tokenizer, another block
size, lost events. So each prediction is held against what the engine says, and a sustained difference is an alert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.decision import CachedBy
from orchestrator.core.messages import Alert

MEMORY = 0.98  # of the moving averages: about the last 50 predictions count
WARM_UP = 50  # predictions before the first alert
ALARM = 0.15  # mean error as a share of the prompt that raises an alert
CALM = 0.05  # and that ends it
KIND = "prefix_prediction"


@dataclass(slots=True)
class Accuracy:
    """One model's predictions. Errors are shares of a prompt; ``bias`` is positive where too much was expected."""

    error: float = 0.0
    bias: float = 0.0
    count: int = 0
    alarmed: bool = False


class Predictions:
    """The accuracy of each model's predictions of cached tokens."""

    def __init__(self) -> None:
        self._models: dict[str, Accuracy] = {}

    @property
    def accuracy(self) -> Mapping[str, Accuracy]:
        """By model; models without a prediction yet are left out."""
        return self._models

    def saw(self, model: str, predicted: int, actual: int, prompt: int, by: CachedBy) -> Sequence[Alert]:
        """One prediction's outcome, all in tokens; returns an alert where one begins or is over."""
        if by is CachedBy.UNKNOWN or prompt <= 0:
            return ()
        kept = self._models.get(model)
        if kept is None:
            kept = self._models[model] = Accuracy()
        off = (predicted - actual) / prompt
        kept.count += 1
        kept.error += (abs(off) - kept.error) * (1 - MEMORY)
        kept.bias += (off - kept.bias) * (1 - MEMORY)
        if not kept.alarmed and kept.count >= WARM_UP and kept.error > ALARM:
            kept.alarmed = True
            return (Alert(KIND, model, _words(kept, by)),)
        if kept.alarmed and kept.error < CALM:
            kept.alarmed = False
            return (Alert(KIND, model, "cached tokens are predicted well again", over=True),)
        return ()


def _words(kept: Accuracy, by: CachedBy) -> str:
    what = f"predictions of cached tokens are off by {kept.error:.0%} of the prompt on average"
    if kept.bias < 0:
        cause = (
            "engines find more than the router knows: KV events are lost, or the gateway's tokenizer or block size is "
            "not the engines'"
        )
    elif by is CachedBy.ROUTED:
        cause = (
            "the workers tell no KV events, so what is cached is guessed from what was sent there: caches may be "
            "smaller than the traffic needs"
        )
    else:
        cause = "engines find less than they said: removals are lost, or requests carry a salt or adapter that differs"
    return f"{what}; likely {cause}"
