"""The composition: fleet, routing and sessions behind one door, ``step(event, now) -> commands``.

The shell around it (a gateway's driver, later a simulator) feeds what happened and carries out what comes back, in
order. Nothing here waits, reads a clock or touches a socket.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.core import messages as m
from orchestrator.core.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded, SegueError, WorkerLost
from orchestrator.core.fleet import Fleet
from orchestrator.core.routing import decide, least_loaded
from orchestrator.core.session import Session, Signal, State
from orchestrator.core.spec import Role

if TYPE_CHECKING:
    from random import Random

ORPHAN_SECONDS = 60.0  # how long an aborted prefill may still report a result that has to be released


class Brain:
    """Decides for one gateway.

    Args:
        rng: breaks ties.
        queue_seconds: how long a request may wait for a worker before it is refused.
        max_attempts: placements a request gets; the last one computes the prompt where it decodes.
    """

    def __init__(self, rng: Random, *, queue_seconds: float = 30.0, max_attempts: int = 3) -> None:
        self.fleet = Fleet()
        self._rng = rng
        self._queue_seconds = queue_seconds
        self._max_attempts = max_attempts
        self._sessions: dict[str, Session] = {}
        self._by_wire: dict[str, Session] = {}
        self._waiting: dict[str, Session] = {}  # in order of arrival
        self._orphans: dict[str, tuple[str, float]] = {}  # aborted prefill wire -> (model, give up at)
        self._deadlines: list[tuple[float, str]] = []
        self._handlers: Mapping[type, Callable[[Any, float], Iterable[m.Command]]] = {
            m.WorkerUp: self._worker_up,
            m.WorkerDraining: self._worker_draining,
            m.WorkerDown: self._worker_down,
            m.LoadReported: self._load_reported,
            m.Arrived: self._arrived,
            m.PrefillEnded: self._prefill_ended,
            m.FirstToken: self._first_token,
            m.DecodeEnded: self._decode_ended,
            m.Refused: self._refused,
            m.Cancelled: self._cancelled,
            m.Tick: self._tick,
        }

    def step(self, event: m.Event, now: float) -> list[m.Command]:
        """Takes in what happened at ``now`` (seconds, never going back); returns what to do, in order."""
        return list(self._handlers[type(event)](event, now))

    @property
    def live(self) -> int:
        """Requests without an outcome yet."""
        return len(self._sessions)

    # ---- workers come and go

    def _worker_up(self, event: m.WorkerUp, now: float) -> Iterator[m.Command]:
        if event.worker.worker_id in self.fleet:
            yield from self._worker_down(m.WorkerDown(event.worker.worker_id, "its session was opened again"), now)
        self.fleet.up(event.worker)
        yield from self._place_waiting(now)

    def _worker_draining(self, event: m.WorkerDraining, now: float) -> Iterable[m.Command]:
        self.fleet.drain(event.worker_id)
        return ()

    def _worker_down(self, event: m.WorkerDown, now: float) -> Iterator[m.Command]:
        for request_id in sorted(self.fleet.down(event.worker_id)):
            session = self._sessions[request_id]
            if session.state is State.PREFILLING and session.decode_worker == event.worker_id:
                session.decode_worker = ""  # only a reservation: another is chosen at the hand-over
            else:
                yield from self._lost(session, f"worker {event.worker_id} was lost: {event.reason}", now)

    def _load_reported(self, event: m.LoadReported, now: float) -> Iterable[m.Command]:
        self.fleet.reported(event.worker_id, event.load)
        return ()

    # ---- a request's way

    def _arrived(self, event: m.Arrived, now: float) -> Iterator[m.Command]:
        if event.request_id in self._sessions:
            raise ValueError(f"request {event.request_id} arrived twice")
        session = Session(
            request_id=event.request_id,
            model=event.model,
            prompt_tokens=event.prompt_tokens,
            local_only=event.local_only,
            arrived_at=now,
            place_by=now + self._queue_seconds,
            deadline=event.deadline,
        )
        self._sessions[event.request_id] = session
        self._look_again_at(session.place_by, session)
        if event.deadline is not None:
            self._look_again_at(event.deadline, session)
        yield from self._place(session, now)

    def _place(self, session: Session, now: float) -> Iterator[m.Command]:
        decision = decide(session, self.fleet, self._rng)
        if decision is None:
            self._waiting[session.request_id] = session
            return
        self._waiting.pop(session.request_id, None)
        session.decode_worker = decision.decode
        self.fleet.took(decision.decode, session.request_id)
        if decision.prefill is None:
            session.advance(Signal.PLACED_TOGETHER, now)
            yield self._start_decode(session, None, decision)
            return
        session.advance(Signal.PLACED_APART, now)
        session.prefill_worker = decision.prefill
        session.prefill_wire = f"{session.request_id}~p{session.attempts}"
        self._by_wire[session.prefill_wire] = session
        self.fleet.took(decision.prefill, session.request_id)
        yield m.StartPrefill(session.request_id, session.prefill_wire, decision.prefill, decision)

    def _place_waiting(self, now: float) -> Iterator[m.Command]:
        for session in list(self._waiting.values()):
            yield from self._place(session, now)

    def _start_decode(self, session: Session, collect: str | None, decision: m.Decision) -> m.StartDecode:
        session.decode_wire = f"{session.request_id}~d{session.attempts}"
        self._by_wire[session.decode_wire] = session
        return m.StartDecode(session.request_id, session.decode_wire, session.decode_worker, collect, decision)

    def _prefill_ended(self, event: m.PrefillEnded, now: float) -> Iterator[m.Command]:
        session = self._by_wire.pop(event.wire_id, None)
        if session is None:
            yield from self._orphan_ended(event)
            return
        self.fleet.left(session.prefill_worker, session.request_id)
        if not event.collectable:
            session.prefill_wire = ""
            yield from self._lost(session, f"prefill on {session.prefill_worker} failed: {event.detail}", now)
            return
        decision = self._hand_over_to(session)
        if decision is None:
            yield m.Forget(event.wire_id)
            session.prefill_wire = ""
            yield from self._lost(session, "no decode worker was left at the hand-over", now)
            return
        session.advance(Signal.PREFILL_DONE, now)
        yield self._start_decode(session, event.wire_id, decision)

    def _hand_over_to(self, session: Session) -> m.Decision | None:
        """The reserved decode worker, or, if that is gone, the least loaded one now."""
        if session.decode_worker in self.fleet:
            return m.Decision(session.decode_worker, session.prefill_worker, ("as reserved",))
        decoders = self.fleet.open(session.model, Role.DECODE)
        if not decoders:
            return None
        session.decode_worker = least_loaded(decoders, self._rng).info.worker_id
        self.fleet.took(session.decode_worker, session.request_id)
        return m.Decision(session.decode_worker, session.prefill_worker, ("the reserved decode worker was lost",))

    def _orphan_ended(self, event: m.PrefillEnded) -> Iterator[m.Command]:
        model, _ = self._orphans.pop(event.wire_id, ("", 0.0))
        if event.collectable:
            yield self._release(event.wire_id, model)

    def _release(self, prefill_wire: str, model: str) -> m.Command:
        decoders = self.fleet.open(model, Role.DECODE)
        if not decoders:
            return m.Forget(prefill_wire)
        return m.Release(prefill_wire, least_loaded(decoders, self._rng).info.worker_id)

    def _first_token(self, event: m.FirstToken, now: float) -> Iterable[m.Command]:
        if session := self._by_wire.get(event.wire_id):
            session.advance(Signal.FIRST_TOKEN, now)
            session.cached_tokens = event.cached_tokens
            session.transferred_tokens = event.transferred_tokens
        return ()

    def _decode_ended(self, event: m.DecodeEnded, now: float) -> Iterator[m.Command]:
        session = self._by_wire.get(event.wire_id)
        if session is None:
            return
        if event.failed:
            del self._by_wire[event.wire_id]
            session.prefill_wire = ""  # the engine that failed has collected its KV, or told the prefill side so
            yield from self._lost(session, f"decode on {session.decode_worker} failed: {event.detail}", now)
            return
        session.advance(Signal.FINISHED, now)
        yield self._end(session, "finished", now, output_tokens=event.output_tokens)

    def _refused(self, event: m.Refused, now: float) -> Iterator[m.Command]:
        session = self._by_wire.pop(event.wire_id, None)
        if session is None:
            return
        worker_id = session.prefill_worker if session.state is State.PREFILLING else session.decode_worker
        if session.state is State.PREFILLING:
            session.prefill_wire = ""
        if event.refusal is m.Refusal.INVALID:
            error = InvalidRequest(f"the engine refused the request: {event.detail}", where=worker_id)
            yield from self._fail(session, "rejected", error, now)
            return
        if event.refusal is m.Refusal.BUSY:
            yield from self._wait_again(session, now)
            return
        self.fleet.drain(worker_id)
        yield from self._lost(session, f"{worker_id} refused ({event.refusal}): {event.detail}", now)

    # ---- ends that are not the plan

    def _cancelled(self, event: m.Cancelled, now: float) -> Iterator[m.Command]:
        session = self._sessions.get(event.request_id)
        if session is None:
            return
        yield from self._stop_halves(session, now)
        session.advance(Signal.ENDED_EARLY, now)
        outcome = "finished" if event.complete else "cancelled"
        yield self._end(session, outcome, now, output_tokens=event.output_tokens)

    def _tick(self, event: m.Tick, now: float) -> Iterator[m.Command]:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            session = self._sessions.get(request_id)
            if session is None:
                continue
            if session.deadline is not None and session.deadline <= now:
                error: SegueError = DeadlineExceeded("the request's deadline passed", where=f"request {request_id}")
                yield from self._fail(session, "failed", error, now)
            elif session.state is State.WAITING and session.place_by <= now:
                yield from self._fail(session, "rejected", self._nobody(session), now)
        yield from self._place_waiting(now)
        for wire_id in [w for w, (_, until) in self._orphans.items() if until <= now]:
            del self._orphans[wire_id]

    def _nobody(self, session: Session) -> SegueError:
        kind = Overloaded if session.turned_away else NotReady
        return kind(
            f"no worker of {session.model} took the request within {self._queue_seconds:g} s",
            where=f"request {session.request_id}",
            hint="`segue status` shows the pools",
            retry_after=5.0,
        )

    def _lost(self, session: Session, why: str, now: float) -> Iterator[m.Command]:
        """A half is lost: again from the prompt, unless tokens were sent already or the attempts are used up."""
        if session.state is State.STREAMING or session.attempts >= self._max_attempts:
            error = WorkerLost(
                why, where=f"request {session.request_id}", hint="send the request again", retry_after=1.0
            )
            yield from self._fail(session, "failed", error, now)
            return
        yield from self._stop_halves(session, now)
        session.advance(Signal.LOST, now)
        session.local_only = session.local_only or session.attempts == self._max_attempts - 1
        session.place_by = now + self._queue_seconds
        self._look_again_at(session.place_by, session)
        yield from self._place(session, now)

    def _wait_again(self, session: Session, now: float) -> Iterator[m.Command]:
        """A full worker costs no attempt: the request is placed again at the next tick, until its wait is over."""
        yield from self._stop_halves(session, now)
        session.advance(Signal.LOST, now)
        session.attempts -= 1
        session.turned_away = True
        self._waiting[session.request_id] = session
        self._look_again_at(session.place_by, session)  # it may have passed while the worker made up its mind

    def _fail(self, session: Session, outcome: str, error: SegueError, now: float) -> Iterator[m.Command]:
        yield from self._stop_halves(session, now)
        session.advance(Signal.ENDED_EARLY, now)
        yield self._end(session, outcome, now, detail=error.what, error=error)

    def _stop_halves(self, session: Session, now: float) -> Iterator[m.Command]:
        """Aborts what may still run and frees what a finished prefill left, on workers that are still there."""
        for worker_id in (session.prefill_worker, session.decode_worker):
            self.fleet.left(worker_id, session.request_id)
        if self._by_wire.pop(session.prefill_wire, None) and session.prefill_worker in self.fleet:
            self._orphans[session.prefill_wire] = (session.model, now + ORPHAN_SECONDS)
            yield m.Abort(session.prefill_wire, session.prefill_worker)
        if self._by_wire.pop(session.decode_wire, None) and session.decode_worker in self.fleet:
            yield m.Abort(session.decode_wire, session.decode_worker)  # an engine that aborts lets go of the KV too
        elif session.prefill_wire and session.state is State.DECODING:
            yield self._release(session.prefill_wire, session.model)

    def _end(
        self,
        session: Session,
        outcome: str,
        now: float,
        *,
        output_tokens: int = 0,
        detail: str = "",
        error: SegueError | None = None,
    ) -> m.End:
        kv_bytes = self._kv_bytes(session)
        for worker_id in (session.prefill_worker, session.decode_worker):
            self.fleet.left(worker_id, session.request_id)
        self._by_wire.pop(session.decode_wire, None)
        self._waiting.pop(session.request_id, None)
        del self._sessions[session.request_id]
        report = session.report(outcome, now, output_tokens=output_tokens, kv_bytes=kv_bytes, detail=detail)
        return m.End(report, error)

    def _kv_bytes(self, session: Session) -> int:
        view = self.fleet.get(session.decode_worker)
        facts = view.info.facts if view else None
        return -(-session.transferred_tokens // facts.block_size) * facts.kv_block_bytes if facts else 0

    def _look_again_at(self, at: float, session: Session) -> None:
        heapq.heappush(self._deadlines, (at, session.request_id))

    def check(self) -> None:
        """Raises AssertionError where the books don't balance; for tests, after each step."""
        for view in self.fleet:
            for request_id in view.ours:
                session = self._sessions[request_id]
                assert view.info.worker_id in (session.prefill_worker, session.decode_worker), request_id  # noqa: S101
        for wire_id, session in self._by_wire.items():
            assert self._sessions.get(session.request_id) is session, wire_id  # noqa: S101
            assert wire_id in (session.prefill_wire, session.decode_wire), wire_id  # noqa: S101
        waiting = {s.request_id for s in self._sessions.values() if s.state is State.WAITING}
        assert waiting == set(self._waiting), (waiting, set(self._waiting))  # noqa: S101
