"""What a request's halves hold at workers: claims, wire ids, expected cache entries, KV that waits to be collected.

All of it is taken and given back here, so that the books can be checked in one place.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.decision import Choice, Decision, Rule
from orchestrator.core.fleet import Claim, Fleet
from orchestrator.core.routing import release_through
from orchestrator.core.session import Session, Signal, State

if TYPE_CHECKING:
    from random import Random

ORPHAN_SECONDS = 60.0  # how long an aborted prefill may still report a result that has to be released
NEWS_SECONDS = 0.05  # within which a worker that computed a prompt tells what it stored: some steps
OUTPUT_ROOM = 128  # tokens of output that room is kept for at first; most requests stop long before their limit


class Halves:
    """The books of one gateway's halves."""

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        self._fleet = fleet
        self._rng = rng
        self._by_wire: dict[str, Session] = {}
        self._arrived: deque[tuple[float, Session]] = deque()  # until when their prompts count as on their way
        self._orphans: dict[str, tuple[str, str, float]] = {}  # aborted prefill wire -> (model, worker, give up at)

    def of_wire(self, wire_id: str) -> Session | None:
        """The session whose newest attempt this wire belongs to; None for what is stale."""
        return self._by_wire.get(wire_id)

    # ---- taken

    def begin(self, session: Session, decision: Decision, now: float) -> m.Command:
        """Places a session; returns the command that starts its first half."""
        session.placed(decision)
        if decision.prefill is None:
            session.decode_claim = self._take(session, decision.decode, decision.on_decode, computes=True, decodes=True)
            session.advance(Signal.PLACED_TOGETHER, now)
            return self._start_decode(session, None, decision)
        session.decode_claim = self._take(session, decision.decode, decision.on_decode, computes=False, decodes=True)
        session.prefill_claim = self._take(session, decision.prefill, decision.on_prefill, computes=True, decodes=False)
        session.advance(Signal.PLACED_APART, now)
        session.prefill_wire = f"{session.request_id}~p{session.placements}"
        self._by_wire[session.prefill_wire] = session
        return m.StartPrefill(session.request_id, session.prefill_wire, decision.prefill, decision)

    def hand_over(self, session: Session, decision: Decision, now: float) -> m.Command:
        """Starts the decode half of a session whose prefill has ended."""
        collect = session.prefill_wire
        session.advance(Signal.PREFILL_DONE, now)
        if decision.rule is Rule.RESERVED_LOST:
            self._left(session.decode_claim)  # it may still be there, and drain
            session.decode_worker = decision.decode
            session.decode_claim = self._take(
                session, decision.decode, decision.on_decode, computes=False, decodes=True
            )
        return self._start_decode(session, collect, decision)

    def _start_decode(self, session: Session, collect: str | None, decision: Decision) -> m.Command:
        session.decode_wire = f"{session.request_id}~d{session.placements}"
        self._by_wire[session.decode_wire] = session
        return m.StartDecode(session.request_id, session.decode_wire, session.decode_worker, collect, decision)

    def _take(
        self, session: Session, worker_id: str, choice: Choice | None, *, computes: bool, decodes: bool
    ) -> Claim | None:
        view = self._fleet.get(worker_id)
        if view is None:
            return None
        cached = choice.cached_tokens if choice is not None else 0
        size = view.info.facts.block_size if view.info.facts else 0
        room = session.prompt_tokens + (min(session.output_limit, OUTPUT_ROOM) if decodes else 0)
        tokens = max(0, session.prompt_tokens - cached) if computes else 0
        claim = self._fleet.claim(view, session.request_id, tokens, -(-room // size) if size else 0)
        if session.blocks and size:
            prompt = view.index.routed(view.slot, session.blocks)
            if prompt is not None:
                session.expected += (prompt,)
        return claim

    # ---- given back

    def prefill_ended(self, session: Session) -> None:
        """The prefill engine is done with it; its KV may still wait there."""
        self._by_wire.pop(session.prefill_wire, None)
        self._left(session.prefill_claim)

    def refused(self, session: Session, wire_id: str) -> None:
        """A worker did not take this half: there is nothing to abort there."""
        del self._by_wire[wire_id]
        if wire_id == session.prefill_wire:
            session.prefill_wire = ""

    def stop(self, session: Session, now: float, out: list[m.Command]) -> None:
        """Aborts what may still run and frees what a finished prefill left, on workers that are still there."""
        if self._by_wire.pop(session.prefill_wire, None) and session.prefill_worker in self._fleet:
            self._orphans[session.prefill_wire] = (session.model, session.prefill_worker, now + ORPHAN_SECONDS)
            out.append(m.Abort(session.prefill_wire, session.prefill_worker))
        if self._by_wire.pop(session.decode_wire, None) and session.decode_worker in self._fleet:
            # An engine that aborts lets go of the KV too.
            out.append(m.Abort(session.decode_wire, session.decode_worker))
        elif session.prefill_wire and session.state is State.DECODING:
            out.append(self.release(session.prefill_wire, session.model, session.prefill_worker))
        self.leave(session)

    def leave(self, session: Session) -> None:
        """The session is at no worker any more."""
        self._left(session.prefill_claim)
        self._left(session.decode_claim)
        session.prefill_claim = session.decode_claim = None
        self._by_wire.pop(session.decode_wire, None)
        self._settle(session)

    def _left(self, claim: Claim | None) -> None:
        if claim is not None:
            self._fleet.left(claim)

    def arrived(self, session: Session, now: float) -> None:
        """Its prompt was computed. What the worker stored of it may be told a little later than its first token."""
        self._arrived.append((now + NEWS_SECONDS, session))
        self._settle_arrived(now)

    def _settle_arrived(self, now: float) -> None:
        while self._arrived and self._arrived[0][0] <= now:
            self._settle(self._arrived.popleft()[1])

    def _settle(self, session: Session) -> None:
        """Its prompt is not on its way any more: by now the workers have said what they stored of it, or never will."""
        if session.expected:
            index = self._fleet.index(session.model)
            for prompt in session.expected:
                index.settled(prompt)
            session.expected = ()

    # ---- KV that nobody collects

    def release(self, prefill_wire: str, model: str, prefill_worker: str) -> m.Command:
        """Has the blocks freed that a finished prefill left."""
        through = release_through(model, prefill_worker, self._fleet, self._rng)
        return m.Forget(prefill_wire) if through is None else m.Release(prefill_wire, through)

    def orphan_ended(self, event: m.PrefillEnded) -> m.Command | None:
        """A prefill that was given up on came to its end all the same."""
        model, worker_id, _ = self._orphans.pop(event.wire_id, ("", "", 0.0))
        return self.release(event.wire_id, model, worker_id) if event.collectable else None

    def tick(self, now: float) -> None:
        """Stops waiting for aborted prefills that said nothing more, and for what prompts that were computed left."""
        self._settle_arrived(now)
        while self._orphans:
            wire_id, (_, _, until) = next(iter(self._orphans.items()))
            if until > now:
                return
            del self._orphans[wire_id]

    def kv_bytes(self, session: Session) -> int:
        """What the hand-over moved."""
        moved = (session.began or session).transferred_tokens
        if not moved:
            return 0
        view = self._fleet.get(session.decode_worker)
        facts = view.info.facts if view else None
        if facts is None:
            return 0
        return -(-moved // facts.block_size) * facts.kv_block_bytes

    def check(self, sessions: dict[str, Session]) -> None:
        """Raises AssertionError where the books don't balance; for tests."""
        self._fleet.check()
        for view in self._fleet:
            for claim in view.claims:
                session = sessions[claim.request_id]
                assert claim is session.prefill_claim or claim is session.decode_claim, claim.request_id  # noqa: S101
                assert view.info.worker_id in (session.prefill_worker, session.decode_worker), claim.request_id  # noqa: S101
        for session in sessions.values():
            assert session.state is not State.WAITING or not session.expected, session.request_id  # noqa: S101
        for wire_id, session in self._by_wire.items():
            assert sessions.get(session.request_id) is session, wire_id  # noqa: S101
            assert wire_id in (session.prefill_wire, session.decode_wire), wire_id  # noqa: S101
