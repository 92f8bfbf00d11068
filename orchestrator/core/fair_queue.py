"""One model's waiting requests, and whose turn it is: start-time fair queueing between tenants.

Theory of operation
===================
Each tenant has a *start tag*, a virtual time; the tenant with the least is next. Serving one of its requests moves its
tag on by cost / weight, so over time each gets its weight's share. The queue's own virtual time is the tag of what was
served last: a tenant that comes back begins there at the earliest, so idle time earns no credit. For two tenants that
both wait throughout an interval,

    | served_i / weight_i - served_j / weight_j |  <=  max_cost_i / weight_i + max_cost_j / weight_j

(Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996, theorem 1). A tenant's tag needs no cost of what it
will send next, so within a tenant any order does: here priority, then arrival. What a tenant was served while nobody
waited is owed to nobody, so of that it brings along one request's worth at most.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_IDLE = 1024  # tenants with nothing waiting whose last request still counts
_STALE = 32  # entries of a heap that are not worth a clean-up
_FAR = 1e12  # virtual time that is taken back to zero when nobody waits: floats get coarse

Rank = tuple[bool, int, float, int]  # was never served before, priority, arrival, sequence: the least goes first


@dataclass(slots=True)
class Ticket:
    """A request that waits. ``tokens``: its prompt's and the output that it asked for."""

    request_id: str
    model: str
    tenant: str
    priority: int
    tokens: int
    arrived_at: float


@dataclass(slots=True, eq=False)
class Waiting:
    """A ticket's place in the queue."""

    ticket: Ticket
    rank: Rank
    gone: bool = False  # left the queue; heaps find out when they come to it

    @property
    def returned(self) -> bool:
        """Whether it was served before, and its tenant charged for it."""
        return not self.rank[0]

    @property
    def cost(self) -> int:
        return self.ticket.tokens if self.rank[0] else 0


@dataclass(slots=True, eq=False)
class _Flow:
    """One tenant here. ``start`` is its tag; ``turn`` names its one valid entry in the heap of turns.

    ``charged_in``: the period in which others may have waited for what it was served; -1 if nobody did.
    """

    tenant: str
    weight: float
    start: float
    turn: int = -1
    charged_in: int = -1
    waiting: int = 0
    heap: list[tuple[Rank, Waiting]] = field(default_factory=list)


class FairQueue:
    """See the head of this file. ``weight`` is a tenant's own at the time of the call; it holds while it waits."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._turns: list[tuple[float, int, _Flow]] = []
        self._last_turn = 0
        self._backlogged = 0
        self._now = 0.0  # virtual time
        self._period = 0  # how often somebody began to wait
        self.waiting = 0

    def push(self, waiting: Waiting, weight: float) -> None:
        if not self.waiting:
            self._period += 1
            if self._now > _FAR:
                self._forget_idle()
        flow = self._flow(waiting.ticket.tenant, weight)
        heapq.heappush(flow.heap, (waiting.rank, waiting))
        flow.waiting += 1
        self.waiting += 1
        if flow.waiting == 1:
            flow.weight = weight
            self._come_back(flow, waiting.cost)
            self._backlogged += 1
            self._take_turn(flow)

    def head(self) -> Waiting | None:
        """Whose turn it is; None if nobody waits."""
        while self._turns:
            _, turn, flow = self._turns[0]
            if flow.turn != turn:
                heapq.heappop(self._turns)
                continue
            while flow.heap[0][1].gone:
                heapq.heappop(flow.heap)
            return flow.heap[0][1]
        return None

    def served(self, waiting: Waiting) -> None:
        """It leaves the queue, and its tenant's tag moves on."""
        flow = self._flows[waiting.ticket.tenant]
        if self.head() is waiting:
            self._now = max(self._now, flow.start)
        self._remove(waiting, flow)
        if waiting.cost:
            flow.charged_in = self._period
            self._charge(flow, waiting.cost)

    def remove(self, waiting: Waiting) -> None:
        """It leaves the queue unserved."""
        self._remove(waiting, self._flows[waiting.ticket.tenant])

    def passed(self, tenant: str, weight: float, cost: int) -> None:
        """A request was served that never waited."""
        flow = self._flows.get(tenant) or self._flow(tenant, weight)
        if self.waiting:
            flow.charged_in = self._period
        else:
            self._now = max(self._now, flow.start)
            flow.charged_in = -1
        if not flow.waiting:
            flow.start = max(flow.start, self._now)
        self._charge(flow, cost)

    def by_tenant(self) -> Iterator[tuple[str, int]]:
        """Tenants and how many requests of theirs wait."""
        return ((flow.tenant, flow.waiting) for flow in self._flows.values() if flow.waiting)

    def _flow(self, tenant: str, weight: float) -> _Flow:
        flow = self._flows.get(tenant)
        if flow is None:
            if len(self._flows) - self._backlogged >= MOST_IDLE:
                self._forget_idle()
            flow = self._flows[tenant] = _Flow(tenant, weight, self._now)
        return flow

    def _forget_idle(self) -> None:
        """What idle tenants still owe (one request each at most) is forgiven: memory has a bound, names have none."""
        self._flows = {flow.tenant: flow for flow in self._flows.values() if flow.waiting}
        if not self._flows:
            self._turns.clear()
            self._now = 0.0

    def _come_back(self, flow: _Flow, cost: int) -> None:
        if flow.charged_in != self._period:
            flow.start = min(flow.start, self._now + cost / flow.weight)
        flow.start = max(flow.start, self._now)

    def _charge(self, flow: _Flow, cost: int) -> None:
        flow.start += cost / flow.weight
        if flow.waiting:
            self._take_turn(flow)

    def _take_turn(self, flow: _Flow) -> None:
        self._last_turn += 1
        flow.turn = self._last_turn
        heapq.heappush(self._turns, (flow.start, flow.turn, flow))
        if len(self._turns) > 2 * self._backlogged + _STALE:
            self._turns = [entry for entry in self._turns if entry[2].turn == entry[1]]
            heapq.heapify(self._turns)

    def _remove(self, waiting: Waiting, flow: _Flow) -> None:
        waiting.gone = True
        flow.waiting -= 1
        self.waiting -= 1
        if flow.waiting:
            if len(flow.heap) > 2 * flow.waiting + _STALE:
                flow.heap = [entry for entry in flow.heap if not entry[1].gone]
                heapq.heapify(flow.heap)
            return
        flow.heap.clear()
        flow.turn = -1
        self._backlogged -= 1

    def check(self) -> None:
        """Raises AssertionError where the books don't balance; for tests."""
        for flow in self._flows.values():
            alive = [waiting for _, waiting in flow.heap if not waiting.gone]
            assert len(alive) == flow.waiting, flow.tenant  # noqa: S101
            assert len(flow.heap) <= 2 * flow.waiting + _STALE, flow.tenant  # noqa: S101
            turns = [entry for entry in self._turns if entry[1] == flow.turn]
            assert len(turns) == bool(flow.waiting), flow.tenant  # noqa: S101
            assert not turns or turns[0] == (flow.start, flow.turn, flow), flow.tenant  # noqa: S101
            assert not flow.waiting or flow.start >= self._now, flow.tenant  # noqa: S101
        assert self.waiting == sum(flow.waiting for flow in self._flows.values())  # noqa: S101
        assert self._backlogged == sum(bool(flow.waiting) for flow in self._flows.values())  # noqa: S101
        assert len(self._flows) <= self._backlogged + MOST_IDLE  # noqa: S101
