"""All requests that have no outcome yet: placed, placed again when something of them is lost, and ended, once each."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, ValuesView
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.admission import Admission, Ticket
from orchestrator.core.decision import Decision, Wait
from orchestrator.core.errors import ClusterFull, DeadlineExceeded, NotReady, SegueError, WorkerLost
from orchestrator.core.fleet import Fleet, WorkerView
from orchestrator.core.halves import Halves
from orchestrator.core.pace import UNKNOWN_RETRY_SECONDS
from orchestrator.core.patience import Patience
from orchestrator.core.retries import RetryBudget
from orchestrator.core.routing import Router
from orchestrator.core.session import Session, Signal, State
from orchestrator.core.sick_list import SickList
from orchestrator.core.spec import RoutingSpec
from orchestrator.core.stranded import Stranded

if TYPE_CHECKING:
    from random import Random

LEAST_DEADLINES = 1024  # fewer are not worth a look for those of requests that have ended
HINT = "`segue status` shows the pools"


class Sessions:
    """The sessions of one gateway. What they bring about is appended to ``out``.

    Args:
        routers: by model; one that isn't there yet is routed by default.
        queue_seconds: how long a request may wait for a worker.
        max_attempts: placements a request gets; the last one computes the prompt where it decodes.
        targets: seconds to the first token, by model, for those that have one.
    """

    def __init__(
        self,
        fleet: Fleet,
        admission: Admission,
        halves: Halves,
        sick_list: SickList,
        routers: Mapping[str, Router],
        rng: Random,
        queue_seconds: float,
        max_attempts: int,
        targets: Mapping[str, float],
    ) -> None:
        self._fleet = fleet
        self._admission = admission
        self._halves = halves
        self._sick_list = sick_list
        self._routers = dict(routers)
        self._rng = rng
        self._queue_seconds = queue_seconds
        self._patience = {model: Patience(queue_seconds, target) for model, target in targets.items()}
        self._patient = Patience(queue_seconds)
        self._max_attempts = max_attempts
        self._retries = RetryBudget()
        self._stranded = Stranded(fleet)
        self._open: dict[str, Session] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._most_deadlines = LEAST_DEADLINES

    def __len__(self) -> int:
        return len(self._open)

    def __getitem__(self, request_id: str) -> Session:
        return self._open[request_id]

    def get(self, request_id: str) -> Session | None:
        return self._open.get(request_id)

    def values(self) -> ValuesView[Session]:
        """All of them, in order of arrival."""
        return self._open.values()

    def arrive(self, event: m.Arrived, now: float, out: list[m.Command]) -> None:
        """Sends a new request to a worker, or has it wait its turn, or turns somebody away."""
        if event.request_id in self._open:
            raise ValueError(f"request {event.request_id} arrived twice")
        session = self._open[event.request_id] = self._session(event, now)
        self._retries.arrived()
        if event.deadline is not None:
            self._look_again_at(event.deadline, session)
        if self._admission.waiting(event.model):
            session.waited = Wait.OTHERS_FIRST
        else:
            decision = self.router(event.model).decide(session, self._fleet, self._rng, now)
            if isinstance(decision, Decision):
                if self._sick_list.wanted:
                    decision = self._sick_list.trial(session, decision, now)
                self._admission.passed(session.tenant, session.model, session.tokens)
                out.append(self._halves.begin(session, decision, now))
                return
            session.waited = decision
        wait = self._most_wait(session.model, session.deadline, now, session.prompt_tokens, session.waited)
        session.place_by = now + wait
        self._look_again_at(session.place_by, session)
        for turned in self._admission.join(_ticket(session), now, wait):
            self.fail(self._open[turned.request_id], "rejected", turned.error, now, out)

    def knocked(self, event: m.Knocked, now: float) -> SegueError | None:
        """Why it is no use to read the request of a client that knocked; None where it may be."""
        if not self._admission.waiting(event.model):
            return None
        least = Ticket(event.request_id, event.model, event.tenant, 0, 1, now)
        return self._admission.turned_at_the_door(least, now, self._most_wait(event.model, event.deadline, now, 0))

    def _most_wait(
        self, model: str, deadline: float | None, now: float, tokens: int, waited: Wait | None = None
    ) -> float:
        nobody = self._kept_by(model, waited) is Wait.NO_WORKER
        patience = self._patient if nobody else self._patience.get(model, self._patient)
        return patience.seconds(None if deadline is None else deadline - now, tokens)

    def first_token(self, session: Session, now: float) -> None:
        """A request that was sent to a worker has its first token."""
        patience = self._patience.get(session.model)
        if patience is not None and session.placed_at is not None and session.began is None:
            patience.saw(now - session.placed_at, session.prompt_tokens)

    def _session(self, event: m.Arrived, now: float) -> Session:
        return Session(
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
            event.resumable,
        )

    def place_waiting(self, model: str, now: float, out: list[m.Command]) -> None:
        """Sends those whose turn it is, until one of them finds no place."""
        if not self._admission:  # mostly nobody waits
            return
        while ticket := self._admission.next(model):
            session = self._open[ticket.request_id]
            decision = self.router(model).decide(session, self._fleet, self._rng, now)
            if isinstance(decision, Wait):
                session.waited = decision
                if decision is Wait.NO_WORKER:
                    self._admission.nobody_takes(model)
                return
            if self._sick_list.wanted:
                decision = self._sick_list.trial(session, decision, now)
            self._admission.admitted(session.request_id, now)
            out.append(self._halves.begin(session, decision, now))

    def lost(
        self,
        session: Session,
        why: str,
        now: float,
        out: list[m.Command],
        sent_tokens: int = 0,
        *,
        moved: bool = False,
    ) -> None:
        """A half is lost: again from the prompt, or from what was sent (``sent_tokens`` of its output), if attempts
        are left and the one can be told from the other. One that is ``moved`` costs neither attempt nor retry."""
        streaming = session.state is State.STREAMING
        stuck = streaming and not (session.resumable and sent_tokens)
        if stuck or not (moved or self._may_retry(session)):
            self.fail(session, "failed", _lost(session, why), now, out)
            return
        self._sick_list.untried(session.request_id)
        self._halves.stop(session, now, out)
        if streaming:
            session.goes_on_after(sent_tokens)
        session.lost_because = why
        session.advance(Signal.LOST, now)
        session.attempts -= moved
        session.last_attempt = session.attempts == self._max_attempts - 1
        session.place_by = now + self._queue_seconds
        self._rejoin(session, now, out)

    def stranded(self, view: WorkerView, now: float) -> None:
        """A worker is gone, and with it the KV that some were about to fetch there."""
        self._stranded.lost(view, self._open.values(), now)

    def _may_retry(self, session: Session) -> bool:
        return session.attempts < self._max_attempts and self._retries.spend()

    def wait_again(self, session: Session, now: float, out: list[m.Command]) -> None:
        """A full worker costs no attempt: the request is placed again as soon as one has room, within its wait."""
        self._sick_list.untried(session.request_id)
        self._halves.stop(session, now, out)
        session.advance(Signal.LOST, now)
        session.attempts -= 1
        session.turned_away = True
        self._rejoin(session, now, out)

    def _rejoin(self, session: Session, now: float, out: list[m.Command]) -> None:
        self._look_again_at(session.place_by, session)  # it may have passed while the worker made up its mind
        self._admission.rejoin(_ticket(session))
        self.place_waiting(session.model, now, out)

    def fail(self, session: Session, outcome: str, error: SegueError, now: float, out: list[m.Command]) -> None:
        """Ends a request with an error for its client, wherever it is."""
        self._halves.stop(session, now, out)
        session.advance(Signal.ENDED_EARLY, now)
        self.end(session, outcome, now, out, detail=error.what, error=error)

    def end(
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
        """The one outcome of a request that is at no worker any more, or is about to leave the one that is done."""
        if self._sick_list.tried:
            self._sick_list.untried(session.request_id)
        kv_bytes = self._halves.kv_bytes(session)
        self._halves.leave(session)
        self._admission.drop(session.request_id)
        del self._open[session.request_id]
        report = session.report(outcome, now, output_tokens=output_tokens, kv_bytes=kv_bytes, detail=detail)
        out.append(m.End(report, error))

    def tick(self, now: float, out: list[m.Command]) -> None:
        """Ends what is out of time, and looks for room for those that wait."""
        while self._deadlines and self._deadlines[0][0] <= now:
            session = self._open.get(heapq.heappop(self._deadlines)[1])
            if session is None:
                continue
            if session.deadline is not None and session.deadline <= now:
                where = f"request {session.request_id}"
                self.fail(session, "failed", DeadlineExceeded("the request's deadline passed", where=where), now, out)
            elif session.state is State.WAITING and session.place_by <= now:
                self._given_up(session, now, out)
        for session in self._stranded.due(now):
            if session.attempts < self._max_attempts and self._retries.left >= 1.0:  # else its engine may yet manage
                self.lost(session, f"{session.prefill_worker} was lost, which had its KV", now, out)
        for model in list(self._routers):
            self.place_waiting(model, now, out)

    def _given_up(self, session: Session, now: float, out: list[m.Command]) -> None:
        if session.began is None:
            until = session.arrived_at + self._queue_seconds
            nobody = self._kept_by(session.model, session.waited) is Wait.NO_WORKER
            if nobody and now < until:  # its target can't be kept anyway
                session.place_by = until
                self._look_again_at(until, session)
                return
            self.fail(session, "rejected", self._nobody(session, now), now, out)
            return
        why = f"{session.lost_because}; nobody could go on with it within {self._queue_seconds:g} s"
        self.fail(session, "failed", _lost(session, why), now, out)

    def _kept_by(self, model: str, waited: Wait | None) -> Wait | None:
        """What keeps whoever's turn it is; where nobody is in line, what kept the request that asks (``waited``)."""
        first = self._admission.next(model)
        return self._open[first.request_id].waited if first else waited

    def _nobody(self, session: Session, now: float) -> SegueError:
        """Nobody took a request for as long as it may wait."""
        where, why = f"request {session.request_id}", self._kept_by(session.model, session.waited)
        seconds = min(self._queue_seconds, now - session.arrived_at)
        if why is Wait.NO_WORKER and not session.turned_away:
            what = f"no worker of {session.model} took requests within {seconds:.3g} s"
            return NotReady(what, where=where, hint=HINT, retry_after=UNKNOWN_RETRY_SECONDS)
        what = f"the workers of {session.model} were full for {seconds:.3g} s"
        return ClusterFull(what, where=where, hint=HINT, retry_after=self._admission.retry_after(session.model))

    def router(self, model: str) -> Router:
        """The model's router."""
        router = self._routers.get(model)
        if router is None:
            router = self._routers[model] = Router(RoutingSpec())
        return router

    def routed(self, model: str, spec: RoutingSpec, target: float | None) -> None:
        """Has a model routed so from now on, with this time to the first token as its target."""
        self._routers[model] = Router(spec)
        patience = self._patience.setdefault(model, Patience(self._queue_seconds))
        patience.target = target

    def _look_again_at(self, at: float, session: Session) -> None:
        heapq.heappush(self._deadlines, (at, session.request_id))
        if len(self._deadlines) > self._most_deadlines:  # most ended long before: those are forgotten
            kept = {entry for entry in self._deadlines if entry[1] in self._open}
            self._deadlines = sorted(kept)
            self._most_deadlines = max(LEAST_DEADLINES, 2 * len(kept))

    def check(self) -> None:
        """Raises AssertionError where the books don't balance; for tests."""
        self._halves.check(self._open)
        self._admission.check()
        waiting = sum(session.state is State.WAITING for session in self._open.values())
        assert waiting == len(self._admission), (waiting, len(self._admission))  # noqa: S101


def _lost(session: Session, why: str) -> WorkerLost:
    return WorkerLost(why, where=f"request {session.request_id}", hint="send the request again", retry_after=1.0)


def _ticket(session: Session) -> Ticket:
    return Ticket(
        session.request_id, session.model, session.tenant, session.priority, session.tokens, session.arrived_at
    )
