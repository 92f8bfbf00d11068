"""A hash over all that a run's brains were told and what they answered: (time, event, commands), in order.

What is taken in is numbers (never NaN), which hash alike in every process, and a few words, which don't.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from struct import pack
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.decision import Choice
from orchestrator.sim.rolling import Rolling

if TYPE_CHECKING:
    from mypy_extensions import i64

_CHUNK = 256  # numbers: what is few is still near the processor when it is hashed
_CODE = 50  # bits below an event's code, and below its gateway's index
_GATEWAY = 40

# What a brain was told.
WORKER_UP = 0
WORKER_DRAINING = 1
WORKER_DOWN = 2
LOAD_REPORTED = 3
CACHE_CHANGED = 4
ARRIVED = 5
PREFILL_ENDED = 6
FIRST_TOKEN = 7
DECODE_ENDED = 8
REFUSED = 9
CANCELLED = 10
TICK = 11


class Digest:
    """Collects numbers and words and hashes them in large pieces."""

    __slots__ = ("_changed", "_hash", "_hashed", "_now", "_numbers", "_times", "_words")

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)
        self._times = Rolling()
        self._numbers = Rolling()
        self._changed = Rolling()
        self._words: list[str] = []
        self._now = 0.0  # of the newest step: several come at one time
        self._hashed: i64 = 0

    def add(self, now: float, gateway: int, code: int, subject: int, about: int, commands: Sequence[m.Command]) -> None:
        """One step of a brain; ``subject`` and ``about`` are the event's own numbers, each its own hash."""
        numbers = self._numbers
        told: i64 = code
        by: i64 = gateway
        of: i64 = subject
        if now != self._now:
            self._now, self._hashed = now, hash(now)
        self._times.add(self._hashed)
        numbers.add((told << _CODE) + (by << _GATEWAY) + of)
        numbers.add(about)
        if commands:
            numbers.add(len(commands))
            for command in commands:
                self._command(command)
            if numbers.count > _CHUNK:
                self._flush()

    def told(self, removed: Sequence[int], stored: Sequence[int]) -> int:
        """One number for a change of a cache, and its own hash."""
        changed = self._of(stored)
        if removed:
            pair = self._changed
            pair.add(hash(self._of(removed)))
            pair.add(hash(changed))
            changed = pair.take()
        return hash(changed)

    def _of(self, blocks: Sequence[int]) -> int:
        changed = self._changed
        for block in blocks:
            changed.add(block)
        return changed.take()

    def _command(self, command: m.Command) -> None:
        if isinstance(command, (m.StartDecode, m.StartPrefill)):
            self._words.append(f"{command.wire_id} {command.worker_id}")
            decision = command.decision
            if decision.on_decode is not None:
                self._choice(decision.on_decode)
            if decision.on_prefill is not None:
                self._choice(decision.on_prefill)
        elif isinstance(command, m.End):
            report = command.report
            self._words.append(f"{report.request_id} {report.outcome} {report.output_tokens} {report.attempts}")
        else:
            self._words.append(repr(command))

    def _choice(self, choice: Choice) -> None:
        times, numbers = self._times, self._numbers
        times.add(hash(choice.score))
        times.add(hash(choice.wait_seconds))
        times.add(hash(choice.work_seconds))
        numbers.add(choice.cached_tokens)
        numbers.add(choice.depth)

    def _flush(self) -> None:
        self._hash.update(pack("qq", self._times.take(), self._numbers.take()))
        self._hash.update("\n".join(self._words).encode())
        self._words.clear()

    def hexdigest(self) -> str:
        """The hash over all steps so far."""
        self._flush()
        return self._hash.hexdigest()
