"""What each tenant has waiting, its bounds and the queue's, and who gives way when the queue is full.

A share is a part of the queue's bound by weight, among the tenants that have something waiting. What was admitted
before and came back is on nobody's account here: it can't be turned away.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.core.fair_queue import Ticket, Waiting
from orchestrator.core.spec import AdmissionSpec, TenantSpec

_STALE = 32  # entries of a heap that are not worth a clean-up


class TurnReason(StrEnum):
    """Why a request was turned away; a metric's label."""

    TENANT_REQUESTS = "tenant_requests"
    TENANT_TOKENS = "tenant_tokens"
    CLUSTER_REQUESTS = "cluster_requests"
    CLUSTER_TOKENS = "cluster_tokens"
    DISPLACED = "displaced"
    WAIT = "wait"


@dataclass(slots=True)
class Queued:
    """What waits of one tenant, over all models."""

    requests: int = 0
    tokens: int = 0


@dataclass(slots=True, eq=False)
class _Holding(Queued):
    """``least``: a heap of what the tenant can best do without, with what has left in the meantime still in it."""

    weight: float = 1.0
    least: list[tuple[int, int, Waiting]] = field(default_factory=list)

    def can_do_without(self, waiting: Waiting) -> None:
        _, priority, _, sequence = waiting.rank
        heapq.heappush(self.least, (-priority, -sequence, waiting))
        if len(self.least) > 2 * self.requests + _STALE:
            self.least = [entry for entry in self.least if not entry[2].gone]
            heapq.heapify(self.least)

    def least_urgent(self) -> Waiting:
        """Its newest request of the least urgent kind."""
        while self.least and self.least[0][2].gone:
            heapq.heappop(self.least)
        return self.least[0][2]


