"""Where a request's two halves go: the decode worker first, then whether a prefill worker computes its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core import policies
from orchestrator.core.candidates import (
    SECOND_LOOK,
    cached_tokens,
    computes,
    in_place_weight,
    listens,
    pairs,
    sample,
    takes,
)
from orchestrator.core.decision import CachedBy, Choice, Decision, Rule, Wait
from orchestrator.core.fleet import Fleet, Pool, WorkerView
from orchestrator.core.matches import NO_MATCHES
from orchestrator.core.policies import Ask
from orchestrator.core.session import Session
from orchestrator.core.spec import PrefillPlace, Role, RoutingSpec
from orchestrator.core.values import mypyc_attr

if TYPE_CHECKING:
    from random import Random

RELEASE_SAMPLE = 8
IN_PLACE = {Wait.NO_WORKER: Rule.NO_PREFILL_WORKER, Wait.FULL: Rule.PREFILL_FULL}  # what else remains


@mypyc_attr(free_list_len=1)
@dataclass(slots=True)
class _Pick:
    """A worker, chosen for one half, with what its choice was made of."""

    view: WorkerView
    score: float
    cached: int
    candidates: int
    eligible: int
    out: int = 0

    def choice(self, session: Session, wait: float, work: float) -> Choice:
        view = self.view
        known = _known_by(view, session)
        return Choice(
            view.info.worker_id,
            self.score,
            self.candidates,
            self.eligible,
            view.depth,
            self.cached,
            known,
            wait,
            work,
            self.out,
        )

    def work(self, session: Session) -> float:
        """Seconds to compute the prompt here."""
        return self.view.cost.prefill_seconds(session.prompt_tokens - self.cached, self.cached)


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
            picked = self._pick(serve, Ask(session, Role.SERVE, None, matches, rng, now))
            return picked if isinstance(picked, Wait) else self._together(picked, session, Rule.ONE_POOL)
        there: _Pick | Wait | Rule = self._alone(session) or self._pick(
            fleet.pool(session.model, Role.PREFILL), Ask(session, Role.PREFILL, None, matches, rng, now)
        )
        if there is Wait.FULL and self._place is PrefillPlace.APART:
            return there
        ahead = there.view.wait_seconds + there.work(session) if isinstance(there, _Pick) else None
        decode = fleet.pool(session.model, Role.DECODE)
        here = self._pick(decode, Ask(session, Role.DECODE, ahead, matches, rng, now))
        if isinstance(here, Wait):
            return here
        if isinstance(there, _Pick) and not pairs(here.view, there.view):  # as while one pool is upgraded
            there = self._partner(here, fleet, Ask(session, Role.PREFILL, None, matches, rng, now))
        if isinstance(there, _Pick):
            return self._apart_or_in_place(here, there, session)
        if there is Rule.NO_PARTNER and not computes(here.view, here.cached):
            return Wait.FULL
        return self._together(here, session, IN_PLACE[there] if isinstance(there, Wait) else there)

    def hand_over(self, session: Session, fleet: Fleet, rng: Random, now: float) -> Decision | Wait:
        """Another decode worker for a prompt that ``session.prefill_worker`` has computed."""
        matches = fleet.index(session.model).match(session.blocks) if session.blocks else NO_MATCHES
        pool = fleet.pool(session.model, Role.DECODE)
        ask, prefill = Ask(session, Role.DECODE, 0.0, matches, rng, now), fleet.get(session.prefill_worker)
        fit = pool.views if prefill is None else [view for view in pool.views if pairs(view, prefill)]
        if len(fit) == len(pool.views):
            picked = self._pick(pool, ask)
        else:
            picked = self._best(fit, len(fit), ask) if fit else Wait.NO_WORKER
        if isinstance(picked, Wait):
            return picked
        choice = picked.choice(session, 0.0, 0.0)
        return Decision(choice.worker_id, session.prefill_worker, Rule.RESERVED_LOST, self._name, choice)

    def _alone(self, session: Session) -> Rule | None:
        """Why the decode worker has to compute the prompt itself; None if it may be computed apart."""
        if session.local_only:
            return Rule.LOCAL_ONLY
        if session.last_attempt:
            return Rule.LAST_ATTEMPT
        return Rule.CONFIGURED_IN_PLACE if self._place is PrefillPlace.IN_PLACE else None

    def _partner(self, here: _Pick, fleet: Fleet, ask: Ask) -> _Pick | Rule:
        """The best prefill worker of those that can hand KV over to the decode worker."""
        views = [view for view in fleet.pool(ask.session.model, Role.PREFILL).views if pairs(here.view, view)]
        found = self._best(views, len(views), ask) if views else Wait.NO_WORKER
        return Rule.NO_PARTNER if isinstance(found, Wait) else found

    def _pick(self, pool: Pool, ask: Ask) -> _Pick | Wait:
        if not pool.views:
            return Wait.NO_WORKER
        views = self._policies[ask.role].narrow(pool, ask)
        found = self._best(views, len(pool.views), ask)
        if isinstance(found, Wait) and len(views) < len(pool.views):
            found = self._best(sample(pool.views, SECOND_LOOK, ask.rng), len(pool.views), ask)
        if pool.out and isinstance(found, _Pick):
            found.out = pool.out
        return found

    def _best(self, views: Sequence[WorkerView], eligible: int, ask: Ask) -> _Pick | Wait:
        """The best of the candidates that take the request now. Most do, so they are asked in order of their score."""
        policy, session, now = self._policies[ask.role], ask.session, ask.now
        cached = cached_tokens(views, session, ask.matches)
        scores = policy.score(views, cached, ask)
        tried = [False] * len(views)
        wait = Wait.NO_WORKER
        while (place := _highest(scores, tried, ask.rng)) >= 0:
            view = views[place]
            if listens(view, session.adapter, now):
                if takes(view, session.prompt_tokens, now) and (ask.ahead is not None or computes(view, cached[place])):
                    policy.chosen(view)
                    return _Pick(view, scores[place], cached[place], len(views), eligible)
                wait = Wait.FULL
            tried[place] = True
        return wait

    def _together(self, picked: _Pick, session: Session, rule: Rule) -> Decision:
        choice = picked.choice(session, picked.view.wait_seconds, picked.work(session))
        return Decision(choice.worker_id, None, rule, self._name, choice)

    def _apart_or_in_place(self, here: _Pick, there: _Pick, session: Session) -> Decision:
        forced = self._place is PrefillPlace.APART
        work_here, work_there = here.work(session), there.work(session)
        wait_here, wait_there = here.view.wait_seconds, there.view.wait_seconds
        fetch = here.view.cost.transfer_seconds(session.prompt_tokens - here.cached)
        in_place, apart = wait_here + work_here, wait_there + work_there + fetch
        weighed = wait_here + in_place_weight(here.view) * work_here
        if not forced and weighed < apart and computes(here.view, here.cached):
            choice = here.choice(session, wait_here, work_here)
            return Decision(choice.worker_id, None, Rule.CHEAPER_IN_PLACE, self._name, choice, None, apart, in_place)
        rule = Rule.CONFIGURED_APART if forced else Rule.CHEAPER_APART if apart <= in_place else Rule.SPARES_DECODE
        on_decode, on_prefill = here.choice(session, 0.0, 0.0), there.choice(session, wait_there, work_there)
        decode, prefill = on_decode.worker_id, on_prefill.worker_id
        return Decision(decode, prefill, rule, self._name, on_decode, on_prefill, apart, in_place)


def _highest(scores: list[float], tried: list[bool], rng: Random) -> int:
    """The place of the best score that was not tried yet, one of equals at random; -1 if all were."""
    best, found, equals = -1.0, -1, 0
    for place, score in enumerate(scores):
        if tried[place] or score < best:
            continue
        if score > best:
            best, found, equals = score, place, 1
        else:
            equals += 1
    if equals > 1:
        return rng.choice([place for place, score in enumerate(scores) if score == best and not tried[place]])
    return found


def release_through(model: str, prefill_worker: str, fleet: Fleet, rng: Random) -> str | None:
    """A decode worker to release a prefill's blocks through: the least loaded of a few; None if there is none."""
    some = sample(fleet.pool(model, Role.DECODE).views, RELEASE_SAMPLE, rng)
    prefill = fleet.get(prefill_worker)
    if prefill is not None:
        some = [view for view in some if pairs(view, prefill)]
    return min(some, key=lambda view: (view.depth, view.kv_usage)).info.worker_id if some else None
