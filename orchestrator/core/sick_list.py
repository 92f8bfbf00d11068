"""Who of a pool is out, on trial and back again: the books of it, never with more out than may be.

    HEALTHY ──evidence──▶ OUT ──backoff──▶ TRIAL ──one request went well──▶ HEALTHY
       │                   ▲                 │
       ▼                   └── it did not, with twice the backoff
    SUSPECT: the same evidence, but as many are out as may be

A worker that is out gets no new request, and what runs there goes on. On trial it has one request at a time. Never more
than a share of a pool is out, and never the last one: where a pool shrinks, some are let back in at once. What speaks
for and against a worker is ``health``'s to say.
"""

from __future__ import annotations

from typing import Final

from orchestrator.core import messages as m
from orchestrator.core.candidates import listens, pairs, takes
from orchestrator.core.decision import Decision
from orchestrator.core.evidence import Evidence, Group, Record, State
from orchestrator.core.fleet import Fleet, WorkerView
from orchestrator.core.session import Session
from orchestrator.core.spec import HealthSpec, Role
from orchestrator.core.trials import tried_with

FORGET_SECONDS: Final = 300.0  # of good health, or of absence, after which nothing is held against a worker any more


class SickList:
    """Of one gateway's workers. What comes of it is appended to ``out``."""

    def __init__(self, spec: HealthSpec, fleet: Fleet) -> None:
        self._spec = spec
        self._fleet = fleet
        self.groups: dict[tuple[str, Role], Group] = {}
        self.tried: dict[str, Record] = {}  # by request
        self.wanted = 0  # workers on trial that have no request

    # ---- who is in a group

    def joins(self, record: Record, view: WorkerView, now: float, out: list[m.Command]) -> None:
        """A worker has come to its group. One that was out when it left is out again, if so many may be."""
        group = record.group
        record.view = view
        group.members[record.worker_id] = record
        if not record.apart:
            return
        if group.out < group.most_out(self._spec.most_out):
            self._fleet.rest(view)
            group.out += 1
            out.append(m.Sick(record.worker_id, group.model, group.role, record.why))
        else:
            self._ends(record, State.SUSPECT, "as many are out as may be", now, out)

    def leaves(self, record: Record, now: float, out: list[m.Command]) -> None:
        """It is in nobody's way any more; what is held against it stays so. The fleet has yet to be told."""
        group = record.group
        if record.apart:
            group.out -= 1
            self._waits(record, State.OUT)
        record.view = None
        record.left_at = now
        del group.members[record.worker_id]
        self._let_in(group, now, out)

    def forgotten(self, record: Record, now: float) -> bool:
        """Whether a worker that left has been away for so long that it would begin anew."""
        return now - max(record.left_at, record.until) >= FORGET_SECONDS

    # ---- out, on trial, and back

    def take_out(self, record: Record, evidence: Evidence, why: str, now: float, out: list[m.Command]) -> None:
        """Of its pool, or it is suspect where as many are out as may be."""
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

    def stays_out(self, record: Record, now: float) -> None:
        """It did no better: twice as long as before."""
        self._waits(record, State.OUT)
        record.backoff = min(self._spec.backoff_max, 2.0 * record.backoff)
        record.until = now + record.backoff

    def may_be_tried(self, record: Record, now: float) -> None:
        """One that is out is on trial once its time is over."""
        if record.until <= now:
            self._waits(record, State.TRIAL)

    def is_well(self, record: Record, why: str, now: float, out: list[m.Command]) -> None:
        """Into its pool again, with nothing held against it."""
        self._returns(record, State.HEALTHY, why, now, out)

    def _returns(self, record: Record, state: State, why: str, now: float, out: list[m.Command]) -> None:
        view = record.view
        assert view is not None  # noqa: S101
        view.cost.anew()  # what was learned of it is of when it was sick
        self._fleet.welcome(view)
        record.group.out -= 1
        self._ends(record, state, why, now, out)

    def _ends(self, record: Record, state: State, why: str, now: float, out: list[m.Command]) -> None:
        self._waits(record, State.OUT)
        record.state, record.back_at = state, now
        group = record.group
        if state is State.HEALTHY:
            record.forget()
        out.append(m.Sick(record.worker_id, group.model, group.role, why, over=True))

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

    def _let_in(self, group: Group, now: float, out: list[m.Command]) -> None:
        """The pool has shrunk: so many may not be out any more. Slow ones come first, they do serve."""
        while group.out > group.most_out(self._spec.most_out):
            sick = [record for record in group.members.values() if record.apart]
            least = min(sick, key=lambda record: (record.evidence is not Evidence.SLOW, record.broke + record.bad))
            self._returns(least, State.SUSPECT, "too few others are left", now, out)

    # ---- the request of a trial

    def trial(self, session: Session, decision: Decision, now: float) -> Decision:
        """The same decision, or, where a worker waits for its trial and can take this request, one with that worker."""
        if session.attempts or session.turned_away:
            return decision  # it had its share of trouble
        for (model, role), group in self.groups.items():
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
                    record.trial, record.began_at = session.request_id, -1.0
                    self.tried[session.request_id] = record
                    self.wanted -= 1
                    return tried_with(record, view, session, decision)
        return decision

    def untried(self, request_id: str) -> None:
        """A request ended without showing anything; safe to say of any."""
        record = self.tried.get(request_id)
        if record is not None:
            self._waits(record, State.TRIAL)

    def check(self) -> None:
        """Raises AssertionError where the books don't balance or a bound is broken; for tests."""
        present: list[Record] = []
        for group in self.groups.values():
            members = group.members.values()
            assert group.out == sum(record.apart for record in members), group.model  # noqa: S101
            assert group.out <= group.most_out(self._spec.most_out), group.model  # noqa: S101
            for record in members:
                assert record.view is not None, record.worker_id  # noqa: S101
                assert record.view.out is record.apart, record.worker_id  # noqa: S101
                assert record.state is State.TRIAL or not record.trial, record.worker_id  # noqa: S101
            present += members
        assert self.wanted == sum(r.state is State.TRIAL and not r.trial for r in present)  # noqa: S101
        assert self.tried == {r.trial: r for r in present if r.trial}  # noqa: S101
