"""Whose orders an actor follows: those of the newest controller that it has heard of."""

from __future__ import annotations

from orchestrator.core.errors import StaleEpoch


class Terms:
    """One actor's. Terms are the numbers of a cluster's controllers, in the order in which they took over."""

    def __init__(self, who: str) -> None:
        self._who = who
        self.highest = 0

    def heed(self, term: int | None) -> None:
        """Before an order or a question is followed. None: it comes from no controller, and is not refused.

        Raises StaleEpoch where a newer controller has spoken before.
        """
        if term is None:
            return
        if term < self.highest:
            raise StaleEpoch(
                f"it follows the controller of term {self.highest}, not the one of term {term}",
                where=self._who,
                hint="that controller was replaced, and ends by itself",
            )
        self.highest = term
