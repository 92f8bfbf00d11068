"""The composition: fleet, admission, routing and sessions behind one door, ``step(event, now) -> commands``.

The shell around it (a gateway's driver, the simulator, a replay) feeds what happened and carries out what comes back,
in order. Nothing here waits, reads a clock or touches a socket. A handler appends its commands to ``out``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.core import messages as m
from orchestrator.core.admission import Admission, Ticket
from orchestrator.core.decision import Decision, Rule, Wait
from orchestrator.core.errors import (
    ClusterFull,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    SegueError,
    WorkerLost,
)
from orchestrator.core.fleet import Fleet
from orchestrator.core.halves import Halves
from orchestrator.core.learning import Learning
from orchestrator.core.prediction import Predictions
from orchestrator.core.retries import RetryBudget
from orchestrator.core.routing import Router
from orchestrator.core.session import Session, Signal, State
from orchestrator.core.spec import ClusterSpec, GatewaySpec, ModelSpec, RoutingSpec

if TYPE_CHECKING:
    from random import Random

MAX_ATTEMPTS = 3
BUSY_SECONDS = 0.1  # a worker that said it is full is not asked again for so long
LEAST_DEADLINES = 1024  # fewer are not worth a look for those of requests that have ended
HINT = "`segue status` shows the pools"


class Brain:
    """Decides for one gateway.

    Args:
        rng: breaks ties and draws samples; the same seed and events give the same commands.
        gateway: its queue's bounds.
        models: how each is routed; one that isn't named is routed by default.
        max_attempts: placements a request gets; the last one computes the prompt where it decodes.
    """

    def __init__(
        self,
        rng: Random,
        gateway: GatewaySpec | None = None,
        models: Sequence[ModelSpec] = (),
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        gateway = gateway or GatewaySpec()
        self.fleet = Fleet()
        self.admission = Admission(gateway.admission)
        self.predictions = Predictions()
        self._rng = rng
        self._queue_seconds = gateway.queue_seconds
        self._max_attempts = max_attempts
        self._routers = {model.name: Router(model.routing) for model in models}
        self._halves = Halves(self.fleet, rng)
        self._learning = Learning()
        self._retries = RetryBudget()
        self._sessions: dict[str, Session] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._most_deadlines = LEAST_DEADLINES
        self._handlers: Mapping[type, Callable[[Any, float, list[m.Command]], None]] = {
            m.WorkerUp: self._worker_up,
            m.WorkerDraining: self._worker_draining,
            m.WorkerDown: self._worker_down,
            m.LoadReported: self._load_reported,
            m.CacheChanged: self._cache_changed,
            m.Arrived: self._arrived,
            m.PrefillEnded: self._prefill_ended,
            m.FirstToken: self._first_token,
            m.DecodeEnded: self._decode_ended,
            m.Refused: self._refused,
            m.Cancelled: self._cancelled,
            m.Tick: self._tick,
        }

    @classmethod
    def of(cls, spec: ClusterSpec, rng: Random) -> Brain:
        """The brain of a gateway of this cluster."""
        return cls(rng, spec.gateway, spec.models)

    def step(self, event: m.Event, now: float) -> list[m.Command]:
        """Takes in what happened at ``now`` (seconds, never going back); returns what to do, in order."""
        out: list[m.Command] = []
        self._handlers[type(event)](event, now, out)
        return out

    @property
    def live(self) -> int:
        """Requests without an outcome yet."""
        return len(self._sessions)

    def waits(self, request_id: str) -> Wait | None:
        """Why a request is sent nowhere yet; None where it was sent, or is not here."""
        session = self._sessions.get(request_id)
        return session.waited if session is not None and session.state is State.WAITING else None

    # ---- workers come and go

    def _worker_up(self, event: m.WorkerUp, now: float, out: list[m.Command]) -> None:
        worker = event.worker
        if worker.worker_id in self.fleet:
            self._worker_down(m.WorkerDown(worker.worker_id, "its session was opened again"), now, out)
        self.fleet.up(worker, now)
        self._place_waiting(worker.model, now, out)

    def _worker_draining(self, event: m.WorkerDraining, now: float, out: list[m.Command]) -> None:
        self.fleet.drain(event.worker_id)

    def _worker_down(self, event: m.WorkerDown, now: float, out: list[m.Command]) -> None:
        self._learning.forget(event.worker_id)
        for request_id in self.fleet.down(event.worker_id):
            session = self._sessions[request_id]
            if session.state is State.PREFILLING and session.decode_worker == event.worker_id:
                session.decode_worker = ""  # only a reservation: another is chosen at the hand-over
            else:
                self._lost(session, f"worker {event.worker_id} was lost: {event.reason}", now, out)

    def _load_reported(self, event: m.LoadReported, now: float, out: list[m.Command]) -> None:
        view = self.fleet.reported(event.worker_id, event.load, event.own, now)
        if view is None:
            return
        if event.stepped:
            self._learning.stepped(view, now)
        else:
            self._learning.silent(view)
        self._place_waiting(view.info.model, now, out)

    def _cache_changed(self, event: m.CacheChanged, now: float, out: list[m.Command]) -> None:
        if view := self.fleet.get(event.worker_id):
            self.fleet.index(view.info.model).changed(
                view.slot, stored=event.stored, removed=event.removed, cleared=event.cleared
            )

    # ---- a request's way

    def _arrived(self, event: m.Arrived, now: float, out: list[m.Command]) -> None:
        if event.request_id in self._sessions:
            raise ValueError(f"request {event.request_id} arrived twice")
        session = Session(
            event.request_id,
            event.model,
            event.prompt_tokens,
            now,
            now + self._queue_seconds,
            event.deadline,
            event.local_only,
            event.blocks,
            event.tenant,
            event.priority,
            event.affinity,
            event.adapter,
            event.output_limit,
        )
        self._sessions[event.request_id] = session
        self._retries.arrived()
        if event.deadline is not None:
            self._look_again_at(event.deadline, session)
        if not self.admission.waiting(event.model):
            decision = self._router(event.model).decide(session, self.fleet, self._rng, now)
            if isinstance(decision, Decision):
                self.admission.passed(session.tenant, session.model, session.tokens)
                out.append(self._halves.begin(session, decision, now))
                return
            session.waited = decision
        else:
            session.waited = Wait.OTHERS_FIRST
        self._look_again_at(session.place_by, session)
        for turned in self.admission.join(_ticket(session), now):
            self._fail(self._sessions[turned.request_id], "rejected", turned.error, now, out)

    def _place_waiting(self, model: str, now: float, out: list[m.Command]) -> None:
        """Sends those whose turn it is, until one of them finds no place."""
        if not self.admission:  # mostly nobody waits
            return
        while ticket := self.admission.next(model):
            session = self._sessions[ticket.request_id]
            decision = self._router(model).decide(session, self.fleet, self._rng, now)
            if isinstance(decision, Wait):
                session.waited = decision
                return
            self.admission.admitted(session.request_id)
            out.append(self._halves.begin(session, decision, now))

    def _prefill_ended(self, event: m.PrefillEnded, now: float, out: list[m.Command]) -> None:
        session = self._halves.of_wire(event.wire_id)
        if session is None:
            if command := self._halves.orphan_ended(event):
                out.append(command)
            return
        self._halves.prefill_ended(session)
        if not event.collectable:
            session.prefill_wire = ""
            self._lost(session, f"prefill on {session.prefill_worker} failed: {event.detail}", now, out)
            return
        if event.cached_tokens is not None:
            self._computed(session, session.prefill_worker, event.cached_tokens, now, out)
        decision = self._hand_over_to(session, now)
        if isinstance(decision, Wait):
            out.append(self._halves.release(event.wire_id, session.model))
            session.prefill_wire = ""
            self._lost(session, f"at the hand-over {decision}", now, out)
            return
        out.append(self._halves.hand_over(session, decision, now))
        self._place_waiting(session.model, now, out)

    def _hand_over_to(self, session: Session, now: float) -> Decision | Wait:
        """The reserved decode worker, or, if that is gone or drains, another."""
        view = self.fleet.get(session.decode_worker)
        if view is not None and not view.draining:
            return Decision(session.decode_worker, session.prefill_worker, Rule.RESERVED)
        return self._router(session.model).hand_over(session, self.fleet, self._rng, now)

    def _first_token(self, event: m.FirstToken, now: float, out: list[m.Command]) -> None:
        session = self._halves.of_wire(event.wire_id)
        if session is None:
            return
        session.advance(Signal.FIRST_TOKEN, now)
        session.cached_tokens = event.cached_tokens
        session.transferred_tokens = event.transferred_tokens
        if not session.prefill_worker:
            self._computed(session, session.decode_worker, event.cached_tokens, now, out)
        elif view := self.fleet.get(session.decode_worker):
            self._learning.transferred(view, session, now)

    def _computed(self, session: Session, worker_id: str, cached: int, now: float, out: list[m.Command]) -> None:
        """A worker has computed the prompt, but for ``cached`` tokens of it."""
        self.fleet.computed(worker_id, session.request_id)
        if view := self.fleet.get(worker_id):
            self._learning.prefilled(view, session, cached, now)
        if choice := session.computing:
            out.extend(
                self.predictions.saw(
                    session.model, choice.cached_tokens, cached, session.prompt_tokens, choice.cached_by
                )
            )

    def _decode_ended(self, event: m.DecodeEnded, now: float, out: list[m.Command]) -> None:
        session = self._halves.of_wire(event.wire_id)
        if session is None:
            return
        if event.failed:
            session.prefill_wire = ""  # the engine that failed has collected its KV, or told the prefill side so
            self._halves.leave(session)
            self._lost(session, f"decode on {session.decode_worker} failed: {event.detail}", now, out)
            return
        session.advance(Signal.FINISHED, now)
        self._end(session, "finished", now, out, output_tokens=event.output_tokens)
        self._place_waiting(session.model, now, out)

    def _refused(self, event: m.Refused, now: float, out: list[m.Command]) -> None:
        session = self._halves.of_wire(event.wire_id)
        if session is None:
            return
        worker_id = session.prefill_worker if session.state is State.PREFILLING else session.decode_worker
        self._halves.refused(session, event.wire_id)
        if event.refusal is m.Refusal.INVALID:
            error = InvalidRequest(f"the engine refused the request: {event.detail}", where=worker_id)
            self._fail(session, "rejected", error, now, out)
        elif event.refusal is m.Refusal.BUSY:
            if view := self.fleet.get(worker_id):
                view.busy_until = now + BUSY_SECONDS
            self._wait_again(session, now, out)
        else:
            self.fleet.drain(worker_id)
            self._lost(session, f"{worker_id} refused ({event.refusal}): {event.detail}", now, out)

    # ---- ends that are not the plan

    def _cancelled(self, event: m.Cancelled, now: float, out: list[m.Command]) -> None:
        session = self._sessions.get(event.request_id)
        if session is None:
            return
        self._halves.stop(session, now, out)
        session.advance(Signal.ENDED_EARLY, now)
        outcome = "finished" if event.complete else "cancelled"
        self._end(session, outcome, now, out, output_tokens=event.output_tokens)
        self._place_waiting(session.model, now, out)

    def _tick(self, event: m.Tick, now: float, out: list[m.Command]) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            session = self._sessions.get(request_id)
            if session is None:
                continue
            if session.deadline is not None and session.deadline <= now:
                error: SegueError = DeadlineExceeded("the request's deadline passed", where=f"request {request_id}")
                self._fail(session, "failed", error, now, out)
            elif session.state is State.WAITING and session.place_by <= now:
                self._fail(session, "rejected", self._nobody(session), now, out)
        for model in list(self._routers):
            self._place_waiting(model, now, out)
        self._halves.tick(now)

    def _nobody(self, session: Session) -> SegueError:
        """Why nobody took a request for as long as it may wait: what kept whoever's turn it was."""
        where = f"request {session.request_id}"
        first = self.admission.next(session.model)
        why = self._sessions[first.request_id].waited if first else session.waited
        if why is Wait.NO_WORKER and not session.turned_away:
            what = f"no worker of {session.model} took requests within {self._queue_seconds:g} s"
            return NotReady(what, where=where, hint=HINT, retry_after=5.0)
        what = f"the workers of {session.model} were full for {self._queue_seconds:g} s"
        return ClusterFull(what, where=where, hint=HINT, retry_after=5.0)

    def _lost(self, session: Session, why: str, now: float, out: list[m.Command]) -> None:
        """A half is lost: again from the prompt, unless tokens were sent already or there are no attempts left."""
        final = session.state is State.STREAMING or session.attempts >= self._max_attempts
        if final or not self._retries.spend():
            where, hint = f"request {session.request_id}", "send the request again"
            self._fail(session, "failed", WorkerLost(why, where=where, hint=hint, retry_after=1.0), now, out)
            return
        self._halves.stop(session, now, out)
        session.advance(Signal.LOST, now)
        session.last_attempt = session.attempts == self._max_attempts - 1
        session.place_by = now + self._queue_seconds
        self._rejoin(session, now, out)

    def _wait_again(self, session: Session, now: float, out: list[m.Command]) -> None:
        """A full worker costs no attempt: the request is placed again as soon as one has room, within its wait."""
        self._halves.stop(session, now, out)
        session.advance(Signal.LOST, now)
        session.attempts -= 1
        session.turned_away = True
        self._rejoin(session, now, out)

    def _rejoin(self, session: Session, now: float, out: list[m.Command]) -> None:
        self._look_again_at(session.place_by, session)  # it may have passed while the worker made up its mind
        self.admission.rejoin(_ticket(session))
        self._place_waiting(session.model, now, out)

    def _fail(self, session: Session, outcome: str, error: SegueError, now: float, out: list[m.Command]) -> None:
        self._halves.stop(session, now, out)
        session.advance(Signal.ENDED_EARLY, now)
        self._end(session, outcome, now, out, detail=error.what, error=error)

    def _end(
        self,
        session: Session,
        outcome: str,
        now: float,
        out: list[m.Command],
        *,
        output_tokens: int = 0,
        detail: str = "",
        error: SegueError | None = None,
    ) -> None:
        kv_bytes = self._halves.kv_bytes(session)
        self._halves.leave(session)
        self.admission.drop(session.request_id)
        del self._sessions[session.request_id]
        report = session.report(outcome, now, output_tokens=output_tokens, kv_bytes=kv_bytes, detail=detail)
        out.append(m.End(report, error))

    def _router(self, model: str) -> Router:
        router = self._routers.get(model)
        if router is None:
            router = self._routers[model] = Router(RoutingSpec())
        return router

    def _look_again_at(self, at: float, session: Session) -> None:
        heapq.heappush(self._deadlines, (at, session.request_id))
        if len(self._deadlines) > self._most_deadlines:  # most ended long before: those are forgotten
            kept = {entry for entry in self._deadlines if entry[1] in self._sessions}
            self._deadlines = sorted(kept)
            self._most_deadlines = max(LEAST_DEADLINES, 2 * len(kept))

    def check(self) -> None:
        """Raises AssertionError where the books don't balance; for tests, after each step."""
        self._halves.check(self._sessions)
        self.admission.check()
        waiting = sum(session.state is State.WAITING for session in self._sessions.values())
        assert waiting == len(self.admission), (waiting, len(self.admission))  # noqa: S101


def _ticket(session: Session) -> Ticket:
    return Ticket(
        session.request_id, session.model, session.tenant, session.priority, session.tokens, session.arrived_at
    )
