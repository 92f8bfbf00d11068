"""Admission: what may wait in one gateway, in which order it leaves, and who is turned away when it is full.

Theory of operation
===================
A queue a model (``fair_queue`` has the order), and bounds over all of them (``holdings``). A tenant over its own bound
is told so (``Overloaded``). Where the whole queue is full, a newcomer whose tenant holds less than its share takes the
place of what the tenant most over its share can best do without, its newest request of the least urgent kind; any
other newcomer is told that the cluster is full (``ClusterFull``). So a flood fills its own share for good and the rest
only while nobody else wants it.

Who could not be placed before its wait is over is told so at once: what has its turn before it, over the pace at which
waiting requests are let in, is its likely wait. So what is served under overload is served in time.

A request that was admitted and comes back (its worker was lost) goes to the front of its tenant, is not charged again,
counts for no bound and is never turned away.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from orchestrator.core.errors import ClusterFull, Overloaded, SegueError
from orchestrator.core.fair_queue import FairQueue, Ticket, Waiting
from orchestrator.core.holdings import Holdings, Queued, TurnReason
from orchestrator.core.pace import Pace
from orchestrator.core.spec import AdmissionSpec

__all__ = ["Admission", "Queued", "Ticket", "TurnReason", "Turned"]

_THE_CLUSTERS = (TurnReason.CLUSTER_REQUESTS, TurnReason.CLUSTER_TOKENS)


@dataclass(frozen=True, slots=True)
class Turned:
    """A request that has to go. If it is not the newcomer, it was waiting until now."""

    request_id: str
    error: SegueError
    reason: TurnReason


class Admission:
    """The queue of one gateway process. All times are on the caller's clock, in seconds."""

    def __init__(self, spec: AdmissionSpec) -> None:
        self._spec = spec
        self._queues: dict[str, FairQueue] = {}
        self._waiting: dict[str, Waiting] = {}
        self._holdings = Holdings(spec)
        self._paces: dict[str, Pace] = {}
        self._tokens: dict[str, int] = {}  # that wait to be admitted for the first time, by model
        self._sequence = 0
        self.turned_away: Counter[tuple[str, TurnReason]] = Counter()  # by model and reason

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self, model: str) -> int:
        """Requests that wait for a model's workers."""
        queue = self._queues.get(model)
        return queue.waiting if queue else 0

    def tenants(self) -> Mapping[str, Queued]:
        """What waits to be admitted for the first time, by tenant; tenants with nothing are left out."""
        return self._holdings.by_tenant

    def queued(self) -> Iterator[tuple[str, str, int]]:
        """(model, tenant, requests) of all that wait."""
        for model, queue in self._queues.items():
            for tenant, requests in queue.by_tenant():
                yield model, tenant, requests

    def join(self, ticket: Ticket, now: float, most_wait: float = math.inf) -> list[Turned]:
        """Queues a request that may wait ``most_wait`` seconds, or turns it or others away because of it."""
        self._refuse_twice(ticket)
        self._pace(ticket.model).look(now)
        if self.wait_of(ticket) > most_wait:
            return [self._turned(ticket, TurnReason.WAIT)]
        room = self._holdings.over_its_own(ticket) or self._holdings.make_room(ticket)
        if isinstance(room, TurnReason):
            return [self._turned(ticket, room)]
        for waiting in room:
            del self._waiting[waiting.ticket.request_id]
            self._tokens[waiting.ticket.model] -= waiting.ticket.tokens
            self._queues[waiting.ticket.model].remove(waiting)
        self._add(ticket, returned=False)
        return [self._turned(waiting.ticket, TurnReason.DISPLACED) for waiting in room]

    def turned_at_the_door(self, ticket: Ticket, now: float, most_wait: float) -> SegueError | None:
        """Why a request would be turned away that asks for no more than ``ticket``; None where it may not be.

        It is counted as one that was, of the size of those that wait.
        """
        self._pace(ticket.model).look(now)
        reason = self._holdings.over_its_own(ticket)
        if reason is None and self.wait_of(ticket) > most_wait:
            reason = TurnReason.WAIT
        if reason is None:
            return None
        usual = self._tokens.get(ticket.model, 0) // max(1, self.waiting(ticket.model))
        return self._turned(replace(ticket, tokens=max(ticket.tokens, usual)), reason).error

    def rejoin(self, ticket: Ticket) -> None:
        """Queues a request that was admitted before and has to be placed again."""
        self._refuse_twice(ticket)
        self._add(ticket, returned=True)

    def wait_of(self, ticket: Ticket) -> float:
        """Seconds until a newcomer is likely to have its turn; 0 while the pace is not known."""
        pace = self._pace(ticket.model)
        return pace.seconds(self._holdings.until_turn(ticket, self._tokens.get(ticket.model, 0)))

    def nobody_takes(self, model: str) -> None:
        """No worker of a model takes requests: until one does, nobody knows how long they will wait."""
        self._pace(model).forget()

    def retry_after(self, model: str) -> float:
        """Seconds until as much of a model's is admitted as waits now, and was turned away lately."""
        return self._pace(model).retry_after(self._tokens.get(model, 0))

    def _pace(self, model: str) -> Pace:
        pace = self._paces.get(model)
        if pace is None:
            pace = self._paces[model] = Pace()
        return pace

    def next(self, model: str) -> Ticket | None:
        """Whose turn it is; it stays queued until ``admitted`` or ``drop``."""
        queue = self._queues.get(model)
        head = queue.head() if queue else None
        return head.ticket if head else None

    def admitted(self, request_id: str, now: float) -> None:
        """It was placed: it leaves, and its tenant is charged."""
        waiting = self._waiting[request_id]
        self._pace(waiting.ticket.model).admitted(waiting.ticket.tokens, now)
        self._queues[waiting.ticket.model].served(waiting)
        self._left(waiting)

    def passed(self, tenant: str, model: str, tokens: int) -> None:
        """A request was placed at once, as nobody waited: its tenant is charged all the same."""
        self._queue(model).passed(tenant, self._holdings.limits(tenant).weight, tokens)

    def drop(self, request_id: str) -> None:
        """It ended otherwise; no error if it does not wait."""
        waiting = self._waiting.get(request_id)
        if waiting is not None:
            self._queues[waiting.ticket.model].remove(waiting)
            self._left(waiting)

    def _refuse_twice(self, ticket: Ticket) -> None:
        if ticket.request_id in self._waiting:
            raise ValueError(f"request {ticket.request_id} waits already")

    def _queue(self, model: str) -> FairQueue:
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = FairQueue()
        return queue

    def _add(self, ticket: Ticket, *, returned: bool) -> None:
        self._sequence += 1
        waiting = Waiting(ticket, (not returned, ticket.priority, ticket.arrived_at, self._sequence))
        self._waiting[ticket.request_id] = waiting
        if not returned:
            self._holdings.enter(waiting)
            self._tokens[ticket.model] = self._tokens.get(ticket.model, 0) + ticket.tokens
        self._queue(ticket.model).push(waiting, self._holdings.limits(ticket.tenant).weight)

    def _left(self, waiting: Waiting) -> None:
        del self._waiting[waiting.ticket.request_id]
        if not waiting.returned:
            self._holdings.leave(waiting)
            self._tokens[waiting.ticket.model] -= waiting.ticket.tokens
        if not self.waiting(waiting.ticket.model):
            self._pace(waiting.ticket.model).pause()

    def _turned(self, ticket: Ticket, reason: TurnReason) -> Turned:
        self.turned_away[ticket.model, reason] += 1
        pace = self._pace(ticket.model)
        clusters = reason in _THE_CLUSTERS
        if reason is TurnReason.WAIT:
            clusters = not self._holdings.over_its_share(ticket.tenant)
            pace.turned(ticket.tokens)
        error = (ClusterFull if clusters else Overloaded)(
            self._words(ticket, reason),
            where=f"request {ticket.request_id}",
            hint="send it again later",
            retry_after=(
                self.retry_after(ticket.model) if clusters else pace.retry_after(self._holdings.ahead_of(ticket.tenant))
            ),
        )
        return Turned(ticket.request_id, error, reason)

    def _words(self, ticket: Ticket, reason: TurnReason) -> str:
        """Without the tenant's name: clients choose it, and logs have no words of theirs."""
        limits = self._holdings.limits(ticket.tenant)
        match reason:
            case TurnReason.TENANT_REQUESTS:
                return f"your tenant has {limits.max_queued_requests} requests waiting, which is its limit"
            case TurnReason.TENANT_TOKENS:
                return f"with this request your tenant would have over {limits.max_queued_tokens} tokens waiting"
            case TurnReason.CLUSTER_REQUESTS:
                return f"{self._spec.max_queued_requests} requests wait, which is the cluster's limit"
            case TurnReason.CLUSTER_TOKENS:
                return f"with this request over {self._spec.max_queued_tokens} tokens would wait in the cluster"
            case TurnReason.WAIT:
                return f"it would have to wait about {self.wait_of(ticket):.1f} s for a worker, which is too long"
            case TurnReason.DISPLACED:
                return "the cluster is full, and your tenant has more than its share of the queue"

    def check(self) -> None:
        """Raises AssertionError where the books don't balance or a bound is broken; for tests, after each step."""
        self._holdings.check(waiting for waiting in self._waiting.values() if not waiting.returned)
        for model, queue in self._queues.items():
            queue.check()
            mine = [w for w in self._waiting.values() if w.ticket.model == model and not w.returned]
            assert self._tokens.get(model, 0) == sum(w.ticket.tokens for w in mine), model  # noqa: S101
            assert queue.waiting == sum(w.ticket.model == model for w in self._waiting.values()), model  # noqa: S101
