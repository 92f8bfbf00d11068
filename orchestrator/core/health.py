"""Sick workers: taken out of their pool by evidence from their own requests, and let back in by trial.

Theory of operation
===================
Three things are evidence: requests that fail there, sessions that break, and steps (prompts, where only prompts are
computed) that take several times what its peers' take for the same work. Each is held against the rest of the pool, so
what all have in common (a request that breaks any engine, a network that is down) takes nobody out. What is compared is
time a step for the sequences in it, so neither long generations nor a full worker look slow.

What becomes of a worker that something speaks against is in ``sick_list``. Each gateway judges for itself. Counters are
bumped at events; all else happens once a second for each worker, in ten parts.
"""

from __future__ import annotations

from typing import Final

from orchestrator.core import messages as m
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
from orchestrator.core.sick_list import SickList
from orchestrator.core.spec import HealthSpec, Role
from orchestrator.core.trials import alert

PARTS: Final = 10  # ticks in which each worker is looked at once
LASTS_SECONDS: Final = 5.0  # of tokens, that show that a worker neither fails nor breaks


class Health:
    """The health of one gateway's workers. What comes of it is appended to ``out``."""

    def __init__(self, spec: HealthSpec, fleet: Fleet) -> None:
        self.sick_list = SickList(spec, fleet)
        self._spec = spec
        self._records: dict[str, Record] = {}
        self._away: dict[str, Record] = {}  # of those, without a session that something could be seen in
        self._round: list[Record] = []
        self._part = 0

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
        group = self.sick_list.groups.setdefault((info.model, info.role), Group(info.model, info.role))
        record = self._records.get(info.worker_id)
        if record is None or record.group is not group:
            record = self._records[info.worker_id] = Record(info.worker_id, group)
        self._away.pop(info.worker_id, None)
        record.slow_since = -1.0
        known = record.apart
        self.sick_list.joins(record, view, now, out)
        if not known:
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
                self.sick_list.stays_out(record, now)
        self._leaves(record, now, out)

    def drains(self, worker_id: str, now: float, out: list[m.Command]) -> None:
        """It takes nothing new: it is nobody's to judge; to be told before the fleet is."""
        record = self._records.get(worker_id)
        if record is not None and record.view is not None:
            self._leaves(record, now, out)

    def _leaves(self, record: Record, now: float, out: list[m.Command]) -> None:
        self.sick_list.leaves(record, now, out)
        self._away[record.worker_id] = record

    # ---- evidence

    def worked(self, worker_id: str) -> Record | None:
        """A half ended well there; returns what is known of it."""
        record = self._records.get(worker_id)
        if record is not None:
            record.good += 1.0
            record.row = 0
            record.group.good += 1.0
        return record

    def began(self, session: Session, now: float) -> None:
        """A request has got its first token."""
        record = self._records.get(session.decode_worker)
        if record is not None and record.view is not None:
            session.due_before = record.view.due_by(now)
            if self.sick_list.tried and record.trial == session.request_id:
                record.began_at = now

    def decoded(self, session: Session, output_tokens: int, now: float, out: list[m.Command]) -> None:
        """A request has got all its tokens."""
        record = self.worked(session.decode_worker)
        began = session.first_token_at
        tells = output_tokens >= LEAST_TOKENS and began is not None and session.began is None
        if tells and record is not None and record.view is not None:
            per_token(record, record.view.due_by(now) - session.due_before, output_tokens - 1)
        if session.request_id in self.sick_list.tried:
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
            self.sick_list.stays_out(record, now)
        elif not record.apart and record.view is not None:
            self._judge(record, now, out)

    def _judge(self, record: Record, now: float, out: list[m.Command]) -> None:
        if found := sick(record, self._spec):
            self.sick_list.take_out(record, *found, now, out)

    def tick(self, now: float, out: list[m.Command]) -> None:
        """A tenth of the workers are looked at; each is about once a second."""
        if self._part == 0:
            self._begin_round(now, out)
        size = -(-len(self._round) // PARTS)
        first = size * self._part
        for record in self._round[first : first + size]:
            record.faded()
            if (view := record.view) is not None:
                self._look(record, view, now, out)
        self._part = (self._part + 1) % PARTS

    def _begin_round(self, now: float, out: list[m.Command]) -> None:
        self._round.clear()
        for record in list(self._away.values()):
            record.faded()
            if self.sick_list.forgotten(record, now):
                del self._away[record.worker_id], self._records[record.worker_id]
        for group in self.sick_list.groups.values():
            self._round += group.members.values()
            group.begin_round()
            if group.full is not group.alarmed:
                group.alarmed = group.full
                out.append(alert(group))
            group.full = False

    def _look(self, record: Record, view: WorkerView, now: float, out: list[m.Command]) -> None:
        if record.state is State.OUT:
            self.sick_list.may_be_tried(record, now)
        elif record.state is State.TRIAL:
            if record.trial:
                self._tried_so_far(record, view, now, out)
        elif found := sick(record, self._spec) if record.bad or record.broke else None:
            self.sick_list.take_out(record, *found, now, out)
        elif why := slow(record, view, self._spec, now):
            self.sick_list.take_out(record, Evidence.SLOW, why, now, out)
        elif record.state is State.SUSPECT and record.slow_since < 0:
            record.state = State.HEALTHY

    # ---- how trials went

    def prefilled(self, session: Session, now: float, out: list[m.Command]) -> None:
        """The prompt of a request that was in ``tried`` has been computed apart."""
        record = self.sick_list.tried[session.request_id]
        if record.group.role is not Role.PREFILL:
            return
        slow = record.evidence is Evidence.SLOW and session.placed_at is not None
        if slow and now - (session.placed_at or 0.0) >= self._spec.slow * record.expected:
            self.sick_list.stays_out(record, now)
        else:
            self.sick_list.is_well(record, "a trial went well", now, out)

    def _finished(self, session: Session, output_tokens: int, now: float, out: list[m.Command]) -> None:
        """A trial has ended well; one that was too short for what it had to show shows nothing."""
        record = self.sick_list.tried[session.request_id]
        view, began = record.view, session.first_token_at
        if record.group.role is Role.PREFILL or view is None:
            return
        if record.evidence is Evidence.SLOW:
            if output_tokens < LEAST_TOKENS or began is None:
                self.sick_list.untried(session.request_id)
                return
            usual = view.cost.peers.step.at(max(1, view.running)) * (record.group.tempo or 1.0)
            if (now - began) / (output_tokens - 1) >= self._spec.slow * usual:
                self.sick_list.stays_out(record, now)
                return
        self.sick_list.is_well(record, "a trial went well", now, out)

    def _tried_so_far(self, record: Record, view: WorkerView, now: float, out: list[m.Command]) -> None:
        """A trial that takes long has shown enough before its end."""
        if record.evidence is not Evidence.SLOW:
            if 0.0 <= record.began_at <= view.stepped_at - LASTS_SECONDS:
                self.sick_list.is_well(record, f"tokens came for {LASTS_SECONDS:g} s", now, out)
            return
        own = pace(view)
        if own.seen < LEAST_SEEN or not record.group.pace:
            return
        if own.factor >= self._spec.slow * record.group.pace:
            self.sick_list.stays_out(record, now)
        else:
            self.sick_list.is_well(record, "its steps are as quick as its peers'", now, out)

    def check(self) -> None:
        """Raises AssertionError where the books don't balance or a bound is broken; for tests."""
        self.sick_list.check()
        for record in self._records.values():
            assert (record.view is None) is (record.worker_id in self._away), record.worker_id  # noqa: S101
