"""Where a request's two halves go. First form: the least loaded worker of each pool, ties broken by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.core.fleet import Fleet, WorkerView
from orchestrator.core.messages import Decision
from orchestrator.core.session import Session
from orchestrator.core.spec import Role

if TYPE_CHECKING:
    from random import Random


def least_loaded(candidates: Sequence[WorkerView], rng: Random) -> WorkerView:
    """The candidate with the fewest requests, then the emptiest KV cache. ``candidates`` must not be empty."""
    best = min((view.depth, view.load.kv_usage) for view in candidates)
    return rng.choice([view for view in candidates if (view.depth, view.load.kv_usage) == best])


def decide(session: Session, fleet: Fleet, rng: Random) -> Decision | None:
    """The decode worker is chosen first; prefill runs apart wherever the model has a prefill pool that takes requests.

    Returns None while no worker can decode.
    """
    decoders = fleet.open(session.model, Role.DECODE, Role.SERVE)
    if not decoders:
        return None
    decode = least_loaded(decoders, rng)
    reasons = [_why("decode", decode, decoders)]
    if decode.info.role is Role.SERVE:
        return Decision(decode.info.worker_id, None, (*reasons, "one pool serves both halves"))
    if session.local_only:
        return Decision(
            decode.info.worker_id, None, (*reasons, "the request needs its prompt computed where it decodes")
        )
    prefillers = fleet.open(session.model, Role.PREFILL)
    if not prefillers:
        return Decision(decode.info.worker_id, None, (*reasons, "no prefill worker takes requests"))
    prefill = least_loaded(prefillers, rng)
    return Decision(decode.info.worker_id, prefill.info.worker_id, (*reasons, _why("prefill", prefill, prefillers)))


def _why(half: str, chosen: WorkerView, candidates: Sequence[WorkerView]) -> str:
    return f"{half} on {chosen.info.worker_id}: least loaded of {len(candidates)} ({chosen.depth} requests)"
