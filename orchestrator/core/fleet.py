"""A router's view of the workers: what they reported, and what this router sent since.

Requests that this router has at a worker are counted here from the moment they are decided, as *claims*, not from the
worker's next report, so a burst between two reports spreads out. What other gateways have there is what the report says
beyond ours. A worker that has not been heard of for longer than its lease takes nothing new until it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.core.cost import CostModel, Peers
from orchestrator.core.prefix import PrefixIndex
from orchestrator.core.slot_sets import put, take
from orchestrator.core.spec import Role
from orchestrator.core.types import Load, WorkerInfo
from orchestrator.core.values import mypyc_attr

BUSY_MEMORY = 30.0  # seconds that a worker's share of busy time looks back


@mypyc_attr(free_list_len=1)
@dataclass(slots=True, eq=False)
class Claim:
    """What one of this router's requests takes of a worker."""

    view: WorkerView
    request_id: str
    order: int  # among all claims that were made
    prefill_tokens: int = 0  # of its prompt, that this worker has still to compute
    kv_blocks: int = 0  # that it needs
    place: int = -1  # where it stands among its worker's claims; -1 once it has left

    def computed(self) -> None:
        """The request's prompt has been computed there."""
        if self.place >= 0:
            self.view.prefill_tokens -= self.prefill_tokens
            self.prefill_tokens = 0


@dataclass(slots=True, eq=False)
class WorkerView:
    """One worker. ``claims`` are of the requests that this router has, or is about to have, there."""

    info: WorkerInfo
    index: PrefixIndex  # its model's
    slot: int = 0  # its bit there
    cost: CostModel = field(default_factory=CostModel)
    # Natively in this order in memory: what is looked at to score a candidate is together.
    depth: int = 0  # requests running, waiting or on their way: claims and foreign
    prefill_tokens: int = 0  # over all claims
    busy: float = 0.0  # share of the newest BUSY_MEMORY seconds in which it had requests; exponentially weighted
    foreign: int = 0
    heard_at: float = 0.0
    busy_at: float = 0.0  # the time up to which ``busy`` was counted
    # The newest report.
    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    kv_blocks: int = 0  # over all claims
    busy_until: float = 0.0  # it said that it is full: not to be asked again before
    # What happened last, kept until enough is known to learn from it (see ``learning``).
    stepped_at: float = 0.0  # the end of the newest step
    stepped_running: int = 0  # sequences that decoded in it
    due: float = 0.0  # tokens of a sequence that was there all along, had it been as quick as its peers; up to heard_at
    batch_tokens: int = 0  # of prompts that ended in the newest step, not learned from yet
    batch_began: float = 0.0
    batch_ended: float = 0.0
    draining: bool = False
    out: bool = False  # of its pool for a while, as it looks sick (``health``)
    gone: bool = False  # from the fleet; another may have its slot
    adapters: frozenset[str] | None = None  # that it serves; None while it does not say
    claims: list[Claim] = field(default_factory=list)  # in no order
    place: int = -1  # where it stands in its pool; -1 while it is in none

    def count_busy(self, now: float) -> None:
        """To be called before ``depth`` changes."""
        seconds = now - self.busy_at
        if seconds > 0.0:
            self.busy += seconds / (BUSY_MEMORY + seconds) * ((1.0 if self.depth else 0.0) - self.busy)
            self.busy_at = now

    def due_by(self, now: float) -> float:
        """``due``, counted on with the sequences that it last said to have."""
        return self.due + (now - self.heard_at) / self.cost.peers.step.at(max(1, self.running))

    @property
    def kv_usage(self) -> float:
        """Share of its KV blocks that are used, or promised to requests that it has not reported yet."""
        total = self.kv_blocks_total or (self.info.facts.kv_blocks_total if self.info.facts else 0)
        return max(self.kv_blocks_used, self.kv_blocks) / total if total else 0.0

    @property
    def wait_seconds(self) -> float:
        """Until the prompts that it has to compute already are computed."""
        return self.cost.backlog_seconds(self.prefill_tokens) if self.prefill_tokens else 0.0


class Pool:
    """A model's workers of one role that are not draining. ``slots``: their bits in the prefix index.
    ``out``: how many more there are that were taken out as sick.

    ``version`` is another one after each change.
    """

    def __init__(self) -> None:
        self.version = 0
        self.out = 0
        self.views: list[WorkerView] = []
        self.slots: list[int] = []  # see ``slot_sets``
        self.by_slot: list[WorkerView | None] = []

    def add(self, view: WorkerView) -> None:
        self.version += 1
        view.place = len(self.views)
        self.views.append(view)
        put(self.slots, view.slot)
        self.by_slot += [None] * (view.slot + 1 - len(self.by_slot))
        self.by_slot[view.slot] = view

    def remove(self, view: WorkerView) -> None:
        """Takes a worker out; safe where it is out already."""
        if view.place < 0:
            return
        self.version += 1
        last = self.views.pop()
        if last is not view:
            self.views[view.place] = last
            last.place = view.place
        view.place = -1
        take(self.slots, view.slot)
        self.by_slot[view.slot] = None


