"""A hash over all that a run's brains were told and what they answered: (time, event, commands), in order.

Python's own hash of numbers is the same in every process (that of text is not), so an event is taken in as the hash of
its numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from orchestrator.core import messages as m
from orchestrator.core.decision import Choice

_CHUNK = 4096
_STARTS = (m.StartDecode, m.StartPrefill)
_KINDS = (
    m.WorkerUp,
    m.WorkerDraining,
    m.WorkerDown,
    m.LoadReported,
    m.CacheChanged,
    m.Arrived,
    m.PrefillEnded,
    m.FirstToken,
    m.DecodeEnded,
    m.Refused,
    m.Cancelled,
    m.Tick,
)
CODES = {kind: code for code, kind in enumerate(_KINDS)}


class Digest:
    """Collects numbers and words and hashes them in large pieces."""

    __slots__ = ("_hash", "_numbers", "_words")

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)
        self._numbers: list[int] = []
        self._words: list[str] = []

    def add(
        self, now: float, gateway: int, event: m.Event, subject: int, about: int, commands: Sequence[m.Command]
    ) -> None:
        """One step of a brain; ``subject`` and ``about`` are the event's own numbers."""
        numbers = self._numbers
        numbers.append(hash((now, gateway, CODES[type(event)], subject, about, len(commands))))
        if commands:
            for command in commands:
                self._command(command)
            if len(numbers) > _CHUNK:
                self._flush()

    def _command(self, command: m.Command) -> None:
        if isinstance(command, _STARTS):
            self._words.append(f"{command.wire_id} {command.worker_id}")
            decision = command.decision
            if decision.on_decode is not None:
                self._numbers.append(_numbers_of(decision.on_decode))
            if decision.on_prefill is not None:
                self._numbers.append(_numbers_of(decision.on_prefill))
        elif isinstance(command, m.End):
            report = command.report
            self._words.append(f"{report.request_id} {report.outcome} {report.output_tokens} {report.attempts}")
        else:
            self._words.append(repr(command))

    def _flush(self) -> None:
        self._hash.update(array("q", self._numbers).tobytes())
        self._hash.update("\n".join(self._words).encode())
        self._numbers.clear()
        self._words.clear()

    def hexdigest(self) -> str:
        """The hash over all steps so far."""
        self._flush()
        return self._hash.hexdigest()


def _numbers_of(choice: Choice) -> int:
    return hash((choice.score, choice.cached_tokens, choice.wait_seconds, choice.work_seconds, choice.depth))
