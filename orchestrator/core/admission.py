"""Admission: what may wait in one gateway, in which order it leaves, and who is turned away when it is full.

Theory of operation
===================
A queue a model (``fair_queue`` has the order), and bounds over all of them. A tenant over its own bound is told so
(``Overloaded``). Where the whole queue is full, a newcomer whose tenant holds less than its weighted share of it takes
the place of what the tenant most over its own share can best do without, its newest request of the least urgent kind;
any other newcomer is told that the cluster is full (``ClusterFull``). So a flood fills its own share for good and the
rest only while nobody else wants it.

A request that was admitted and comes back (its worker was lost) goes to the front of its tenant, is not charged again
and never turned away.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.core.errors import ClusterFull, Overloaded, SegueError
from orchestrator.core.fair_queue import FairQueue, Ticket, Waiting
from orchestrator.core.spec import AdmissionSpec, TenantSpec

__all__ = ["Admission", "Queued", "Ticket", "TurnReason", "Turned"]

LEAST_RETRY_SECONDS = 1.0
MOST_RETRY_SECONDS = 60.0
UNKNOWN_RETRY_SECONDS = 5.0  # before anything is known of the pace
_PACE_SECONDS = 1.0  # shortest time over which the pace is measured
_PACE_MEMORY_SECONDS = 10.0
_STALE = 32  # entries of a heap that are not worth a clean-up


class TurnReason(StrEnum):
    """Why a request was turned away; a metric's label."""

    TENANT_REQUESTS = "tenant_requests"
    TENANT_TOKENS = "tenant_tokens"
    CLUSTER_REQUESTS = "cluster_requests"
    CLUSTER_TOKENS = "cluster_tokens"
    DISPLACED = "displaced"


@dataclass(frozen=True, slots=True)
class Turned:
    """A request that has to go. If it is not the newcomer, it was waiting until now."""

    request_id: str
    error: SegueError
    reason: TurnReason


@dataclass(slots=True)
class Queued:
    """What waits."""

    requests: int = 0
    tokens: int = 0


@dataclass(slots=True, eq=False)
class _Holding(Queued):
    """What waits of one tenant, over all models. ``least``: what it can best do without, first."""

    weight: float = 1.0
    least: list[tuple[int, int, Waiting]] = field(default_factory=list)

    def least_urgent(self) -> Waiting | None:
        while self.least and self.least[0][2].gone:
            heapq.heappop(self.least)
        return self.least[0][2] if self.least else None

    def can_do_without(self, waiting: Waiting) -> None:
        _, priority, _, sequence = waiting.rank
        heapq.heappush(self.least, (-priority, -sequence, waiting))
        if len(self.least) > 2 * self.requests + _STALE:
            self.least = [entry for entry in self.least if not entry[2].gone]
            heapq.heapify(self.least)


