"""How long a request may wait for a worker, so that its first token still comes within the model's target.

What is left of the target is what a request that was sent to a worker takes until its first token: its mean and mean
deviation are learned, as a retransmission timer's are (Jacobson, "Congestion avoidance and control", 1988). A long
prompt takes many times what a short one does, so they are learned apart: one figure for each doubling of its tokens.
"""

from __future__ import annotations

from typing import Final

GAIN: Final = 1 / 16
DEVIATIONS: Final = 4.0  # so many mean deviations above the mean are counted on
AT_ONCE: Final = 0.05  # of the target: a wait that is always allowed, or nobody would be in line for the next seat


class Patience:
    """One model's. ``most``: seconds that nobody waits longer than; ``target``: seconds to the first token, or None."""

    __slots__ = ("_most", "_usual", "target")

    def __init__(self, most: float, target: float | None = None) -> None:
        self._most = most
        self.target = target
        self._usual: dict[int, tuple[float, float]] = {}  # mean and mean deviation, by the bits of a prompt's length

    def saw(self, seconds: float, tokens: int) -> None:
        """A request of ``tokens`` prompt tokens had its first token so long after it was sent to a worker."""
        bits = tokens.bit_length()
        known = self._usual.get(bits)
        if known is None:
            self._usual[bits] = seconds, seconds / 2
            return
        mean, deviation = known
        off = seconds - mean
        self._usual[bits] = mean + GAIN * off, deviation + GAIN * (abs(off) - deviation)

    def seconds(self, left: float | None, tokens: int) -> float:
        """That a request may wait which has ``left`` seconds of its own deadline; ``tokens`` 0: the quickest there is.

        What no prompt of its length has shown is taken from the next shorter ones, and else from the next longer ones.
        """
        wait = self._most
        if self.target is not None:
            wait = min(wait, max(AT_ONCE * self.target, self.target - self._service(tokens)))
        return wait if left is None else min(wait, left)

    def _service(self, tokens: int) -> float:
        usual = self._usual
        if not usual:
            return 0.0
        bits = tokens.bit_length()
        if bits not in usual:
            shorter = [each for each in usual if each < bits]
            bits = max(shorter) if shorter else min(usual)
        mean, deviation = usual[bits]
        return mean + DEVIATIONS * deviation
