"""How a gateway of the simulation carries out its brain's commands, and what it holds the brain to meanwhile."""

from __future__ import annotations

from typing import assert_never

from orchestrator.core import messages as m
from orchestrator.core.spec import Role
from orchestrator.sim.flight import Desk, Flight
from orchestrator.sim.half import Half
from orchestrator.sim.network import Link

TICK_SECONDS = 0.1


class Carrier:
    """The books of one gateway. ``alerts`` counts what its brain gave alarm of."""

    def __init__(self, desk: Desk) -> None:
        self.links: dict[str, Link] = {}
        self.flights: dict[str, Flight] = {}
        self.orphans: dict[str, Half] = {}  # ended prefills of requests that have gone on, by wire id
        self.alerts = 0
        self._desk = desk
        self._clock = desk.clock
        self._network = desk.network
        self._draining: set[str] = set()

    def carry_out(self, command: m.Command) -> None:
        """What the brain wants done."""
        if isinstance(command, m.StartDecode):
            self._start_decode(command)
        elif isinstance(command, m.End):
            self._end(command)
        elif isinstance(command, m.StartPrefill):
            self._start_prefill(command)
        elif isinstance(command, m.Abort):
            self._abort(command)
        elif isinstance(command, m.Release):
            self._release(command)
        elif isinstance(command, m.Forget):
            self._transfer(command.prefill_wire_id)
        elif isinstance(command, m.Alert):
            self.alerts += not command.over
        elif isinstance(command, m.Sick):
            self._desk.took_out += not command.over
        elif isinstance(command, m.TurnedAway):
            raise AssertionError("nobody knocks: simulated requests are read at once")
        else:
            assert_never(command)

    def _start_prefill(self, command: m.StartPrefill) -> None:
        flight = self.flights[command.request_id]
        self._start(flight, command.wire_id, command.worker_id, 1, None, prefill=True)

    def _start_decode(self, command: m.StartDecode) -> None:
        flight = self.flights[command.request_id]
        collect = flight.prefills.get(command.collect) if command.collect and flight.prefills else None
        if command.collect and collect is None:
            self._desk.audit.say(f"{command.request_id}: there is no KV of {command.collect} to collect")
        output = flight.offer.output_tokens - flight.sent
        self._start(flight, command.wire_id, command.worker_id, output, collect, prefill=False)

    def _start(
        self, flight: Flight, wire_id: str, worker_id: str, output: int, collect: Half | None, *, prefill: bool
    ) -> None:
        desk = self._desk
        link = self.links[worker_id]
        worker = link.worker
        if not link.known or worker_id in self._draining or (worker.info.role is Role.PREFILL) is not prefill:
            desk.audit.say(f"{wire_id}: sent to {worker_id}, which takes nothing of the kind")
        waited = self._clock.now - flight.waits_since
        if waited > desk.patience:
            desk.audit.say(f"{wire_id}: started after a wait of {waited:.1f} s")
        offer = flight.offer
        desk.halves += 1
        flight.half = half = Half(
            wire_id,
            link,
            flight,
            desk.halves,
            offer.prompt_tokens + flight.sent,
            output,
            offer.blocks,
            offers=prefill,
            collect=collect,
            base=flight.sent,
            total=worker.output_of(offer),
        )
        if flight.sent:
            half.prompt_goes_on(worker.settings.facts.block_size)
        self._network.start(link, half)

    def _abort(self, command: m.Abort) -> None:
        flight = self._of_wire(command.wire_id)
        half = flight.half if flight else None
        if half is None or half.wire_id != command.wire_id:
            self._desk.audit.say(f"{command.wire_id}: aborted, but it does not run")
            return
        assert flight is not None  # noqa: S101
        flight.stopped(self._clock.now)
        link = self.links[command.worker_id]
        self._network.to_worker(link, link.worker.take_abort, half)

    def _release(self, command: m.Release) -> None:
        half = self._transfer(command.prefill_wire_id)
        link = self.links[command.worker_id]
        if half is not None:
            self._network.to_worker(link, link.worker.take_release, half)

    def _transfer(self, wire_id: str) -> Half | None:
        """Takes an ended prefill out of the books."""
        if orphan := self.orphans.pop(wire_id, None):
            return orphan
        flight = self._of_wire(wire_id)
        return flight.prefills.pop(wire_id, None) if flight and flight.prefills else None

    def _of_wire(self, wire_id: str) -> Flight | None:
        return self.flights.get(wire_id.partition("~")[0])

    def _end(self, command: m.End) -> None:
        report = command.report
        flight = self.flights.get(report.request_id)
        audit, deadline = self._desk.audit, self._desk.deadline
        if flight is None:
            audit.say(f"{report.request_id}: ended twice")
            return
        del self.flights[report.request_id]
        flight.outcome = report.outcome
        now = self._clock.now
        if report.attempts > self._desk.max_attempts:
            audit.say(f"{report.request_id}: {report.attempts} attempts")
        if report.output_tokens != flight.sent and report.outcome == "finished":
            audit.say(f"{report.request_id}: {report.output_tokens} tokens reported, {flight.sent} sent")
        if flight.half is None and now - flight.waits_since > self._desk.patience:
            audit.say(f"{report.request_id}: waited {now - flight.waits_since:.1f} s")
        if deadline is not None and now - flight.arrived_at > deadline + 2 * TICK_SECONDS:
            audit.say(f"{report.request_id}: ended {now - flight.arrived_at - deadline:.1f} s after its deadline")
        flight.half = None
        self._desk.ended(flight, command)
