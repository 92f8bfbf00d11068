"""What engines put out, on its way to the front end.

The path of a token does not touch the brain: only what changes a request's state (first token, end) does.
"""

from __future__ import annotations

from orchestrator.core import messages as m
from orchestrator.core.types import WorkerInfo
from orchestrator.gateway import cluster_core as cc
from orchestrator.gateway.feed import Feed
from orchestrator.gateway.flight import Flight, Flights
from orchestrator.telemetry.metrics import GatewayMetrics

_LOST_OUTPUT = (cc.FinishReason.ERROR, cc.FinishReason.ABORT)  # not the request's own end: the engine gave it up


class Outputs:
    """Turns outputs into events where they end or begin something."""

    def __init__(self, flights: Flights, feed: Feed, metrics: GatewayMetrics) -> None:
        self._flights = flights
        self._feed = feed
        self._metrics = metrics

    def take(self, worker: WorkerInfo, outputs: list[cc.EngineCoreOutput]) -> None:
        """Those of one frame."""
        now = self._feed.now()
        onward: dict[cc.ClusterCore, list[cc.EngineCoreOutput]] = {}
        ended: list[m.Event] = []
        for output in outputs:
            wire_id = output.request_id
            flight = self._flights.of_wire(wire_id)
            if flight is None or wire_id in flight.prefill_wires:
                self._prefill(output)
            elif output.finish_reason in _LOST_OUTPUT:
                detail = f"the engine ended it ({output.finish_reason})"
                ended.append(m.DecodeEnded(wire_id, flight.output_tokens, failed=True, detail=detail))
            else:
                self._decode(worker, flight, output, now)
                onward.setdefault(flight.core, []).append(output)
                if output.finished:
                    ended.append(m.DecodeEnded(wire_id, flight.output_tokens))
        for core, batch in onward.items():
            core.push(batch)
        for event in ended:
            self._feed.put(event)

    def _prefill(self, output: cc.EngineCoreOutput) -> None:
        """A prefill has ended, maybe one that was given up on and now has to be released; or something stale."""
        if not output.finished:
            return
        transfer = output.kv_transfer_params
        if transfer:
            self._flights.keep_transfer(output.request_id, transfer)
        detail = "" if transfer else f"no KV to collect ({output.finish_reason})"
        cached = transfer.get("remote_prefill_cached_tokens") if transfer else None
        self._feed.put(m.PrefillEnded(output.request_id, bool(transfer), detail, cached))

    def _decode(self, worker: WorkerInfo, flight: Flight, output: cc.EngineCoreOutput, now: float) -> None:
        count = len(output.new_token_ids)
        if count:
            first = flight.output_tokens == 0
            if flight.awaits_token:
                flight.awaits_token = False
                self._feed.put(m.FirstToken(output.request_id, *cc.prompt_origin(output, flight.prefix_cached)))
                if not first:
                    output.prefill_stats = None  # the client was told of the prompt's own
            gap = None if first else now - flight.last_token_at
            self._metrics.tokens(worker.model, worker.role.value, worker.worker_id, gap, count)
            flight.output_tokens += count
            if flight.resumable:
                flight.sent += output.new_token_ids
            flight.last_token_at = now
        output.request_id = flight.request_id
