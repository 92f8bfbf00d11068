"""The composition: fleet, admission, routing and sessions behind one door, ``step(event, now) -> commands``.

The shell around it (a gateway's driver, the simulator, a replay) feeds what happened and carries out what comes back,
in order. Nothing here waits, reads a clock or touches a socket. A handler appends its commands to ``out``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from orchestrator.core import learning
from orchestrator.core import messages as m
from orchestrator.core.admission import Admission
from orchestrator.core.decision import Decision, Rule, Wait
from orchestrator.core.errors import InvalidRequest
from orchestrator.core.fleet import Claim, Fleet
from orchestrator.core.halves import Halves
from orchestrator.core.health import Health
from orchestrator.core.prediction import Predictions
from orchestrator.core.routing import Router
from orchestrator.core.session import Session, Signal, State
from orchestrator.core.sessions import Sessions
from orchestrator.core.spec import ClusterSpec, GatewaySpec, ModelSpec, RoutingSpec

if TYPE_CHECKING:
    from random import Random

MAX_ATTEMPTS = 3
BUSY_SECONDS = 0.1  # a worker that said it is full is not asked again for so long


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
        self.health = Health(gateway.health, self.fleet)
        self.predictions = Predictions()
        self._rng = rng
        self._halves = Halves(self.fleet, rng)
        routers = {model.name: Router(model.routing) for model in models}
        targets = {model.name: target for model in models if (target := model.target_seconds) is not None}
        self._sessions = Sessions(
            self.fleet,
            self.admission,
            self._halves,
            self.health.sick_list,
            routers,
            rng,
            gateway.queue_seconds,
            max_attempts,
            targets,
        )

    @classmethod
    def of(cls, spec: ClusterSpec, rng: Random) -> Brain:
        """The brain of a gateway of this cluster."""
        return cls(rng, spec.gateway, spec.models)

    def step(self, event: m.Event, now: float) -> list[m.Command]:
        """Takes in what happened at ``now`` (seconds, never going back); returns what to do, in order."""
        out: list[m.Command] = []
        if isinstance(event, m.LoadReported):  # the most frequent first: a gateway sees thousands a second
            self._load_reported(event, now, out)
        elif isinstance(event, m.CacheChanged):
            self._cache_changed(event)
        elif isinstance(event, m.Arrived):
            self._sessions.arrive(event, now, out)
        elif isinstance(event, m.FirstToken):
            self._first_token(event, now, out)
        elif isinstance(event, m.DecodeEnded):
            self._decode_ended(event, now, out)
        elif isinstance(event, m.PrefillEnded):
            self._prefill_ended(event, now, out)
        else:
            self._seldom(event, now, out)
        return out

    def _seldom(self, event: m.Seldom, now: float, out: list[m.Command]) -> None:
        match event:
            case m.Tick():
                self._tick(now, out)
            case m.Refused():
                self._refused(event, now, out)
            case m.Cancelled():
                self._cancelled(event, now, out)
            case m.WorkerUp():
                self._worker_up(event, now, out)
            case m.WorkerDraining():
                self._drains(event.worker_id, now, out)
            case m.WorkerDown():
                self._worker_down(event, now, out)
            case m.Knocked():
                if error := self._sessions.knocked(event, now):
                    out.append(m.TurnedAway(event.request_id, error))
            case m.ModelRouted():
                parameters = {each.name: each.value for each in event.parameters}
                spec = RoutingSpec(event.policy, parameters, event.prefill)
                self._sessions.routed(event.model, spec, event.target_seconds)
            case _ as unknown:
                assert_never(unknown)

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
        self.health.up(self.fleet.up(worker, now), now, out)
        self._sessions.place_waiting(worker.model, now, out)

    def _worker_down(self, event: m.WorkerDown, now: float, out: list[m.Command]) -> None:
        sent = {each.request_id: each.output_tokens for each in event.sent}
        view = self.fleet.get(event.worker_id)
        moved = view is not None and view.draining  # its time was over: nothing is wrong with what ran there
        self.health.down(event.worker_id, now, out)
        for request_id in self.fleet.down(event.worker_id):
            session = self._sessions[request_id]
            if session.state is State.PREFILLING and session.decode_worker == event.worker_id:
                session.decode_worker = ""  # only a reservation: another is chosen at the hand-over
            else:
                why = f"worker {event.worker_id} was lost: {event.reason}"
                self._sessions.lost(session, why, now, out, sent.get(request_id, 0), moved=moved)
        if view is not None:
            self._sessions.stranded(view, now)

    def _drains(self, worker_id: str, now: float, out: list[m.Command]) -> None:
        self.health.drains(worker_id, now, out)
        self.fleet.drain(worker_id)

    def _load_reported(self, event: m.LoadReported, now: float, out: list[m.Command]) -> None:
        view = self.fleet.reported(event.worker_id, event.load, event.own, now)
        if view is None:
            return
        if event.stepped:
            learning.stepped(view, now)
        else:
            learning.silent(view)
        self._sessions.place_waiting(view.info.model, now, out)

    def _cache_changed(self, event: m.CacheChanged) -> None:
        if view := self.fleet.get(event.worker_id):
            view.index.changed(view.slot, stored=event.stored, removed=event.removed, cleared=event.cleared)

    # ---- a request's way

    def _prefill_ended(self, event: m.PrefillEnded, now: float, out: list[m.Command]) -> None:
        session = self._halves.of_wire(event.wire_id)
        if session is None:
            if command := self._halves.orphan_ended(event):
                out.append(command)
            return
        self._halves.prefill_ended(session)
        if not event.collectable:
            session.prefill_wire = ""
            self.health.failed(session.prefill_worker, now, out)
            self._sessions.lost(session, f"prefill on {session.prefill_worker} failed: {event.detail}", now, out)
            return
        self.health.worked(session.prefill_worker)
        if session.request_id in self.health.sick_list.tried:
            self.health.prefilled(session, now, out)
        if event.cached_tokens is not None:
            self._computed(session, session.prefill_claim, event.cached_tokens, now, out)
        decision = self._hand_over_to(session, now)
        if isinstance(decision, Wait):
            out.append(self._halves.release(event.wire_id, session.model, session.prefill_worker))
            session.prefill_wire = ""
            self._sessions.lost(session, f"at the hand-over {decision}", now, out)
            return
        out.append(self._halves.hand_over(session, decision, now))
        self._sessions.place_waiting(session.model, now, out)

    def _hand_over_to(self, session: Session, now: float) -> Decision | Wait:
        """The reserved decode worker, or, if that is gone or drains, another."""
        view = self.fleet.get(session.decode_worker)
        if view is not None and not view.draining:
            return Decision(session.decode_worker, session.prefill_worker, Rule.RESERVED)
        return self._sessions.router(session.model).hand_over(session, self.fleet, self._rng, now)

    def _first_token(self, event: m.FirstToken, now: float, out: list[m.Command]) -> None:
        session = self._halves.of_wire(event.wire_id)
        if session is None:
            return
        session.advance(Signal.FIRST_TOKEN, now)
        session.cached_tokens = event.cached_tokens
        session.transferred_tokens = event.transferred_tokens
        self._halves.arrived(session, now)
        self._sessions.first_token(session, now)
        self.health.began(session, now)
        if not session.prefill_worker:
            self._computed(session, session.decode_claim, event.cached_tokens, now, out)
        elif view := self.fleet.get(session.decode_worker):
            learning.transferred(view, session, now)

    def _computed(self, session: Session, claim: Claim | None, cached: int, now: float, out: list[m.Command]) -> None:
        """A worker has computed the prompt, but for ``cached`` tokens of it."""
        if claim is not None:
            claim.computed()
            learning.prefilled(claim.view, session, cached, now)
        predicted = session.predicted_tokens
        if predicted is not None and session.began is None:  # what was sent may be cached, too, which nobody predicts
            by = session.predicted_by
            out.extend(self.predictions.saw(session.model, predicted, cached, session.prompt_tokens, by))

    def _decode_ended(self, event: m.DecodeEnded, now: float, out: list[m.Command]) -> None:
        session = self._halves.of_wire(event.wire_id)
        if session is None:
            return
        if event.failed:
            session.prefill_wire = ""  # the engine that failed has collected its KV, or told the prefill side so
            self._halves.leave(session)
            self.health.failed(session.decode_worker, now, out)
            why = f"decode on {session.decode_worker} failed: {event.detail}"
            self._sessions.lost(session, why, now, out, event.output_tokens)
            return
        self.health.decoded(session, event.output_tokens, now, out)
        session.advance(Signal.FINISHED, now)
        self._sessions.end(session, "finished", now, out, output_tokens=event.output_tokens)
        self._sessions.place_waiting(session.model, now, out)

    def _refused(self, event: m.Refused, now: float, out: list[m.Command]) -> None:
        session = self._halves.of_wire(event.wire_id)
        if session is None:
            return
        worker_id = session.prefill_worker if session.state is State.PREFILLING else session.decode_worker
        self._halves.refused(session, event.wire_id)
        if event.refusal is m.Refusal.INVALID:
            error = InvalidRequest(f"the engine refused the request: {event.detail}", where=worker_id)
            self._sessions.fail(session, "rejected", error, now, out)
        elif event.refusal is m.Refusal.BUSY:
            if view := self.fleet.get(worker_id):
                view.busy_until = now + BUSY_SECONDS
            self._sessions.wait_again(session, now, out)
        else:
            self._drains(worker_id, now, out)
            why = f"{worker_id} refused ({event.refusal}): {event.detail}"
            self._sessions.lost(session, why, now, out, moved=True)

    # ---- ends that are not the plan

    def _cancelled(self, event: m.Cancelled, now: float, out: list[m.Command]) -> None:
        session = self._sessions.get(event.request_id)
        if session is None:
            return
        if event.complete:  # as with a stop string, which engines don't look for
            self.health.decoded(session, event.output_tokens, now, out)
        self._halves.stop(session, now, out)
        session.advance(Signal.ENDED_EARLY, now)
        outcome = "finished" if event.complete else "cancelled"
        self._sessions.end(session, outcome, now, out, output_tokens=event.output_tokens)
        self._sessions.place_waiting(session.model, now, out)

    def _tick(self, now: float, out: list[m.Command]) -> None:
        self.health.tick(now, out)
        self._sessions.tick(now, out)
        self._halves.tick(now)

    def check(self) -> None:
        """Raises AssertionError where the books don't balance; for tests, after each step."""
        self._sessions.check()
        self.health.check()
