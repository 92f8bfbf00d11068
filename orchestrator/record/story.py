"""What happened to a request, told from the steps of the brain that had to do with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.core import messages as m
from orchestrator.core.decision import Decision, Wait
from orchestrator.core.types import RequestReport


class What(StrEnum):
    """What a moment of a story was."""

    ARRIVED = "arrived"
    PREFILL_SENT = "prefill sent"
    PREFILL_ENDED = "prefill ended"
    PREFILL_FAILED = "prefill failed"
    DECODE_SENT = "decode sent"
    FIRST_TOKEN = "first token"  # noqa: S105
    DECODE_ENDED = "decode ended"
    DECODE_FAILED = "decode failed"
    REFUSED = "refused"
    WORKER_LOST = "worker lost"
    CANCELLED = "cancelled"
    COMPLETE = "complete"  # the front end had all it wanted (a stop string)
    ABORTED = "aborted"
    RELEASED = "KV released"
    LEFT_TO_LEASE = "KV left to its lease"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Moment:
    """``seconds`` are since the request's arrival. Counts are None where the moment does not tell them."""

    seconds: float
    what: What
    worker: str = ""
    wire_id: str = ""
    detail: str = ""
    decision: Decision | None = None
    cached_tokens: int | None = None
    transferred_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RequestStory:
    """One sequence from its arrival to its outcome, or as far as it got."""

    request_id: str
    model: str
    arrived: float  # seconds since the Unix epoch
    prompt_tokens: int
    client_id: str = ""  # what it is called outside
    gateway: str = ""
    tenant: str = ""
    priority: int = 0
    adapter: str = ""
    blocks: int = 0  # whole blocks of its prompt that have hashes
    output_limit: int = 0
    local_only: bool = False
    deadline_seconds: float | None = None  # since its arrival
    moments: tuple[Moment, ...] = ()
    left_out: int = 0  # moments in the middle of a story that is too long
    error: str = ""  # the code of what the client was told
    outcome: RequestReport | None = None
    waits: Wait | None = None  # why it is sent nowhere yet


Said = tuple[float, Any, str]  # when; an event or a command; the worker that it was about


def moment(said: Said, arrived: float) -> Moment:
    """An event or a command as a moment of its request's story; ``arrived`` on the same clock."""
    at, message, worker = said
    return _TELL[type(message)](message, at - arrived, worker)


def _arrived(event: m.Arrived, at: float, worker: str) -> Moment:
    return Moment(at, What.ARRIVED)


def _prefill_sent(command: m.StartPrefill, at: float, worker: str) -> Moment:
    return Moment(at, What.PREFILL_SENT, command.worker_id, command.wire_id, decision=command.decision)


def _decode_sent(command: m.StartDecode, at: float, worker: str) -> Moment:
    where = f"fetches the KV of {command.collect}" if command.collect else "computes the prompt itself"
    return Moment(at, What.DECODE_SENT, command.worker_id, command.wire_id, where, command.decision)


def _prefill_ended(event: m.PrefillEnded, at: float, worker: str) -> Moment:
    what = What.PREFILL_ENDED if event.collectable else What.PREFILL_FAILED
    return Moment(at, what, worker, event.wire_id, event.detail, cached_tokens=event.cached_tokens)


def _first_token(event: m.FirstToken, at: float, worker: str) -> Moment:
    cached, moved = event.cached_tokens, event.transferred_tokens
    return Moment(at, What.FIRST_TOKEN, worker, event.wire_id, cached_tokens=cached, transferred_tokens=moved)


def _decode_ended(event: m.DecodeEnded, at: float, worker: str) -> Moment:
    what = What.DECODE_FAILED if event.failed else What.DECODE_ENDED
    return Moment(at, what, worker, event.wire_id, event.detail, output_tokens=event.output_tokens)


def _refused(event: m.Refused, at: float, worker: str) -> Moment:
    detail = f"{event.refusal}: {event.detail}" if event.detail else event.refusal
    return Moment(at, What.REFUSED, worker, event.wire_id, detail)


def _cancelled(event: m.Cancelled, at: float, worker: str) -> Moment:
    what = What.COMPLETE if event.complete else What.CANCELLED
    return Moment(at, what, output_tokens=event.output_tokens)


def _worker_lost(event: m.WorkerDown, at: float, worker: str) -> Moment:
    return Moment(at, What.WORKER_LOST, event.worker_id, detail=event.reason)


def _aborted(command: m.Abort, at: float, worker: str) -> Moment:
    return Moment(at, What.ABORTED, command.worker_id, command.wire_id)


def _released(command: m.Release, at: float, worker: str) -> Moment:
    return Moment(at, What.RELEASED, command.worker_id, command.prefill_wire_id)


def _left_to_lease(command: m.Forget, at: float, worker: str) -> Moment:
    return Moment(at, What.LEFT_TO_LEASE, worker, command.prefill_wire_id)


def _ended(command: m.End, at: float, worker: str) -> Moment:
    report = command.report
    detail = f"{report.outcome}: {report.detail}" if report.detail else report.outcome
    return Moment(at, What.ENDED, detail=detail)


_TELL: dict[type, Callable[[Any, float, str], Moment]] = {
    m.Arrived: _arrived,
    m.StartPrefill: _prefill_sent,
    m.PrefillEnded: _prefill_ended,
    m.StartDecode: _decode_sent,
    m.FirstToken: _first_token,
    m.DecodeEnded: _decode_ended,
    m.Refused: _refused,
    m.Cancelled: _cancelled,
    m.WorkerDown: _worker_lost,
    m.Abort: _aborted,
    m.Release: _released,
    m.Forget: _left_to_lease,
    m.End: _ended,
}
