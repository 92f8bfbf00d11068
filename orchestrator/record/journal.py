"""What a gateway keeps of its brain's steps: the stories of its last requests and, where asked for, a recording."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.core import messages as m
from orchestrator.record.recorder import Recorder
from orchestrator.record.stories import Stories

Step = Callable[[m.Event, float], list[m.Command]]


class Journal:
    """Stands around ``Brain.step``. All calls but ``close`` are the event loop's."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.stories = Stories()
        self.recorder = recorder

    def around(self, step: Step) -> Step:
        """The same step, with each call noted. What it was fed must not change any more."""
        stories, recorder = self.stories, self.recorder

        def noted(event: m.Event, now: float) -> list[m.Command]:
            try:
                commands = step(event, now)
            except Exception as error:
                if recorder is not None:
                    recorder.note(now, event, (), type(error).__name__)
                raise
            stories.note(now, event, commands)
            if recorder is not None:
                recorder.note(now, event, commands)
            return commands

        return noted

    def known_as(self, request_id: str, client_id: str) -> None:
        """What the client calls a request that is about to arrive."""
        self.stories.known_as(request_id, client_id)
        if self.recorder is not None:
            self.recorder.known_as(request_id, client_id)

    def close(self) -> None:
        """Ends the recording; may take a while."""
        if self.recorder is not None:
            self.recorder.close()
