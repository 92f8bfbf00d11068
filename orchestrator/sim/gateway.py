"""A gateway of the simulation: the shell around its own brain, as a gateway's driver is around the live one.

Frames become events in the driver's order, and commands become messages (``carrier``).
"""

from __future__ import annotations

from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.sim import digest
from orchestrator.sim.carrier import Carrier
from orchestrator.sim.flight import Desk, Flight
from orchestrator.sim.half import Half
from orchestrator.sim.network import RECONNECT_SECONDS, Link
from orchestrator.sim.worker import Frame

LATE_SECONDS = 1.0  # the most that a late report comes behind


class Gateway(Carrier):
    """One gateway process with its own view of the fleet."""

    def __init__(self, index: int, brain: Brain, desk: Desk) -> None:
        super().__init__(desk)
        self.index = index
        self.brain = brain
        self._digest = desk.digest
        self._deep = desk.audit.deep

    @property
    def waiting(self) -> int:
        """Requests that no worker has."""
        return len(self.brain.admission)

    # ---- clients

    def arrive(self, flight: Flight) -> None:
        """A client's request."""
        offer = flight.offer
        now, deadline = self._clock.now, self._desk.deadline
        self.flights[flight.request_id] = flight
        event = m.Arrived(
            flight.request_id,
            self._desk.model,
            offer.prompt_tokens,
            False,
            None if deadline is None else now + deadline,
            offer.blocks,
            offer.tenant,
            0,
            offer.affinity,
            "",
            offer.output_tokens,
            True,
        )
        self._feed(digest.ARRIVED, event, flight.number, offer.prompt_tokens)

    def leave(self, flight: Flight) -> None:
        """A client goes away, if its request has not ended yet."""
        if flight.outcome:
            return
        if flight.half is not None:
            self._count(flight, flight.half)
        self._feed(digest.CANCELLED, m.Cancelled(flight.request_id, flight.sent), flight.number, flight.sent)

    def tick(self) -> None:
        """Time passes."""
        self._feed(digest.TICK, m.Tick(), 0, 0)

    # ---- workers

    def open(self, link: Link) -> None:
        """A session with a worker is open; its first frame says all that it has."""
        worker, now = link.worker, self._clock.now
        if now < link.held_until:
            self._clock.at(link.held_until + RECONNECT_SECONDS, self.open, link)
            return
        if link.known and not link.up:
            self.closed(link, "its session was opened again")
        if not worker.alive or link.known:
            return
        link.session += 1
        link.up = link.known = True
        self._draining.discard(worker.info.worker_id)
        self._feed(digest.WORKER_UP, m.WorkerUp(worker.info), worker.index, worker.info.epoch)
        self._take(link, worker.snapshot(link), cleared=True)

    def lose(self, link: Link, reason: str, reopen_after: float | None) -> None:
        """A session has broken: this gateway hears of it a moment later, and dials again after a while."""
        self._network.to_gateway(link, self._lost, (reason, reopen_after))

    def _lost(self, link: Link, session: int, broken: tuple[str, float | None]) -> None:
        reason, reopen_after = broken
        if session == link.session and link.known:
            self.closed(link, reason)
            if reopen_after is not None:
                self._clock.after(reopen_after, self.open, link)

    def closed(self, link: Link, reason: str) -> None:
        """A session is over."""
        worker = link.worker
        link.known = False
        sent: list[m.Sent] = []
        tokens = 0
        for flight in self.flights.values():
            half = flight.half
            if half is None or half.worker is not worker:
                continue
            if self._count(flight, half):
                sent.append(m.Sent(flight.request_id, flight.sent))
                tokens += flight.sent
                flight.lost_at = self._clock.now
            flight.stopped(self._clock.now)
        event = m.WorkerDown(worker.info.worker_id, reason, tuple(sent))
        self._feed(digest.WORKER_DOWN, event, worker.index, tokens << 16 | worker.info.epoch)

    def held(self, link: Link) -> None:
        """Nothing more comes over this link for a while: what has come by now is kept for the case that it breaks."""
        if self._clock.now >= link.held_until:
            link.reached = {
                flight.half: self._emitted(flight.half)
                for flight in self.flights.values()
                if flight.half is not None and flight.half.worker is link.worker
            }

    def _emitted(self, half: Half) -> int:
        return half.worker.engine.emitted(half, self._clock.now - self._network.weather.delay)

    def _count(self, flight: Flight, half: Half) -> bool:
        """Counts what has come of a half's tokens; False where not even its first one has."""
        if half.offers or flight.sent <= half.base:
            return False
        link = self.links[half.worker.info.worker_id]
        held = self._clock.now < link.held_until
        emitted = link.reached.get(half, 1) if held else self._emitted(half)
        flight.sent = max(flight.sent, half.base + emitted)
        return True

    def framed(self, link: Link, session: int, frame: Frame) -> None:
        """A frame has come."""
        if link.known and session == link.session:
            self._take(link, frame)

    def _take(self, link: Link, frame: Frame, *, cleared: bool = False) -> None:
        worker_id, index = link.worker_id, link.index
        if frame.stored or frame.removed:
            change = m.CacheChanged(worker_id, frame.stored, frame.removed, cleared)
            self._feed(digest.CACHE_CHANGED, change, index, self._digest.told(frame.removed, frame.stored))
        mine = self._take_outputs(frame) if frame.firsts or frame.ended else False
        for half, refusal, detail in frame.refused:
            self._refused(half, refusal, detail)
        for half in frame.failed:
            self._failed(half)
        load, own = frame.load, frame.own[self.index]
        event = m.LoadReported(worker_id, load, own, frame.stepped and (mine or own > 0))
        if self._network.fair:
            self._feed(digest.LOAD_REPORTED, event, index, load.running << 32 | load.kv_blocks_used)
        else:
            self._may_be_lost(link, event)
        if frame.draining:
            self._draining.add(worker_id)
            self._feed(digest.WORKER_DRAINING, m.WorkerDraining(worker_id), index, 0)

    def _take_outputs(self, frame: Frame) -> bool:
        """Whether there were any for this gateway."""
        mine = False
        for half in frame.firsts:
            if half.gateway is self:
                mine = True
                if not half.offers:
                    self._first(half)
        for half in frame.ended:
            if half.gateway is self:
                mine = True
                self._ended(half)
        return mine

    def _refused(self, half: Half, refusal: m.Refusal, detail: str) -> None:
        if half.flight.half is half:
            half.flight.stopped(self._clock.now)
        if refusal is m.Refusal.DRAINING:
            self._draining.add(half.worker.info.worker_id)
        self._feed(digest.REFUSED, m.Refused(half.wire_id, refusal, detail), half.flight.number, 0)

    def _failed(self, half: Half) -> None:
        flight = half.flight
        if flight.half is half:
            flight.stopped(self._clock.now)
        if half.offers:
            self._feed(digest.PREFILL_ENDED, m.PrefillEnded(half.wire_id, False, "an error"), flight.number, 0)
        else:
            event = m.DecodeEnded(half.wire_id, flight.sent, True, "an error")
            self._feed(digest.DECODE_ENDED, event, flight.number, 0)

    def _may_be_lost(self, link: Link, event: m.LoadReported) -> None:
        network = self._network
        if network.late():
            self._clock.after(network.chance() * LATE_SECONDS, self._late, (link, link.session, event))
        elif not network.lost():
            self._late((link, link.session, event))

    def _late(self, message: tuple[Link, int, m.LoadReported]) -> None:
        link, session, event = message
        if link.known and session == link.session:
            about = event.load.running << 32 | event.load.kv_blocks_used
            self._feed(digest.LOAD_REPORTED, event, link.index, about)

    def _first(self, half: Half) -> None:
        flight = half.flight
        if flight.half is not half:
            return
        now = self._clock.now
        if flight.sent != half.base:
            self._desk.audit.say(f"{flight.request_id}: token {half.base} was first token after {flight.sent} others")
        if flight.sent:
            flight.paused = max(flight.paused, now - flight.lost_at)
        else:
            flight.first_at = now
        flight.sent = half.base + 1
        flight.last_at = now
        collected = half.collect
        cached = half.cached if collected is None else collected.cached
        self._feed(digest.FIRST_TOKEN, m.FirstToken(half.wire_id, cached, half.moved), flight.number, cached)

    def _ended(self, half: Half) -> None:
        flight = half.flight
        current = flight.half is half
        if half.offers:
            if current:
                flight.stopped(self._clock.now)
                if flight.prefills is None:
                    flight.prefills = {}
                flight.prefills[half.wire_id] = half
            else:
                self.orphans[half.wire_id] = half
            self._feed(
                digest.PREFILL_ENDED, m.PrefillEnded(half.wire_id, True, "", half.cached), flight.number, half.cached
            )
        elif current:
            flight.sent = half.base + half.emitted + half.output
            if flight.sent != half.total:
                self._desk.audit.say(f"{flight.request_id}: ended with {flight.sent} tokens, not what it asked for")
            flight.last_at = self._clock.now
            self._feed(digest.DECODE_ENDED, m.DecodeEnded(half.wire_id, flight.sent), flight.number, flight.sent)

    def _feed(self, code: int, event: m.Event, subject: int, about: int) -> None:
        """Tells the brain, and has done what it answers; ``code`` is the kind of the event."""
        now = self._clock.now
        commands = self.brain.step(event, now)
        self._digest.add(now, self.index, code, subject, about, commands)
        if commands:
            for command in commands:
                self.carry_out(command)
        if self._deep:
            self.brain.check()
