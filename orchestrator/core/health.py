"""Sick workers: taken out of their pool by evidence from their own requests, and let back in by trial.

Theory of operation
===================
Three things are evidence: requests that fail there, sessions that break, and steps (prompts, where only prompts are
computed) that take several times what its peers' take for the same work. Each is held against the rest of the pool, so
what all have in common (a request that breaks any engine, a network that is down) takes nobody out. What is compared is
time a step for the sequences in it, so neither long generations nor a full worker look slow.

    HEALTHY ──evidence──▶ OUT ──backoff──▶ TRIAL ──one request went well──▶ HEALTHY
       │                   ▲                 │
       ▼                   └── it did not, with twice the backoff
    SUSPECT: the same evidence, but as many are out as may be

A worker that is out gets no new request, and what runs there goes on. On trial it has one request at a time. Never more
than a share of a pool is out, and never the last one: where a pool shrinks, some are let back in at once.

Each gateway judges for itself. Counters are bumped at events; all else happens once a second for each worker, in ten
parts.
"""

from __future__ import annotations

from typing import Final

from orchestrator.core import messages as m
from orchestrator.core.candidates import listens, pairs, takes
from orchestrator.core.decision import Decision
from orchestrator.core.evidence import (
    LEAST_SEEN,
    LEAST_TOKENS,
    Evidence,
    Group,
    Record,
    State,
    pace,
    per_token,
    sick,
    slow,
)
from orchestrator.core.fleet import Fleet, WorkerView
from orchestrator.core.session import Session
from orchestrator.core.spec import HealthSpec, Role
from orchestrator.core.trials import alert, tried_with

PARTS: Final = 10  # ticks in which each worker is looked at once
FORGET_SECONDS: Final = 300.0  # of good health after which the backoff begins anew


