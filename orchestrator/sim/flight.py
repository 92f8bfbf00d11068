"""What a gateway keeps of a request, and what all gateways of a run share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from orchestrator.core import messages as m
from orchestrator.core.values import mypyc_attr
from orchestrator.sim.audit import Audit
from orchestrator.sim.clock import Clock
from orchestrator.sim.digest import Digest
from orchestrator.sim.half import Half
from orchestrator.sim.network import Network
from orchestrator.sim.offer import Offer

NEVER: Final = float("inf")


@mypyc_attr(free_list_len=1)
class Flight:
    """One client's request. ``sent`` tokens have reached it; ``half`` is what runs for it now.

    ``paused``: the longest time that its stream stood still, as a decode was lost; -1 if none was.
    """

    __slots__ = (
        "arrived_at",
        "first_at",
        "half",
        "last_at",
        "lost_at",
        "number",
        "offer",
        "outcome",
        "paused",
        "prefills",
        "request_id",
        "sent",
        "tries",
        "waits_since",
    )

    def __init__(self, number: int, request_id: str, offer: Offer, now: float, tries: int = 0) -> None:
        self.number = number
        self.tries = tries  # that went before, as its client was turned away
        self.request_id = request_id
        self.offer = offer
        self.arrived_at = self.waits_since = now
        self.half: Half | None = None
        self.prefills: dict[str, Half] | None = None  # ended, whose KV can be collected, by wire id
        self.sent = 0
        self.first_at = NEVER
        self.last_at = NEVER
        self.lost_at = 0.0
        self.paused = -1.0
        self.outcome = ""

    def stopped(self, now: float) -> None:
        """Nothing runs for it any more."""
        self.half = None
        self.waits_since = now


class Desk:
    """What all gateways of a run share. ``ended`` is told of each request's end."""

    __slots__ = (
        "audit",
        "clock",
        "deadline",
        "digest",
        "ended",
        "halves",
        "max_attempts",
        "model",
        "network",
        "patience",
        "took_out",
    )

    def __init__(
        self,
        model: str,
        clock: Clock,
        network: Network,
        audit: Audit,
        ended: Callable[[Flight, m.End], None],
        *,
        patience: float,
        max_attempts: int,
        deadline: float | None,
    ) -> None:
        self.model = model
        self.clock = clock
        self.network = network
        self.audit = audit
        self.digest = Digest()
        self.ended = ended
        self.patience = patience  # seconds that a request may wait for a worker, ticks and all
        self.max_attempts = max_attempts
        self.deadline = deadline  # seconds that clients give a request
        self.halves = 0
        self.took_out = 0  # workers as sick, by all gateways
