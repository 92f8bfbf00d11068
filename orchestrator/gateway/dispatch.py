"""Halves of requests on their way to workers: what each engine is asked for, and what it is asked no more."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core import messages as m
from orchestrator.core.errors import SegueError
from orchestrator.core.types import WorkerInfo
from orchestrator.gateway import cluster_core as cc
from orchestrator.gateway.feed import Feed
from orchestrator.gateway.flight import Flight, Flights
from orchestrator.gateway.link import REQUEST_BYTES, Link
from orchestrator.gateway.resuming import prefilled, restores, resumed
from orchestrator.telemetry import logs

log = logs.events("gateway.driver")


class Dispatch:
    """``links`` and ``workers`` are the driver's own, of the sessions that are open now."""

    def __init__(
        self, flights: Flights, feed: Feed, links: Mapping[str, Link], workers: Mapping[str, WorkerInfo]
    ) -> None:
        self._flights = flights
        self._feed = feed
        self._links = links
        self._workers = workers

    def start(self, command: m.StartPrefill | m.StartDecode) -> None:
        """Raises where it can't be sent."""
        flight = self._flights.get(command.request_id)
        if flight is None:
            raise SegueError("a request was to be sent that is not under way")
        if isinstance(command, m.StartPrefill):
            self._start_prefill(command, flight)
        else:
            self._start_decode(command, flight)

    def _start_prefill(self, command: m.StartPrefill, flight: Flight) -> None:
        flight.prefill_wires.add(command.wire_id)
        trace = flight.begin_half("segue.prefill", command.decision)
        flight.longer_prompt = not restores(self._workers.get(command.decision.decode))
        request = cc.for_prefill(prefilled(flight.request, flight.sent, flight.longer_prompt), command.wire_id)
        self._send(flight, command.wire_id, command.worker_id, request, trace)

    def _start_decode(self, command: m.StartDecode, flight: Flight) -> None:
        trace = flight.begin_half("segue.decode", command.decision)
        transfer = flight.transfers[command.collect] if command.collect else None
        flight.prefix_cached = transfer.get("remote_prefill_cached_tokens") if transfer else None
        flight.decode_worker, flight.awaits_token = command.worker_id, True
        here = restores(self._workers[command.worker_id])
        if transfer is None:
            flight.longer_prompt = not here
        asked = resumed(flight.request, flight.sent, flight.longer_prompt, here)
        self._send(flight, command.wire_id, command.worker_id, cc.for_decode(asked, command.wire_id, transfer), trace)

    def _send(
        self, flight: Flight, wire_id: str, worker_id: str, request: cc.EngineCoreRequest, trace: Mapping[str, str]
    ) -> None:
        self._flights.sent(flight, wire_id, worker_id)
        parts = cc.encode_request(request)
        if sum(map(len, parts)) > REQUEST_BYTES:
            what = f"it takes more than {REQUEST_BYTES >> 20} MiB once its images, audio or embeddings are unpacked"
            self._feed.put(m.Refused(wire_id, m.Refusal.INVALID, what))
            return
        self._links[worker_id].submit(wire_id, parts, trace)

    def abort(self, wire_id: str, worker_id: str) -> None:
        """Nothing is heard of that half any more."""
        self._flights.aborted(wire_id)
        if link := self._links.get(worker_id):
            link.abort(wire_id)

    def release(self, prefill_wire_id: str, worker_id: str) -> None:
        """Has the prefill worker free what nobody will collect."""
        transfer = self._flights.take_transfer(prefill_wire_id)
        link = self._links.get(worker_id)
        if transfer is None or link is None:
            log.warning("KV not released: its lease will free it", wire=prefill_wire_id)
            return
        link.release(f"{prefill_wire_id}~r", transfer)
