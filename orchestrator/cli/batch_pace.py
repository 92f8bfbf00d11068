"""How many requests of a batch are under way at once, and when a refused one is tried again. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST = 16
_SAME_TROUBLE = 1.0  # seconds in which several refusals are one sign
_LONGEST_WAIT = 30.0  # seconds
_ATTEMPTS = 4  # of a request that meets an error of the server's own
_AGAIN = (408, 425, 429, 502, 503)  # nobody has worked on it, or nobody can be asked whether somebody has
_SERVER = 500
LOST = 0  # in place of a status: no answer came


@dataclass(slots=True)
class Pace:
    """Grows by one each time as many were answered as may be under way; halves when the cluster refuses."""

    most: int
    limit: int = 0
    _answered: int = 0
    _halved: float = float("-inf")

    def __post_init__(self) -> None:
        self.limit = min(self.most, _FIRST)

    def answered(self) -> None:
        self._answered += 1
        if self._answered >= self.limit:
            self._answered = 0
            self.limit = min(self.most, self.limit + 1)

    def refused(self, now: float) -> None:
        """``now`` in seconds."""
        if now - self._halved >= _SAME_TROUBLE:
            self._halved, self._answered = now, 0
            self.limit = max(1, self.limit // 2)


def is_pressure(status: int) -> bool:
    """Whether the cluster has too much to do, or is away."""
    return status in _AGAIN or status == LOST


def pause(status: int, attempt: int, retry_after: float | None, chance: float) -> float | None:
    """Seconds until the next attempt, after that many; None if the answer stands.

    Args:
        chance: from 0 to 1, so that those refused together don't come back together.
    """
    if not is_pressure(status) and (status < _SERVER or attempt >= _ATTEMPTS):
        return None
    backoff: float = min(_LONGEST_WAIT, 0.25 * 2 ** min(attempt - 1, 10))
    return min(_LONGEST_WAIT, max(retry_after or 0.0, backoff * (0.5 + chance / 2)))
