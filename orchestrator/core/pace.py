"""How fast waiting requests are admitted, and so when it is worth trying again."""

from __future__ import annotations

LEAST_RETRY_SECONDS = 1.0
MOST_RETRY_SECONDS = 60.0
UNKNOWN_RETRY_SECONDS = 5.0  # before anything is known of the pace
_LEAST_SECONDS = 1.0  # shortest time over which the pace is measured,
_MOST_SECONDS = 30.0  # and the longest in which nobody was let in: long requests end many at once, and then none
_MEMORY_SECONDS = 10.0


class Pace:
    """Tokens a second, lately, measured only while somebody waits: otherwise it is demand that sets it."""

    def __init__(self) -> None:
        self._since: float | None = None  # None while nobody waits
        self._tokens = 0
        self._rate: float | None = None  # 0 where nobody has been let in yet
        self._turned = 0.0  # tokens turned away since then,
        self._turning = 0.0  # and before, of a second

    def admitted(self, tokens: int, now: float) -> None:
        if not self._rate and not self._tokens:
            self._since = now  # what ends first began before anybody waited
        self._tokens += tokens

    def turned(self, tokens: int) -> None:
        """A request was turned away, and is likely to come again."""
        self._turned += tokens

    def pause(self) -> None:
        """Nobody waits any more."""
        self._since = None

    def forget(self) -> None:
        """Nobody takes requests: how fast they were let in before says nothing of afterwards."""
        self._since = self._rate = None

    def look(self, now: float) -> None:
        """Somebody waits."""
        if self._since is None:
            self._since, self._tokens = now, 0
            return
        seconds = now - self._since
        if seconds >= _LEAST_SECONDS and (self._tokens or not self._rate or seconds >= _MOST_SECONDS):
            newest = self._tokens / seconds
            share = seconds / (seconds + _MEMORY_SECONDS)
            self._rate = self._rate + share * (newest - self._rate) if self._rate else newest
            self._turning, self._turned = self._turned / seconds, 0.0
            self._since, self._tokens = now, 0

    def seconds(self, tokens: float) -> float:
        """Until so many tokens are admitted; 0 while the pace is not known."""
        return tokens / self._rate if self._rate else 0.0

    def retry_after(self, tokens: float) -> float:
        """Seconds until so many tokens are admitted, and those turned away in a second; within bounds, and a whole
        number, as HTTP's header wants it."""
        if self._rate is None:
            return UNKNOWN_RETRY_SECONDS
        tokens += self._turning
        if tokens >= MOST_RETRY_SECONDS * self._rate:
            return MOST_RETRY_SECONDS
        return max(LEAST_RETRY_SECONDS, float(-(-tokens // self._rate)))