class Holdings:
    """All tenants that have something waiting, and the sums over them."""

    def __init__(self, spec: AdmissionSpec) -> None:
        self._spec = spec
        self.by_tenant: dict[str, _Holding] = {}
        self.requests = 0
        self.tokens = 0
        self._weight = 0.0

    def limits(self, tenant: str) -> TenantSpec:
        return self._spec.tenants.get(tenant, self._spec.default)

    def ahead_of(self, tenant: str) -> float:
        """Tokens that are admitted, at fair shares, until what the tenant has waiting is."""
        holding = self.by_tenant.get(tenant)
        return holding.tokens * self._weight / holding.weight if holding else 0.0

    def until_turn(self, ticket: Ticket, of_model: int) -> float:
        """Tokens that are admitted until a newcomer's turn has come and gone: what its tenant has, at fair shares, and
        at most all that waits for its model (``of_model`` tokens)."""
        holding = self.by_tenant.get(ticket.tenant)
        weight = self.limits(ticket.tenant).weight
        everybody = self._weight if holding else self._weight + weight
        own = ticket.tokens + (holding.tokens if holding else 0)
        return min(float(of_model + ticket.tokens), own * everybody / weight)

    def over_its_share(self, tenant: str) -> bool:
        """Whether a tenant has more waiting, for its weight, than all have on average."""
        holding = self.by_tenant.get(tenant)
        return holding is not None and holding.tokens * self._weight > self.tokens * holding.weight * (1.0 + 1e-9)

    def enter(self, waiting: Waiting) -> None:
        tenant, tokens = waiting.ticket.tenant, waiting.ticket.tokens
        holding = self.by_tenant.get(tenant)
        if holding is None:
            holding = self.by_tenant[tenant] = _Holding(weight=self.limits(tenant).weight)
            self._weight += holding.weight
        holding.requests += 1
        holding.tokens += tokens
        self.requests += 1
        self.tokens += tokens
        holding.can_do_without(waiting)

    def leave(self, waiting: Waiting) -> None:
        self._take(waiting)
        self._forget_if_empty(waiting.ticket.tenant)

    def over_its_own(self, ticket: Ticket) -> TurnReason | None:
        """Which bound of its tenant a newcomer breaks, if any."""
        limits = self.limits(ticket.tenant)
        held = self.by_tenant.get(ticket.tenant, Queued())
        if limits.max_queued_requests is not None and held.requests >= limits.max_queued_requests:
            return TurnReason.TENANT_REQUESTS
        if limits.max_queued_tokens is not None and held.tokens + ticket.tokens > limits.max_queued_tokens:
            return TurnReason.TENANT_TOKENS
        return None

    def make_room(self, ticket: Ticket) -> list[Waiting] | TurnReason:
        """What gives way to a newcomer, off the books already; or why nothing does."""
        displaced: list[Waiting] = []
        while reason := self._full_for(ticket):
            waiting = self._most_over(ticket, reason)
            if waiting is None:
                for kept in displaced:
                    self.enter(kept)
                return reason
            heapq.heappop(self.by_tenant[waiting.ticket.tenant].least)
            self._take(waiting)
            displaced.append(waiting)
        for waiting in displaced:
            self._forget_if_empty(waiting.ticket.tenant)
        return displaced

    def _full_for(self, ticket: Ticket) -> TurnReason | None:
        if self.requests >= self._spec.max_queued_requests:
            return TurnReason.CLUSTER_REQUESTS
        return TurnReason.CLUSTER_TOKENS if self.tokens + ticket.tokens > self._spec.max_queued_tokens else None

    def _most_over(self, ticket: Ticket, reason: TurnReason) -> Waiting | None:
        """What the tenant most over its share can best do without, if the newcomer's tenant is under its own.

        Nobody gives way to a tenant that would then hold more for its weight. A scan over tenants, as rare as a
        newcomer at a full queue who isn't of those that filled it.
        """
        by_requests = reason is TurnReason.CLUSTER_REQUESTS
        bound = self._spec.max_queued_requests if by_requests else self._spec.max_queued_tokens
        own, weight = self.by_tenant.get(ticket.tenant), self.limits(ticket.tenant).weight
        share = bound / (self._weight if own else self._weight + weight)  # for a weight of 1
        held = (own.requests if by_requests else own.tokens) if own else 0
        if held / weight >= share:
            return None
        chosen: _Holding | None = None
        most = (held + (1 if by_requests else ticket.tokens)) / weight  # who holds more is over its share: it is full
        for holding in self.by_tenant.values():
            heavy = (holding.requests if by_requests else holding.tokens) / holding.weight
            if heavy > most:
                most, chosen = heavy, holding
        return chosen.least_urgent() if chosen else None

    def _take(self, waiting: Waiting) -> None:
        holding = self.by_tenant[waiting.ticket.tenant]
        holding.requests -= 1
        holding.tokens -= waiting.ticket.tokens
        self.requests -= 1
        self.tokens -= waiting.ticket.tokens

    def _forget_if_empty(self, tenant: str) -> None:
        holding = self.by_tenant.get(tenant)
        if holding is not None and not holding.requests:
            del self.by_tenant[tenant]
            self._weight = self._weight - holding.weight if self.by_tenant else 0.0

    def check(self, everyone: Iterable[Waiting]) -> None:
        """Raises AssertionError where the books are not of what waits, or a bound is broken; for tests."""
        mine: dict[str, list[Waiting]] = {}
        for waiting in everyone:
            mine.setdefault(waiting.ticket.tenant, []).append(waiting)
        assert mine.keys() == self.by_tenant.keys()  # noqa: S101
        for tenant, holding in self.by_tenant.items():
            assert holding.requests == len(mine[tenant]), tenant  # noqa: S101
            assert holding.tokens == sum(waiting.ticket.tokens for waiting in mine[tenant]), tenant  # noqa: S101
            least = [entry[2] for entry in holding.least if not entry[2].gone]
            assert len(least) == len(mine[tenant]), tenant  # noqa: S101
            limits = self.limits(tenant)
            _check_bounds(mine[tenant], limits.max_queued_requests, limits.max_queued_tokens)
        weight = sum(holding.weight for holding in self.by_tenant.values())
        assert abs(self._weight - weight) <= 1e-6 * weight, (self._weight, weight)  # noqa: S101
        everything = [waiting for some in mine.values() for waiting in some]
        assert self.requests == len(everything)  # noqa: S101
        assert self.tokens == sum(waiting.ticket.tokens for waiting in everything)  # noqa: S101
        _check_bounds(everything, self._spec.max_queued_requests, self._spec.max_queued_tokens)


def _check_bounds(some: list[Waiting], most_requests: int | None, most_tokens: int | None) -> None:
    assert most_requests is None or len(some) <= most_requests  # noqa: S101
    assert most_tokens is None or sum(waiting.ticket.tokens for waiting in some) <= most_tokens  # noqa: S101