class Health:
    """The health of one gateway's workers. What comes of it is appended to ``out``."""

    def __init__(self, spec: HealthSpec, fleet: Fleet) -> None:
        self._spec = spec
        self._fleet = fleet
        self._records: dict[str, Record] = {}
        self._groups: dict[tuple[str, Role], Group] = {}
        self._round: list[Record] = []
        self._part = 0
        self.tried: dict[str, Record] = {}  # by request
        self.wanted = 0  # workers on trial that have no request

    def of(self, worker_id: str) -> State:
        """Healthy where nothing is known."""
        record = self._records.get(worker_id)
        return record.state if record is not None else State.HEALTHY

    # ---- sessions

    def up(self, view: WorkerView, now: float, out: list[m.Command]) -> None:
        """A session with a worker was opened, and it is in its pool."""
        if not self._spec.enabled:
            return
        info = view.info
        group = self._groups.setdefault((info.model, info.role), Group(info.model, info.role))
        record = self._records.get(info.worker_id)
        if record is None or record.group is not group:
            record = self._records[info.worker_id] = Record(info.worker_id, group)
        record.view = view
        record.slow_since = -1.0
        group.members[info.worker_id] = record
        if record.apart:
            if group.out < group.most_out(self._spec.most_out):
                self._fleet.rest(view)
                group.out += 1
                self._waits(record, State.OUT)
                out.append(m.Sick(info.worker_id, group.model, group.role, record.why))
            else:
                self._back(record, State.SUSPECT, "as many are out as may be", now, out)
        else:
            self._judge(record, now, out)

    def down(self, worker_id: str, now: float, out: list[m.Command]) -> None:
        """A session broke, or the worker left; to be told before the fleet is."""
        record = self._records.get(worker_id)
        if record is None or record.view is None:
            return
        if not record.view.draining:
            record.broke += 1.0
            record.group.broke += 1.0
            if record.apart:
                self._again(record, now)
        self._leaves(record, now, out)

    def drains(self, worker_id: str, now: float, out: list[m.Command]) -> None:
        """It takes nothing new: it is nobody's to judge; to be told before the fleet is."""
        record = self._records.get(worker_id)
        if record is not None and record.view is not None:
            self._leaves(record, now, out)

    def _leaves(self, record: Record, now: float, out: list[m.Command]) -> None:
        group = record.group
        if record.apart:
            group.out -= 1
            self._waits(record, State.OUT)
        record.view = None
        del group.members[record.worker_id]
        self._let_in(group, now, out)

    # ---- evidence

    def worked(self, worker_id: str) -> None:
        """A half ended well there."""
        record = self._records.get(worker_id)
        if record is not None:
            record.good += 1.0
            record.row = 0
            record.group.good += 1.0

    def began(self, session: Session, now: float) -> None:
        """A request has got its first token."""
        record = self._records.get(session.decode_worker)
        if record is not None and record.view is not None:
            session.due_before = record.view.due_by(now)

    def decoded(self, session: Session, output_tokens: int, now: float, out: list[m.Command]) -> None:
        """A request has got all its tokens."""
        self.worked(session.decode_worker)
        began = session.first_token_at
        if output_tokens >= LEAST_TOKENS and began is not None and session.began is None:
            record = self._records.get(session.decode_worker)
            if record is not None and record.view is not None:
                per_token(record, record.view.due_by(now) - session.due_before, output_tokens - 1)
        if session.request_id in self.tried:
            self._finished(session, output_tokens, now, out)

    def failed(self, worker_id: str, now: float, out: list[m.Command]) -> None:
        """A half that ran there failed, by the engine's own account."""
        record = self._records.get(worker_id)
        if record is None:
            return
        record.bad += 1.0
        record.row += 1
        record.group.bad += 1.0
        if record.state is State.TRIAL:
            self._again(record, now)
        elif not record.apart and record.view is not None:
            self._judge(record, now, out)

    def _judge(self, record: Record, now: float, out: list[m.Command]) -> None:
        if found := sick(record, self._spec):
            self._take_out(record, *found, now, out)

    def tick(self, now: float, out: list[m.Command]) -> None:
        """A tenth of the workers are looked at; each is about once a second."""
        if self._part == 0:
            self._begin_round(out)
        size = -(-len(self._round) // PARTS)
        first = size * self._part
        for record in self._round[first : first + size]:
            record.faded()
            if (view := record.view) is not None:
                self._look(record, view, now, out)
        self._part = (self._part + 1) % PARTS

    def _begin_round(self, out: list[m.Command]) -> None:
        self._round.clear()
        for record in self._records.values():
            if record.view is None:
                record.faded()
        for group in self._groups.values():
            self._round += group.members.values()
            group.begin_round()
            if group.full is not group.alarmed:
                group.alarmed = group.full
                out.append(alert(group))
            group.full = False

    def _look(self, record: Record, view: WorkerView, now: float, out: list[m.Command]) -> None:
        if record.state is State.OUT:
            if record.until <= now:
                self._waits(record, State.TRIAL)
        elif record.state is State.TRIAL:
            if record.trial and record.evidence is Evidence.SLOW:
                self._tried_so_far(record, view, now, out)
        elif found := sick(record, self._spec) if record.bad or record.broke else None:
            self._take_out(record, *found, now, out)
        elif why := slow(record, view, self._spec, now):
            self._take_out(record, Evidence.SLOW, why, now, out)
        elif record.state is State.SUSPECT and record.slow_since < 0:
            record.state = State.HEALTHY

    # ---- out, on trial, and back

    def _take_out(self, record: Record, evidence: Evidence, why: str, now: float, out: list[m.Command]) -> None:
        group, view = record.group, record.view
        assert view is not None  # noqa: S101
        if group.out >= group.most_out(self._spec.most_out):
            record.state = State.SUSPECT
            group.full = True
            return
        spec = self._spec
        again = record.backoff > 0.0 and now - record.back_at < FORGET_SECONDS
        record.backoff = min(spec.backoff_max, 2.0 * record.backoff) if again else spec.backoff_initial
        record.until = now + record.backoff
        record.state, record.evidence, record.why = State.OUT, evidence, why
        group.out += 1
        self._fleet.rest(view)
        out.append(m.Sick(record.worker_id, group.model, group.role, why))

    def _again(self, record: Record, now: float) -> None:
        """It did no better: it stays out for twice as long."""
        self._waits(record, State.OUT)
        record.backoff = min(self._spec.backoff_max, 2.0 * record.backoff)
        record.until = now + record.backoff

    def _waits(self, record: Record, state: State) -> None:
        """Out of its pool, in this state and without a request."""
        if record.state is State.TRIAL and not record.trial:
            self.wanted -= 1
        if record.trial:
            del self.tried[record.trial]
            record.trial = ""
        record.state = state
        if state is State.TRIAL:
            self.wanted += 1

    def _back(self, record: Record, state: State, why: str, now: float, out: list[m.Command]) -> None:
        self._waits(record, State.OUT)
        record.state, record.back_at = state, now
        group = record.group
        if state is State.HEALTHY:
            record.forget()
        out.append(m.Sick(record.worker_id, group.model, group.role, why, over=True))

    def _return(self, record: Record, state: State, why: str, now: float, out: list[m.Command]) -> None:
        """Into its pool again."""
        if record.view is not None:
            record.view.cost.anew()  # what was learned of it is of when it was sick
            self._fleet.welcome(record.view)
            record.group.out -= 1
        self._back(record, state, why, now, out)

    def _let_in(self, group: Group, now: float, out: list[m.Command]) -> None:
        """The pool has shrunk: so many may not be out any more. Slow ones come first, they do serve."""
        while group.out > group.most_out(self._spec.most_out):
            sick = [record for record in group.members.values() if record.apart]
            least = min(sick, key=lambda record: (record.evidence is not Evidence.SLOW, record.broke + record.bad))
            self._return(least, State.SUSPECT, "too few others are left", now, out)

    # ---- trials

    def trial(self, session: Session, decision: Decision, now: float) -> Decision:
        """The same decision, or, where a worker waits for its trial and can take this request, one with that worker."""
        if session.attempts or session.turned_away:
            return decision  # it had its share of trouble
        for (model, role), group in self._groups.items():
            if model != session.model or not group.out or (role is Role.PREFILL and decision.prefill is None):
                continue
            partner = self._fleet.get(decision.decode if role is Role.PREFILL else decision.prefill or "")
            for record in group.members.values():
                view = record.view
                if record.state is not State.TRIAL or record.trial or view is None:
                    continue
                if partner is not None and not pairs(view, partner):
                    continue
                if listens(view, session.adapter, now) and takes(view, session.prompt_tokens, now):
                    record.trial = session.request_id
                    self.tried[session.request_id] = record
                    self.wanted -= 1
                    return tried_with(record, view, session, decision)
        return decision

    def prefilled(self, session: Session, now: float, out: list[m.Command]) -> None:
        """The prompt of a request that was in ``tried`` has been computed apart."""
        record = self.tried[session.request_id]
        if record.group.role is not Role.PREFILL:
            return
        slow = record.evidence is Evidence.SLOW and session.placed_at is not None
        if slow and now - (session.placed_at or 0.0) >= self._spec.slow * record.expected:
            self._again(record, now)
        else:
            self._return(record, State.HEALTHY, "a trial went well", now, out)

    def _finished(self, session: Session, output_tokens: int, now: float, out: list[m.Command]) -> None:
        """A trial has ended well; one that was too short for what it had to show shows nothing."""
        record = self.tried[session.request_id]
        view, began = record.view, session.first_token_at
        if record.group.role is Role.PREFILL or view is None:
            return
        if record.evidence is Evidence.SLOW:
            if output_tokens < LEAST_TOKENS or began is None:
                self.untried(session.request_id)
                return
            usual = view.cost.peers.step.at(max(1, view.running)) * (record.group.tempo or 1.0)
            if (now - began) / (output_tokens - 1) >= self._spec.slow * usual:
                self._again(record, now)
                return
        self._return(record, State.HEALTHY, "a trial went well", now, out)

    def _tried_so_far(self, record: Record, view: WorkerView, now: float, out: list[m.Command]) -> None:
        """A trial that takes long has shown enough before its end."""
        own = pace(view)
        if own.seen < LEAST_SEEN or not record.group.pace:
            return
        if own.factor >= self._spec.slow * record.group.pace:
            self._again(record, now)
        else:
            self._return(record, State.HEALTHY, "its steps are as quick as its peers'", now, out)

    def untried(self, request_id: str) -> None:
        """A request ended without showing anything; safe to say of any."""
        record = self.tried.get(request_id)
        if record is not None:
            self._waits(record, State.TRIAL)

    def check(self) -> None:
        """Raises AssertionError where the books don't balance or a bound is broken; for tests."""
        for group in self._groups.values():
            members = group.members.values()
            assert group.out == sum(record.apart for record in members), group.model  # noqa: S101
            assert group.out <= group.most_out(self._spec.most_out), group.model  # noqa: S101
            for record in members:
                assert record.view is not None, record.worker_id  # noqa: S101
                assert record.view.out is record.apart, record.worker_id  # noqa: S101
        waiting = [r for r in self._records.values() if r.state is State.TRIAL and not r.trial]
        assert self.wanted == len(waiting)  # noqa: S101
        assert all(self.tried[r.trial] is r for r in self._records.values() if r.trial)  # noqa: S101
