"""One of several controllers acts, by a record that they all can read and replace: who holds it, and for how long.

Only a holder renews its record, and each write names the version that it replaces, so that of two one fails. Nobody
reads another's clock: whoever wants the record takes it once it saw it unchanged for ``duration`` by its own clock,
counted from when it saw it; the holder believes in itself for ``hold`` by its own, counted from when it sent what was
then confirmed. As long as no two clocks' rates are further apart than ``duration / hold``, no two believe at a time.

    ASKING   no answer so far
    WAITING  it is another's
    HOLDING  it is ours
    UNSURE   it was ours; nothing was confirmed for too long
    DEPOSED  it was ours, and is another's: for good

A record that somebody deletes by hand protects nobody: who comes anew then makes one at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Standing(StrEnum):
    """See the head of the file."""

    ASKING = "asking"
    WAITING = "waiting"
    HOLDING = "holding"
    UNSURE = "unsure"
    DEPOSED = "deposed"


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds. ``retry`` is between two rounds, of holders and others alike."""

    duration: float = 15.0
    hold: float = 10.0
    retry: float = 2.0


@dataclass(frozen=True, slots=True)
class Record:
    """As it was read. ``holder`` is empty where it was given back; ``version`` is another one after each write."""

    holder: str
    duration: float
    version: str
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """To be written in the place of ``version``, or where there is none if that is empty. ``taken``: from another."""

    holder: str
    version: str
    transitions: int
    taken: bool


class Election:
    """One candidate's view. ``now`` is its own clock, which has to go on while its machine sleeps."""

    def __init__(self, identity: str, terms: Terms | None = None) -> None:
        self.identity = identity
        self.terms = terms or Terms()
        self._answered = False
        self._record: Record | None = None  # as last read or written
        self._known = False  # whether it is what there is now, as far as we know
        self._last: Record | None = None  # of another, as last read
        self._changed_at = 0.0  # when that was first read so
        self._until = float("-inf")
        self._held = self._deposed = False
        self.rival_lives = False  # another's record was seen to change

    def standing(self, now: float) -> Standing:
        if self._deposed:
            return Standing.DEPOSED
        if now < self._until:
            return Standing.HOLDING
        if self._held:
            return Standing.UNSURE
        return Standing.WAITING if self._answered else Standing.ASKING

    @property
    def holder(self) -> str:
        """By what was last read."""
        return self._record.holder if self._record is not None else ""

    @property
    def must_look(self) -> bool:
        """Whether this round begins with reading it. Only a holder knows what it is: what it wrote last."""
        return not self._known or self.holder != self.identity

    def saw(self, record: Record | None, now: float) -> None:
        """It was read; ``now`` is when the answer was there, not when it was asked for."""
        self._answered = self._known = True
        self._record = record
        if record is None or record.holder in ("", self.identity):
            self.rival_lives = False
            return
        self._deposed = self._deposed or self._held
        if self._last is None or self._last.version != record.version:
            self.rival_lives = self.rival_lives or self._last is not None
            self._last, self._changed_at = record, now

    def wish(self, now: float) -> Write | None:
        """What to write now; None where it is to be left alone. After it the record has to be read again."""
        record = self._record
        if self._deposed or not self._known:
            return None
        ours = record is not None and record.holder == self.identity
        if not ours and (record is None or record.holder) and now < self._free_at:
            return None
        self._known = False
        if record is None:
            return Write(self.identity, "", 0, True)
        return Write(self.identity, record.version, record.transitions + (not ours), not ours)

    @property
    def _free_at(self) -> float:
        """When what was last seen in another's hands may be taken."""
        if self._last is None:
            return float("-inf")
        return self._changed_at + max(self.terms.duration, self._last.duration)

    def wrote(self, record: Record, sent: float) -> None:
        """A wish was carried out; ``sent`` is when it was sent."""
        self._answered = self._known = self._held = True
        self._record = record
        self._until = max(self._until, sent + self.terms.hold)

    def resign(self) -> Write | None:
        """Believes no more, from now on; what to write so that others need not wait."""
        believed, self._until = self._until, float("-inf")
        record, self._held = self._record, False
        if record is None or record.holder != self.identity or believed == float("-inf"):
            return None
        return Write("", record.version, record.transitions, False)
