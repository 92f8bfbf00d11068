"""How many retries a gateway may cause: a share of what arrives, so that a failing fleet sees no storm of them."""

from __future__ import annotations

RATIO = 0.2  # retries for each arrival, in the long run
BURST = 2048.0  # so that all that ran on a large worker can move at once


class RetryBudget:
    """A bucket that arrivals fill and retries empty."""

    def __init__(self, ratio: float = RATIO, burst: float = BURST) -> None:
        self._ratio = ratio
        self._burst = burst
        self.left = burst

    def arrived(self) -> None:
        if self.left < self._burst:
            self.left = min(self._burst, self.left + self._ratio)

    def spend(self) -> bool:
        """Takes one retry out; False if none is left."""
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True