class Fleet:
    """All workers that a session is open with."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerView] = {}
        self._clock = 0.0  # the newest time that was told
        self._claimed = 0
        self._pools: dict[tuple[str, Role], Pool] = {}
        self._indexes: dict[str, PrefixIndex] = {}
        self._peers: dict[tuple[object, ...], Peers] = {}

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def __iter__(self) -> Iterator[WorkerView]:
        return iter(self._workers.values())

    def get(self, worker_id: str) -> WorkerView | None:
        return self._workers.get(worker_id)

    def pool(self, model: str, role: Role) -> Pool:
        """The model's workers of a role that are not draining; empty if there are none."""
        key = (model, role)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool()
        return pool

    def index(self, model: str) -> PrefixIndex:
        """The model's prefix index."""
        index = self._indexes.get(model)
        if index is None:
            index = self._indexes[model] = PrefixIndex()
        return index

    def up(self, info: WorkerInfo, now: float) -> WorkerView:
        """Adds a worker that is not there yet."""
        facts = info.facts
        tells = facts is not None and facts.kv_events
        index = self.index(info.model)
        slot = index.join(None if tells else facts.kv_blocks_total if facts else 0)
        view = WorkerView(info, index, slot, CostModel(facts, self._peers_of(info)), heard_at=now, busy_at=now)
        self._clock = now
        self._workers[info.worker_id] = view
        self.pool(info.model, info.role).add(view)
        return view

    def _peers_of(self, info: WorkerInfo) -> Peers:
        facts = info.facts
        speed = (facts.device, facts.weight_bytes, facts.block_size, facts.kv_block_bytes) if facts else ()
        key = (info.model, info.role, *speed)
        if key not in self._peers:
            self._peers[key] = Peers(facts)
        return self._peers[key]

    def down(self, worker_id: str) -> list[str]:
        """Removes a worker; returns the requests that were there. Unknown workers are no error: news crosses."""
        view = self._workers.pop(worker_id, None)
        if view is None:
            return []
        view.gone = True
        self._leave_pool(view)
        view.index.leave(view.slot)
        claims, view.claims = sorted(view.claims, key=_order), []
        for claim in claims:
            claim.place = -1
        return [claim.request_id for claim in claims]

    def drain(self, worker_id: str) -> None:
        if view := self._workers.get(worker_id):
            view.draining = True
            self._leave_pool(view)

    def _leave_pool(self, view: WorkerView) -> None:
        pool = self.pool(view.info.model, view.info.role)
        pool.remove(view)
        if view.out:
            view.out = False
            pool.out -= 1

    def rest(self, view: WorkerView) -> None:
        """Takes a worker out of its pool that is in it; what it has goes on."""
        pool = self.pool(view.info.model, view.info.role)
        pool.remove(view)
        view.out = True
        pool.out += 1

    def welcome(self, view: WorkerView) -> None:
        """Puts one back that was taken out."""
        pool = self.pool(view.info.model, view.info.role)
        view.out = False
        pool.out -= 1
        pool.add(view)

    def reported(self, worker_id: str, load: Load, own: int | None, now: float) -> WorkerView | None:
        """A worker's own account; ``own`` of its requests are this router's. Returns None for an unknown worker."""
        view = self._workers.get(worker_id)
        self._clock = now
        if view is not None:
            view.count_busy(now)
            if not view.depth:
                view.cost.idle(now - view.heard_at)
            view.due = view.due_by(now)
            view.running, view.waiting = load.running, load.waiting
            view.kv_blocks_used, view.kv_blocks_total = load.kv_blocks_used, load.kv_blocks_total
            view.heard_at = now
            ours = view.depth - view.foreign
            foreign = load.running + load.waiting - (ours if own is None else own)
            view.foreign = foreign if foreign > 0 else 0
            view.depth = ours + view.foreign
        return view

    def claim(self, view: WorkerView, request_id: str, prefill_tokens: int, kv_blocks: int) -> Claim:
        """A request is about to be sent there."""
        self._claimed += 1
        claim = Claim(view, request_id, self._claimed, prefill_tokens, kv_blocks, len(view.claims))
        view.count_busy(self._clock)
        view.claims.append(claim)
        view.depth += 1
        view.prefill_tokens += prefill_tokens
        view.kv_blocks += kv_blocks
        return claim

    def left(self, claim: Claim) -> None:
        """The request is not there any more; safe to say twice, and of a worker that is gone."""
        if claim.place < 0:
            return
        view = claim.view
        view.count_busy(self._clock)
        last = view.claims.pop()
        if last is not claim:
            view.claims[claim.place] = last
            last.place = claim.place
        claim.place = -1
        view.depth -= 1
        view.prefill_tokens -= claim.prefill_tokens
        view.kv_blocks -= claim.kv_blocks

    def check(self) -> None:
        """Raises AssertionError where a counter is not the sum of its claims; for tests."""
        for view in self:
            claims = view.claims
            assert all(claims[claim.place] is claim and claim.view is view for claim in claims), view.info.worker_id  # noqa: S101
            assert view.prefill_tokens == sum(claim.prefill_tokens for claim in claims), view.info.worker_id  # noqa: S101
            assert view.kv_blocks == sum(claim.kv_blocks for claim in claims), view.info.worker_id  # noqa: S101
            assert view.foreign >= 0, view.info.worker_id  # noqa: S101
            assert view.depth == len(claims) + view.foreign, view.info.worker_id  # noqa: S101
            pool = self.pool(view.info.model, view.info.role)
            apart = view.draining or view.out
            assert apart == (view.place < 0), view.info.worker_id  # noqa: S101
            assert apart or pool.views[view.place] is view, view.info.worker_id  # noqa: S101


def _order(claim: Claim) -> int:
    return claim.order
