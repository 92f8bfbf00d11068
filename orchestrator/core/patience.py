"""How long a request may wait for a worker, so that its first token still comes within the model's target.

What is left of the target is what a request that was sent to a worker takes until its first token: its mean and mean
deviation are learned, as a retransmission timer's are (Jacobson, "Congestion avoidance and control", 1988).
"""

from __future__ import annotations

from typing import Final

GAIN: Final = 1 / 16
DEVIATIONS: Final = 4.0  # so many mean deviations above the mean are counted on
AT_ONCE: Final = 0.05  # of the target: a wait that is always allowed, or nobody would be in line for the next seat


class Patience:
    """One model's. ``most``: seconds that nobody waits longer than; ``target``: seconds to the first token, or None."""

    __slots__ = ("_deviation", "_mean", "_most", "_target")

    def __init__(self, most: float, target: float | None = None) -> None:
        self._most = most
        self._target = target
        self._mean = -1.0
        self._deviation = 0.0

    def saw(self, seconds: float) -> None:
        """A request had its first token so long after it was sent to a worker."""
        if self._mean < 0.0:
            self._mean, self._deviation = seconds, seconds / 2
            return
        off = seconds - self._mean
        self._mean += GAIN * off
        self._deviation += GAIN * (abs(off) - self._deviation)

    def seconds(self, left: float | None) -> float:
        """That a request may wait which has ``left`` seconds of its own deadline."""
        service = max(0.0, self._mean) + DEVIATIONS * self._deviation
        wait = self._most
        if self._target is not None:
            wait = min(wait, max(AT_ONCE * self._target, self._target - service))
        return wait if left is None else min(wait, left)