class _Pace:
    """Tokens a second at which waiting requests were admitted lately, measured while somebody waits."""

    def __init__(self) -> None:
        self._since = 0.0
        self._tokens = 0
        self._rate: float | None = None

    def begin(self, now: float) -> None:
        self._since, self._tokens = now, 0

    def admitted(self, tokens: int) -> None:
        self._tokens += tokens

    def look(self, now: float) -> None:
        seconds = now - self._since
        if seconds < _PACE_SECONDS:
            return
        newest = self._tokens / seconds
        share = seconds / (seconds + _PACE_MEMORY_SECONDS)
        self._rate = newest if self._rate is None else self._rate + share * (newest - self._rate)
        self.begin(now)

    def seconds_for(self, tokens: float) -> float:
        """Until so many tokens are admitted, bounded; a whole number, as the header wants it."""
        if self._rate is None:
            return UNKNOWN_RETRY_SECONDS
        most = MOST_RETRY_SECONDS * self._rate
        return MOST_RETRY_SECONDS if tokens >= most else max(LEAST_RETRY_SECONDS, float(-(-tokens // self._rate)))


class Admission:
    """The queue of one gateway process. All times are on the caller's clock, in seconds."""

    def __init__(self, spec: AdmissionSpec) -> None:
        self._spec = spec
        self._queues: dict[str, FairQueue] = {}
        self._waiting: dict[str, Waiting] = {}
        self._holdings: dict[str, _Holding] = {}  # of tenants that have something waiting
        self._tokens = 0
        self._weight = 0.0  # over all holdings
        self._sequence = 0
        self._pace = _Pace()
        self.turned_away: dict[TurnReason, int] = dict.fromkeys(TurnReason, 0)

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self, model: str) -> int:
        """Requests that wait for a model's workers."""
        queue = self._queues.get(model)
        return queue.waiting if queue else 0

    def tenants(self) -> Mapping[str, Queued]:
        """What waits, by tenant; tenants with nothing are left out."""
        return self._holdings

    def queued(self) -> Iterator[tuple[str, str, int]]:
        """(model, tenant, requests) of all that wait, for metrics."""
        for model, queue in self._queues.items():
            for tenant, requests in queue.queued().items():
                yield model, tenant, requests

    # ---- a request's way

    def join(self, ticket: Ticket, now: float) -> list[Turned]:
        """Queues it, or turns it or others away because of it."""
        if ticket.request_id in self._waiting:
            raise ValueError(f"request {ticket.request_id} waits already")
        if self._waiting:
            self._pace.look(now)
        else:
            self._pace.begin(now)
        if reason := self._over_its_own(ticket):
            return [self._turn(ticket, reason)]
        displaced = self._make_room(ticket)
        if displaced is None:
            over = len(self._waiting) >= self._spec.max_queued_requests
            return [self._turn(ticket, TurnReason.CLUSTER_REQUESTS if over else TurnReason.CLUSTER_TOKENS)]
        turned = [self._turn(waiting.ticket, TurnReason.DISPLACED) for waiting in displaced]
        for waiting in displaced:
            self._queue(waiting.ticket.model).remove(waiting)
            self._forget_if_idle(waiting.ticket.tenant)
        self._add(ticket, returned=False)
        return turned

    def rejoin(self, ticket: Ticket) -> None:
        """Queues a request that was admitted before and has to be placed again."""
        if ticket.request_id in self._waiting:
            raise ValueError(f"request {ticket.request_id} waits already")
        self._add(ticket, returned=True)

    def next(self, model: str) -> Ticket | None:
        """Whose turn it is; it stays queued until ``admitted`` or ``drop``."""
        queue = self._queues.get(model)
        head = queue.head() if queue else None
        return head.ticket if head else None

    def admitted(self, request_id: str) -> None:
        """It was placed: it leaves, and its tenant is charged."""
        waiting = self._waiting[request_id]
        self._release(waiting)
        self._queue(waiting.ticket.model).served(waiting)
        self._forget_if_idle(waiting.ticket.tenant)
        self._pace.admitted(waiting.ticket.tokens)

    def passed(self, tenant: str, model: str, tokens: int) -> None:
        """A request was placed at once, as nobody waited: its tenant is charged all the same."""
        self._queue(model).passed(tenant, self._limits(tenant).weight, tokens)

    def drop(self, request_id: str) -> None:
        """It ended otherwise; no error if it does not wait."""
        waiting = self._waiting.get(request_id)
        if waiting is not None:
            self._release(waiting)
            self._queue(waiting.ticket.model).remove(waiting)
            self._forget_if_idle(waiting.ticket.tenant)

    # ---- bounds

    def _limits(self, tenant: str) -> TenantSpec:
        return self._spec.tenants.get(tenant, self._spec.default)

    def _over_its_own(self, ticket: Ticket) -> TurnReason | None:
        limits = self._limits(ticket.tenant)
        held = self._holdings.get(ticket.tenant, Queued())
        if limits.max_queued_requests is not None and held.requests >= limits.max_queued_requests:
            return TurnReason.TENANT_REQUESTS
        if limits.max_queued_tokens is not None and held.tokens + ticket.tokens > limits.max_queued_tokens:
            return TurnReason.TENANT_TOKENS
        return None

    def _make_room(self, ticket: Ticket) -> list[Waiting] | None:
        """The requests that give way, off the books already; None (and nobody gives way) if it has no right to that."""
        displaced: list[Waiting] = []
        while True:
            if len(self._waiting) >= self._spec.max_queued_requests:
                waiting = self._most_over(ticket, "requests", 1, self._spec.max_queued_requests)
            elif self._tokens + ticket.tokens > self._spec.max_queued_tokens:
                waiting = self._most_over(ticket, "tokens", ticket.tokens, self._spec.max_queued_tokens)
            else:
                return displaced
            if waiting is None:
                for kept in displaced:
                    self._enter(kept)
                return None
            heapq.heappop(self._holdings[waiting.ticket.tenant].least)
            self._release(waiting)
            displaced.append(waiting)

    def _most_over(self, ticket: Ticket, what: str, asked: int, bound: int) -> Waiting | None:
        """What the tenant most over its share of a bound can best do without, if the newcomer's is under its own.

        Nobody gives way to a tenant that would then hold more for its weight.
        """
        own = self._holdings.get(ticket.tenant)
        weight = self._limits(ticket.tenant).weight
        share = bound / (self._weight + (0.0 if own else weight))  # for a weight of 1
        held = getattr(own, what) / weight if own else 0.0
        if held >= share:
            return None
        most, chosen = max(share, held + asked / weight), None
        for holding in self._holdings.values():
            if getattr(holding, what) / holding.weight > most and (least := holding.least_urgent()):
                most, chosen = getattr(holding, what) / holding.weight, least
        return chosen

    def _turn(self, ticket: Ticket, reason: TurnReason) -> Turned:
        self.turned_away[reason] += 1
        tenants_own = reason not in (TurnReason.CLUSTER_REQUESTS, TurnReason.CLUSTER_TOKENS)
        error = (Overloaded if tenants_own else ClusterFull)(
            self._words(ticket, reason),
            where=f"request {ticket.request_id}",
            hint="send it again after the delay",
            retry_after=self._retry_after(ticket.tenant if tenants_own else None),
        )
        return Turned(ticket.request_id, error, reason)

    def _words(self, ticket: Ticket, reason: TurnReason) -> str:
        limits = self._limits(ticket.tenant)
        match reason:
            case TurnReason.TENANT_REQUESTS:
                return f"your tenant has {limits.max_queued_requests} requests waiting, which is its limit"
            case TurnReason.TENANT_TOKENS:
                return f"your tenant may have {limits.max_queued_tokens} tokens waiting, and this request is over that"
            case TurnReason.CLUSTER_REQUESTS:
                return f"{self._spec.max_queued_requests} requests wait, which is the cluster's limit"
            case TurnReason.CLUSTER_TOKENS:
                return f"{self._spec.max_queued_tokens} tokens may wait in the cluster, and this request is over that"
            case TurnReason.DISPLACED:
                return "the cluster is full, and your tenant has more than its share of the queue"

    def _retry_after(self, tenant: str | None) -> float:
        """Seconds until what waits now of a tenant, at its share of the pace, or of everyone is admitted."""
        if tenant is None:
            return self._pace.seconds_for(self._tokens)
        holding = self._holdings.get(tenant)
        return self._pace.seconds_for(holding.tokens * self._weight / holding.weight if holding else 0.0)

    # ---- the books

    def _queue(self, model: str) -> FairQueue:
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = FairQueue()
        return queue

    def _add(self, ticket: Ticket, *, returned: bool) -> None:
        self._sequence += 1
        rank = (not returned, ticket.priority, ticket.arrived_at, self._sequence)
        waiting = Waiting(ticket, rank, 0 if returned else ticket.tokens)
        self._enter(waiting)
        self._queue(ticket.model).push(waiting, self._limits(ticket.tenant).weight)

    def _enter(self, waiting: Waiting) -> None:
        ticket = waiting.ticket
        holding = self._holdings.get(ticket.tenant)
        if holding is None:
            holding = self._holdings[ticket.tenant] = _Holding(weight=self._limits(ticket.tenant).weight)
            self._weight += holding.weight
        self._waiting[ticket.request_id] = waiting
        self._tokens += ticket.tokens
        holding.requests += 1
        holding.tokens += ticket.tokens
        if waiting.rank[0]:
            holding.can_do_without(waiting)

    def _release(self, waiting: Waiting) -> None:
        ticket = waiting.ticket
        holding = self._holdings[ticket.tenant]
        del self._waiting[ticket.request_id]
        self._tokens -= ticket.tokens
        holding.requests -= 1
        holding.tokens -= ticket.tokens

    def _forget_if_idle(self, tenant: str) -> None:
        holding = self._holdings.get(tenant)
        if holding is not None and not holding.requests:
            del self._holdings[tenant]
            self._weight = self._weight - holding.weight if self._holdings else 0.0

    def check(self) -> None:
        """Raises AssertionError where the books don't balance or a bound is broken; for tests."""
        for queue in self._queues.values():
            queue.check()
        assert sum(queue.waiting for queue in self._queues.values()) == len(self._waiting)  # noqa: S101
        assert self._tokens == sum(waiting.ticket.tokens for waiting in self._waiting.values())  # noqa: S101
        for tenant, holding in self._holdings.items():
            mine = [waiting for waiting in self._waiting.values() if waiting.ticket.tenant == tenant]
            assert holding.requests == len(mine) > 0, tenant  # noqa: S101
            assert holding.tokens == sum(waiting.ticket.tokens for waiting in mine), tenant  # noqa: S101
            least = [entry[2] for entry in holding.least if not entry[2].gone]
            assert len(least) == sum(waiting.rank[0] for waiting in mine), tenant  # noqa: S101
        weight = sum(holding.weight for holding in self._holdings.values())
        assert abs(self._weight - weight) <= 1e-6 * weight, (self._weight, weight)  # noqa: S101
        first_time = [waiting.ticket for waiting in self._waiting.values() if waiting.rank[0]]
        self._check_bounds(first_time)

    def _check_bounds(self, tickets: list[Ticket]) -> None:
        assert len(tickets) <= self._spec.max_queued_requests  # noqa: S101
        assert sum(ticket.tokens for ticket in tickets) <= self._spec.max_queued_tokens  # noqa: S101
        for tenant in self._holdings:
            limits, mine = self._limits(tenant), [ticket.tokens for ticket in tickets if ticket.tenant == tenant]
            assert limits.max_queued_requests is None or len(mine) <= limits.max_queued_requests, tenant  # noqa: S101
            assert limits.max_queued_tokens is None or sum(mine) <= limits.max_queued_tokens, tenant  # noqa: S101
