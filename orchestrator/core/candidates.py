"""Which of a pool's workers are looked at for a request, and which of these could take it.

The cost of a decision must hardly grow with the fleet, so of a large pool a few are looked at: those whose prefix cache
has most of the prompt, and a random sample of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.core.fleet import Pool, WorkerView
from orchestrator.core.matches import Matches
from orchestrator.core.session import Session
from orchestrator.core.slot_sets import top

if TYPE_CHECKING:
    from random import Random

SMALL_POOL = 16  # workers; up to here all are looked at
MOST_HOLDERS = 4  # of a large pool, with the longest matches
SAMPLE = 4  # others
SECOND_LOOK = 64  # workers that are looked at where none of the first few takes the request

LEASE_SECONDS = 3.0  # a worker speaks every second
SEATS = 1.25  # of max_num_seqs: what may wait in the engine, so that it never waits for the gateway
KV_FULL = 0.95
BACKLOG_SECONDS = 0.5  # of prompts to compute: the rest waits in the gateway, where turns are fair
BACKLOG_TOKENS = 2048  # and at least a batch of them
INTERFERENCE = 0.1  # a second for which a sequence's decoding is held up, in seconds of a request's own wait


def bounded(pool: Pool, matches: Matches, rng: Random, extra: Sequence[WorkerView] = ()) -> Sequence[WorkerView]:
    """All of a small pool. Of a large one: ``extra``, holders of the longest matches, and a sample."""
    views = pool.views
    if len(views) <= SMALL_POOL:
        return views
    chosen = list(extra)
    taken = {view.slot for view in extra} if extra else set()
    if matches:
        start = int(rng.random() * top(pool.slots))  # among many equals it is not always the first
        for slot in matches.holders(pool.slots, MOST_HOLDERS, start):
            holder = pool.by_slot[slot]
            if holder is not None and slot not in taken:
                taken.add(slot)
                chosen.append(holder)
    chosen += [view for view in sample(views, SAMPLE, rng) if view.slot not in taken]
    return chosen


def sample(views: list[WorkerView], count: int, rng: Random) -> list[WorkerView]:
    """Up to ``count`` different views, drawn at random; all of them if there are no more."""
    size, chance = len(views), rng.random
    if size <= count:
        return views
    return [views[place] for place in {int(chance() * size) for _ in range(count)}]


def cached_tokens(views: Sequence[WorkerView], session: Session, matches: Matches) -> list[int]:
    """Prompt tokens that each view has in its prefix cache. The last token is always computed, to get logits."""
    facts = views[0].info.facts
    if not matches or facts is None:
        return [0] * len(views)
    size = facts.block_size
    most = max(0, session.prompt_tokens - 1) // size
    return [size * min(matches.blocks(view.slot), most) for view in views]


def listens(view: WorkerView, adapter: str, now: float) -> bool:
    """Its lease has not run out, and it has the adapter, as far as is known."""
    return now - view.heard_at <= LEASE_SECONDS and (not adapter or view.adapters is None or adapter in view.adapters)


def takes(view: WorkerView, prompt_tokens: int, now: float) -> bool:
    """Whether it has a seat and KV blocks for one more sequence. One that has nothing to do always does."""
    if view.busy_until > now:
        return False
    depth, facts = view.depth, view.info.facts
    if not depth or facts is None:
        return True
    if depth >= facts.max_num_seqs * SEATS:
        return False
    total = view.kv_blocks_total or facts.kv_blocks_total
    used = view.kv_blocks_used if view.kv_blocks_used > view.kv_blocks else view.kv_blocks
    return not total or used + prompt_tokens / facts.block_size <= KV_FULL * total


def computes(view: WorkerView, cached: int) -> bool:
    """Whether its backlog of prompts is short enough. Where its cache saves work, it may be as much longer."""
    tokens = view.prefill_tokens
    if tokens <= BACKLOG_TOKENS:
        return True
    return view.wait_seconds <= BACKLOG_SECONDS + (view.cost.prefill_seconds(cached) if cached else 0.0)


def pairs(one: WorkerView, other: WorkerView) -> bool:
    """Whether KV can be handed over between them, as far as is known."""
    a, b = one.info.facts, other.info.facts
    return a is None or b is None or a.kv_format == b.kv_format


def in_place_weight(view: WorkerView) -> float:
    """How much a second counts that a prompt is computed there: it holds up those that decode, and one that may come
    meanwhile."""
    return 1.0 + INTERFERENCE * (1 + view.depth)
