"""A hash over all that a run's brains were told and what they answered: (time, event, commands), in order."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct

from orchestrator.core import messages as m
from orchestrator.core.decision import Decision

_PACK = Struct("<dHHqq").pack
_DECISION = Struct("<dqdd")
_CHUNK = 4096
_STARTS = (m.StartDecode, m.StartPrefill)
KINDS = {kind: code for code, kind in enumerate((
    m.WorkerUp, m.WorkerDraining, m.WorkerDown, m.LoadReported, m.CacheChanged, m.Arrived, m.PrefillEnded,
    m.FirstToken, m.DecodeEnded, m.Refused, m.Cancelled, m.Tick,
))}  # fmt: skip


class Digest:
    """Collects bytes and hashes them in large pieces. The hash depends on nothing of the process."""

    __slots__ = ("_hash", "_parts")

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)
        self._parts: list[bytes] = []

    def add(
        self, now: float, gateway: int, event: m.Event, subject: int, about: int, commands: Sequence[m.Command]
    ) -> None:
        """One step of a brain; ``subject`` and ``about`` are the event's own numbers."""
        parts = self._parts
        parts.append(_PACK(now, gateway, KINDS[type(event)], subject, about))
        if commands:
            for command in commands:
                self._command(command)
            if len(parts) > _CHUNK:
                self._flush()

    def _command(self, command: m.Command) -> None:
        parts = self._parts
        if isinstance(command, _STARTS):
            parts.append(f"{command.wire_id} {command.worker_id}".encode())
            self._decision(command.decision)
        elif isinstance(command, m.End):
            report = command.report
            parts.append(f"{report.request_id} {report.outcome} {report.output_tokens} {report.attempts}".encode())
        else:
            parts.append(repr(command).encode())

    def _decision(self, decision: Decision) -> None:
        for choice in (decision.on_decode, decision.on_prefill):
            if choice is not None:
                self._parts.append(
                    _DECISION.pack(choice.score, choice.cached_tokens, choice.wait_seconds, choice.work_seconds)
                )

    def _flush(self) -> None:
        self._hash.update(b"".join(self._parts))
        self._parts.clear()

    def hexdigest(self) -> str:
        """The hash over all steps so far."""
        self._flush()
        return self._hash.hexdigest()
