"""Where a request's two halves go: the decode worker first, then whether a prefill worker computes its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core import policies
from orchestrator.core.candidates import LEASE_SECONDS, SECOND_LOOK, cached_tokens, computes, sample, seated, silent
from orchestrator.core.decision import CachedBy, Choice, Decision, Rule, Wait
from orchestrator.core.fleet import Fleet, Pool, WorkerView
from orchestrator.core.policies import Ask
from orchestrator.core.prefix import NO_MATCHES
from orchestrator.core.session import Session
from orchestrator.core.spec import PrefillPlace, Role, RoutingSpec

if TYPE_CHECKING:
    from random import Random

__all__ = ["LEASE_SECONDS", "Router", "release_through"]

RELEASE_SAMPLE = 8
INTERFERENCE = 0.1  # a second that a decoding sequence is held up, in seconds of the new request's own wait


@dataclass(slots=True)
class _Pick:
    """A worker, chosen for one half, with what its choice was made of."""

    view: WorkerView
    score: float
    cached: int
    candidates: int
    eligible: int

    def choice(self, session: Session, *, computes: bool) -> Choice:
        view = self.view
        uncached = session.prompt_tokens - self.cached if computes else 0
        return Choice(
            view.info.worker_id,
            self.score,
            self.candidates,
            self.eligible,
            view.depth,
            self.cached,
            _known_by(view, session),
            view.wait_seconds if computes else 0.0,
            view.cost.prefill_seconds(uncached, self.cached) if uncached else 0.0,
        )


def _known_by(view: WorkerView, session: Session) -> CachedBy:
    if not session.blocks:
        return CachedBy.UNKNOWN
    facts = view.info.facts
    return CachedBy.EVENTS if facts is not None and facts.kv_events else CachedBy.ROUTED


class Router:
    """Decides for one model. It changes nothing in the fleet: who carries a decision out makes the claims."""

    def __init__(self, spec: RoutingSpec) -> None:
        self._name = spec.policy
        self._place = spec.prefill
        self._policies = {role: policies.build(spec.policy, spec.parameters) for role in Role}

    def decide(self, session: Session, fleet: Fleet, rng: Random, now: float) -> Decision | Wait:
        """Where the request goes now, or why it has to wait."""
        matches = fleet.index(session.model).match(session.blocks) if session.blocks else NO_MATCHES
        serve = fleet.pool(session.model, Role.SERVE)
        if serve.views:
            picked = self._pick(serve, Ask(session, Role.SERVE, False, matches, rng, now))
            return picked if isinstance(picked, Wait) else self._together(picked, session, Rule.ONE_POOL)
        decode = fleet.pool(session.model, Role.DECODE)
        prefill = fleet.pool(session.model, Role.PREFILL)
        alone = self._alone(session, prefill)
        picked = self._pick(decode, Ask(session, Role.DECODE, alone is None, matches, rng, now))
        if isinstance(picked, Wait):
            return picked
        if alone is not None:
            return self._together(picked, session, alone)
        apart = self._pick(prefill, Ask(session, Role.PREFILL, False, matches, rng, now))
        return self._apart_or_in_place(picked, apart, session)

    def hand_over(self, session: Session, fleet: Fleet, rng: Random, now: float) -> Decision | Wait:
        """Another decode worker for a prompt that ``session.prefill_worker`` has computed."""
        matches = fleet.index(session.model).match(session.blocks) if session.blocks else NO_MATCHES
        pool = fleet.pool(session.model, Role.DECODE)
        picked = self._pick(pool, Ask(session, Role.DECODE, True, matches, rng, now))
        if isinstance(picked, Wait):
            return picked
        choice = picked.choice(session, computes=False)
        return Decision(choice.worker_id, session.prefill_worker, Rule.RESERVED_LOST, self._name, choice)

    def _alone(self, session: Session, prefill: Pool) -> Rule | None:
        """Why the decode worker has to compute the prompt itself; None if it may be computed apart."""
        if session.local_only:
            return Rule.LOCAL_ONLY
        if session.last_attempt:
            return Rule.LAST_ATTEMPT
        if self._place is PrefillPlace.IN_PLACE:
            return Rule.CONFIGURED_IN_PLACE
        return None if prefill.views else Rule.NO_PREFILL_WORKER

    def _pick(self, pool: Pool, ask: Ask) -> _Pick | Wait:
        if not pool.views:
            return Wait.NO_WORKER
        policy = self._policies[ask.role]
        views = policy.narrow(pool, ask)
        found = self._open(views, ask)
        if isinstance(found, Wait) and len(views) < len(pool.views):
            found = self._open(sample(pool.views, SECOND_LOOK, ask.rng), ask)
        if isinstance(found, Wait):
            return found
        views, cached = found
        scores = policy.score(views, cached, ask)
        best = max(scores)
        place = scores.index(best)
        if scores.count(best) > 1:
            place = ask.rng.choice([i for i, score in enumerate(scores) if score == best])
        return _Pick(views[place], best, cached[place], len(views), len(pool.views))

    def _open(self, views: Sequence[WorkerView], ask: Ask) -> tuple[Sequence[WorkerView], Sequence[int]] | Wait:
        """Those of the candidates that could take the request now, and how much of it each has cached."""
        cached = cached_tokens(views, ask.session, ask.matches)
        prompt, adapter, now = ask.session.prompt_tokens, ask.session.adapter, ask.now
        taking, held = [], []
        wait = Wait.NO_WORKER
        for view, tokens in zip(views, cached, strict=True):
            if silent(view, now) or (adapter and view.adapters is not None and adapter not in view.adapters):
                continue
            wait = Wait.FULL
            if view.busy_until <= now and seated(view, prompt) and (ask.fetches or computes(view, tokens)):
                taking.append(view)
                held.append(tokens)
        return (taking, held) if taking else wait

    def _together(self, picked: _Pick, session: Session, rule: Rule) -> Decision:
        choice = picked.choice(session, computes=True)
        return Decision(choice.worker_id, None, rule, self._name, choice)

    def _apart_or_in_place(self, decode: _Pick, prefill: _Pick | Wait, session: Session) -> Decision | Wait:
        forced = self._place is PrefillPlace.APART
        if isinstance(prefill, Wait):
            if forced and prefill is Wait.FULL:
                return prefill
            room = computes(decode.view, decode.cached)
            rule = Rule.NO_PREFILL_WORKER if prefill is Wait.NO_WORKER else Rule.CHEAPER_IN_PLACE
            return self._together(decode, session, rule) if room else Wait.FULL
        here, there = decode.choice(session, computes=True), prefill.choice(session, computes=True)
        in_place = here.wait_seconds + here.work_seconds
        fetched = decode.view.cost.transfer_seconds(session.prompt_tokens - decode.cached)
        apart = there.wait_seconds + there.work_seconds + fetched
        held_up = INTERFERENCE * here.work_seconds * (1 + decode.view.depth)
        if not forced and in_place + held_up < apart and computes(decode.view, decode.cached):
            return Decision(here.worker_id, None, Rule.CHEAPER_IN_PLACE, self._name, here, None, apart, in_place)
        rule = Rule.CONFIGURED_APART if forced else Rule.CHEAPER_APART
        on_decode = decode.choice(session, computes=False)
        return Decision(here.worker_id, there.worker_id, rule, self._name, on_decode, there, apart, in_place)


def release_through(model: str, fleet: Fleet, rng: Random) -> str | None:
    """A decode worker to release a prefill's blocks through: the least loaded of a few; None if there is none."""
    some = sample(fleet.pool(model, Role.DECODE).views, RELEASE_SAMPLE, rng)
    return min(some, key=lambda view: (view.depth, view.kv_usage)).info.worker_id if some else None
