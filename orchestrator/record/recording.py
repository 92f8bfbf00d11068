"""The file of a recording: JSON, one object a line.

    {"segue_recording": 1, "version": ..., "gateway": ..., "seed": ..., "spec": {...}, ...}
    {"now": 12.5, "event": {"Arrived": {...}}, "commands": [{"StartDecode": {...}}]}
    {"request": "chatcmpl-6f1-0a1b2c3d", "client": "6f1"}
    {"end": "closed", "events": 81}

A header; a line for each step of the brain; one before it for what a request that arrives is called outside; the end.
What a step left empty is left out; ``raised`` names the error of a step that broke. A process that was killed leaves no
end, and its last line may be torn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.core.errors import SegueError
from orchestrator.record.codec import NotPlain, decode, encode

FORMAT = 1


class BadRecording(SegueError):  # noqa: N818  # named as its relatives in core.errors
    """A file that can't be read as a recording."""

    code = "bad_recording"


@dataclass(frozen=True, slots=True)
class Header:
    """Under what a recording was made. ``spec`` is the configuration as ``config.dumps`` writes it."""

    version: str  # Segue's
    gateway: str
    epoch: int
    seed: int
    started: float  # seconds since the Unix epoch
    now: float  # on the brain's clock at that moment
    spec: str

    def wall(self, now: float) -> float:
        """A time of the brain's clock in seconds since the Unix epoch."""
        return self.started + now - self.now


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a brain, still in plain values: most readers look into few of them."""

    number: int  # from 1
    now: float
    event: dict[str, Any]
    commands: list[dict[str, Any]]
    raised: str = ""

    @property
    def kind(self) -> str:
        """The event's class."""
        return next(iter(self.event))


@dataclass(frozen=True, slots=True)
class Alias:
    """What a request is called outside: the client's own id, or the edge's."""

    request: str
    client: str


@dataclass(frozen=True, slots=True)
class End:
    """Why a recording ends, in words; ``closed`` is the regular way. ``events`` counts those before it."""

    end: str
    events: int


CLOSED = "closed"


def header_line(header: Header) -> bytes:
    plain = encode(Header, header)
    return line({"segue_recording": FORMAT, **plain, "spec": json.loads(header.spec)})


def end_line(end: End) -> bytes:
    return line(encode(End, end))


def line(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode() + b"\n"


class Recording:
    """Reads a recording from its beginning to its end, once. ``end`` is None until then, and for one that was cut off.

    Raises:
        BadRecording: no such file, no recording, or one of another format; in ``lines`` a broken line in the middle.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.end: End | None = None
        self.torn = False  # its last line is not whole
        self.read = 0  # bytes so far
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise BadRecording(f"the file can't be read: {error.strerror}", where=str(path)) from error
        try:
            self.size = self.path.stat().st_size
            self.header = self._header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def lines(self) -> Iterator[Step | Alias]:
        """Everything between header and end, in order."""
        number, at = 0, 1
        for raw in self._file:
            self.read += len(raw)
            at += 1
            plain = self._parsed(raw, at)
            if plain is None:
                return
            if "event" in plain:
                number += 1
                yield self._step(plain, number, at)
            elif "client" in plain:
                yield decode(Alias, plain)
            elif "end" in plain:
                self.end = decode(End, plain)
                return
            else:
                raise BadRecording("neither an event nor an end", where=f"{self.path}:{at}")

    def _header(self) -> Header:
        first = self._file.readline()
        self.read = len(first)
        plain = self._parsed(first, 1) if first else None
        if plain is None or "segue_recording" not in plain:
            raise BadRecording(
                "no recording", where=str(self.path), hint="`segue up --record FILE` makes one; its header comes first"
            )
        written = plain.pop("segue_recording")
        if written != FORMAT:
            raise BadRecording(
                f"a recording of format {written}, where this Segue reads {FORMAT}",
                where=str(self.path),
                hint=f"it was written by Segue {plain.get('version')}",
            )
        try:
            return decode(Header, {**plain, "spec": json.dumps(plain.get("spec"))})  # type: ignore[no-any-return]
        except NotPlain as error:
            raise BadRecording(error.what, where=f"{self.path}:1") from error

    def _parsed(self, raw: bytes, at: int) -> dict[str, Any] | None:
        """A line's object; None where it is the last one and torn."""
        whole = raw.endswith(b"\n")
        try:
            plain = json.loads(raw)
            if whole and isinstance(plain, dict):
                return plain
        except ValueError:
            pass
        if whole:
            raise BadRecording("not a line of a recording", where=f"{self.path}:{at}")
        self.torn = True
        return None

    def _step(self, plain: dict[str, Any], number: int, at: int) -> Step:
        try:
            return Step(number, float(plain["now"]), plain["event"], plain.get("commands", []), plain.get("raised", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecording(f"a step without its {error}", where=f"{self.path}:{at}") from error
