"""The stories of one request in a recording, however long that is."""

from __future__ import annotations

import sys
from collections.abc import Callable

from orchestrator.core import messages as m
from orchestrator.record.codec import NotPlain, decode
from orchestrator.record.ids import Match, match, names
from orchestrator.record.recording import Alias, BadRecording, Recording, Step
from orchestrator.record.stories import Found, Stories

_TELL_EVERY = 1000  # lines
_QUIET = {kind.__name__ for kind in (m.LoadReported, m.CacheChanged, m.Tick, m.WorkerUp, m.WorkerDraining)}


def look_up(recording: Recording, asked: str, told: Callable[[int], None] = lambda _: None) -> Found:
    """As ``Stories.find``, over all that was recorded.

    Args:
        told: is called now and then with the number of bytes read.

    Raises:
        BadRecording: the file breaks in the middle, or is another version's.
    """
    stories = Stories(sys.maxsize, lambda *ids: match(asked, names(*ids)) is not Match.NONE)
    for number, each in enumerate(recording.lines()):
        if isinstance(each, Alias):
            stories.known_as(each.request, each.client)
        elif each.commands or each.kind not in _QUIET:
            _note(each, stories, recording)
        if number % _TELL_EVERY == 0:
            told(recording.read)
    header = recording.header
    return stories.find(asked, header.gateway, header.now - header.started)


def _note(step: Step, stories: Stories, recording: Recording) -> None:
    try:
        stories.note(step.now, decode(m.Event, step.event), [decode(m.Command, plain) for plain in step.commands])
    except NotPlain as error:
        hint = f"it was written by Segue {recording.header.version}"
        raise BadRecording(f"event {step.number}: {error.what}", where=str(recording.path), hint=hint) from error
