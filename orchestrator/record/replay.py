"""A recording, fed to a fresh brain: the same events have to bring the same commands, or the first difference is told.

Commands are compared as they are written, to the last bit of every score and time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from random import Random
from typing import Any

from orchestrator.config import loads
from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.record.codec import NotPlain, decode, encode
from orchestrator.record.recording import Alias, BadRecording, Header, Recording, Step
from orchestrator.record.stories import Stories
from orchestrator.record.story import RequestStory

_STORIES = 256  # of ended requests, for the words about a difference
_TELL_EVERY = 1000  # steps

Plain = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One value that differs; the path is empty where a whole command is missing on one side (None)."""

    path: str
    recorded: Any
    replayed: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step whose commands were others. ``recorded`` and ``replayed`` are the first pair that differs."""

    number: int  # of the event, from 1
    now: float
    event: Plain
    index: int  # of the command, from 0
    recorded: Plain | None
    replayed: Plain | None
    fields: tuple[Field, ...]
    request_id: str = ""
    stories: tuple[RequestStory, ...] = ()  # of that request, up to the recorded step


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it. ``end`` is the recording's own, None if it was cut off."""

    header: Header
    events: int
    commands: int
    difference: Difference | None
    end: str | None
    torn: bool


def brain_of(header: Header) -> Brain:
    """A brain as the recorded gateway had it, before its first event. Raises BadRecording."""
    try:
        return Brain.of(loads(header.spec), Random(header.seed))  # noqa: S311  (the same as then, not a secret)
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecording(
            f"its configuration can't be read: {error!r}", hint=f"it was written by Segue {header.version}"
        ) from error


def replay(recording: Recording, told: Callable[[int], None] = lambda _: None) -> Replayed:
    """Replays up to the first difference.

    Args:
        told: is called now and then with the number of bytes read.

    Raises:
        BadRecording: the file breaks in the middle, or is another version's.
    """
    brain, stories = brain_of(recording.header), Stories(kept=_STORIES)
    events = commands = 0
    difference = None
    for each in recording.lines():
        if isinstance(each, Alias):
            stories.known_as(each.request, each.client)
            continue
        event = _event(each, recording)
        got, raised = _step(brain, event, each.now)
        plain = [encode(m.Command, command) for command in got]
        if plain != each.commands or raised != each.raised:
            difference = _difference(each, plain, raised, stories, recording.header)
            break
        stories.note(each.now, event, got)
        events, commands = events + 1, commands + len(plain)
        if events % _TELL_EVERY == 0:
            told(recording.read)
    return Replayed(
        recording.header, events, commands, difference, recording.end.end if recording.end else None, recording.torn
    )


def _event(step: Step, recording: Recording) -> m.Event:
    try:
        return decode(m.Event, step.event)  # type: ignore[no-any-return]
    except NotPlain as error:
        raise BadRecording(
            f"event {step.number}: {error.what}",
            where=str(recording.path),
            hint=f"it was written by Segue {recording.header.version}",
        ) from error


def _step(brain: Brain, event: m.Event, now: float) -> tuple[list[m.Command], str]:
    """The commands, or none and the name of the error that the step raised."""
    try:
        return brain.step(event, now), ""
    except Exception as error:  # a defect of the brain: if it is recorded too, the replay goes on past it
        return [], type(error).__name__


def _difference(step: Step, plain: list[Plain], raised: str, stories: Stories, header: Header) -> Difference:
    recorded = [*step.commands, *_as_command(step.raised)]
    replayed = [*plain, *_as_command(raised)]
    pairs = enumerate(zip_longest(recorded, replayed))
    index, (ours, theirs) = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
    stories.note(step.now, decode(m.Event, step.event), [])
    request_id = _request_of(ours) or _request_of(theirs) or _request_of(step.event)
    found = stories.find(request_id, header.gateway, header.now - header.started) if request_id else None
    return Difference(
        number=step.number,
        now=step.now,
        event=step.event,
        index=index,
        recorded=ours,
        replayed=theirs,
        fields=tuple(_fields("", ours, theirs)),
        request_id=request_id,
        stories=found.stories if found else (),
    )


def _as_command(raised: str) -> list[Plain]:
    return [{"raised": raised}] if raised else []


def _request_of(plain: Plain | None) -> str:
    """The request that an event or a command is about; empty for one that is about none."""
    if plain is None or "raised" in plain:
        return ""
    (fields,) = plain.values()
    wire_id = fields.get("wire_id") or fields.get("prefill_wire_id") or ""
    found = fields.get("request_id") or fields.get("report", {}).get("request_id") or wire_id.rpartition("~")[0]
    return str(found)


def _fields(path: str, recorded: Any, replayed: Any) -> Iterator[Field]:
    """The innermost values that differ."""
    if recorded == replayed:
        return
    if isinstance(recorded, dict) and isinstance(replayed, dict):
        for key in dict.fromkeys((*recorded, *replayed)):
            yield from _fields(f"{path}.{key}" if path else key, recorded.get(key), replayed.get(key))
        return
    yield Field(path, recorded, replayed)
