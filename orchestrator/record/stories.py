"""The stories of the requests that a gateway had last, gathered from its brain's steps.

It stands on the path of every event, so it only keeps references; ``find`` makes words of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.core import messages as m
from orchestrator.core.decision import Wait
from orchestrator.record.ids import Match, match, names
from orchestrator.record.story import RequestStory, Said, moment

KEPT = 4096  # requests that ended
_LONG = 64  # moments; a request that is refused again and again has no end of them
_SHOWN_NAMES = 20


@dataclass(slots=True)
class _Request:
    arrival: m.Arrived  # without its blocks, which the story only counts
    blocks: int
    client_id: str
    arrived: float
    said: list[Said] = field(default_factory=list)
    running: dict[str, str] = field(default_factory=dict)  # wire id -> worker
    wires: set[str] = field(default_factory=set)  # a worker that was full leaves its wire id to the next one
    left_out: int = 0
    end: m.End | None = None

    def say(self, now: float, message: Any, worker: str = "") -> None:
        if len(self.said) >= _LONG:
            del self.said[_LONG // 2]
            self.left_out += 1
        self.said.append((now, message, worker))


@dataclass(frozen=True, slots=True)
class Found:
    """Stories of one request, a sequence each; or, where the id's beginning fits several requests, their names."""

    gateway: str
    stories: tuple[RequestStory, ...] = ()
    ambiguous: tuple[str, ...] = ()


def merged(asked: str, found: Sequence[Found]) -> Found:
    """What several gateways know of one id."""
    stories = [
        (match(asked, names(story.request_id, story.client_id)), story) for one in found for story in one.stories
    ]
    best = max((fit for fit, _ in stories), default=Match.NONE)
    chosen = [story for fit, story in stories if fit is best]
    called = [name for one in found for name in one.ambiguous]
    called += [names(story.request_id, story.client_id)[-1] for story in chosen]
    several = dict.fromkeys(called)
    if best is not Match.WHOLE and len(several) > 1:
        return Found("", ambiguous=tuple(several))
    return Found("", tuple(sorted(chosen, key=lambda story: story.arrived)))


class Stories:
    """Everything that is under way, and the last ``kept`` requests that ended.

    Args:
        wanted: which requests to follow, by (request id, the client's id); None for all.
    """

    def __init__(self, kept: int = KEPT, wanted: Callable[[str, str], bool] | None = None) -> None:
        self._kept = kept
        self._wanted = wanted
        self._live: dict[str, _Request] = {}
        self._ended: dict[str, _Request] = {}  # the oldest end first
        self._wires: dict[str, _Request] = {}
        self._names: dict[str, str] = {}  # of requests that are about to arrive
        self._takes: dict[type, Callable[[float, Any], None]] = {
            m.Arrived: self._arrived,
            m.PrefillEnded: self._half_ended,
            m.DecodeEnded: self._half_ended,
            m.Refused: self._half_ended,
            m.FirstToken: self._first_token,
            m.Cancelled: self._cancelled,
            m.WorkerDown: self._worker_down,
            m.StartPrefill: self._sent,
            m.StartDecode: self._sent,
            m.Abort: self._aborted,
            m.Release: self._let_go,
            m.Forget: self._let_go,
            m.End: self._end,
        }

    def known_as(self, request_id: str, client_id: str) -> None:
        """What the client calls a request that is about to arrive."""
        self._names[request_id] = client_id

    def note(self, now: float, event: m.Event, commands: Sequence[m.Command]) -> None:
        """A step of the brain."""
        if take := self._takes.get(type(event)):
            take(now, event)
        for command in commands:
            if take := self._takes.get(type(command)):
                take(now, command)

    def find(
        self, asked: str, gateway: str = "", epoch_at: float = 0.0, waits: Callable[[str], Wait | None] = lambda _: None
    ) -> Found:
        """The request with that id, or whose ids begin so.

        Args:
            gateway: its name.
            epoch_at: the Unix epoch on the brain's clock, so that stories can tell the time of day.
            waits: ``Brain.waits``, where there is a brain to be asked.
        """
        fits = [(match(asked, names(*each)), each, request) for each, request in self._everyone()]
        best = max((fit for fit, *_ in fits), default=Match.NONE)
        chosen = [(each, request) for fit, each, request in fits if fit is best and fit is not Match.NONE]
        called = list(dict.fromkeys(names(*each)[-1] for each, _ in chosen))
        if best is Match.BEGINNING and len(called) > 1:
            return Found(gateway, ambiguous=tuple(called[-_SHOWN_NAMES:]))
        stories = (_story(request, gateway, epoch_at) for _, request in chosen)
        return Found(gateway, tuple(replace(story, waits=waits(story.request_id)) for story in stories))

    def _everyone(self) -> Iterator[tuple[tuple[str, str], _Request]]:
        for group in (self._ended, self._live):
            for request_id, request in group.items():
                yield (request_id, request.client_id), request

    # ---- what happens

    def _arrived(self, now: float, event: m.Arrived) -> None:
        client_id = self._names.pop(event.request_id, "")
        if self._wanted is not None and not self._wanted(event.request_id, client_id):
            return
        arrival = replace(event, blocks=()) if len(event.blocks) else event
        request = self._live[event.request_id] = _Request(arrival, len(event.blocks), client_id, now)
        request.said.append((now, arrival, ""))

    def _half_ended(self, now: float, event: m.PrefillEnded | m.DecodeEnded | m.Refused) -> None:
        if request := self._wires.get(event.wire_id):
            request.say(now, event, request.running.pop(event.wire_id, ""))

    def _first_token(self, now: float, event: m.FirstToken) -> None:
        if request := self._wires.get(event.wire_id):
            request.say(now, event, request.running.get(event.wire_id, ""))

    def _cancelled(self, now: float, event: m.Cancelled) -> None:
        if request := self._live.get(event.request_id):
            request.say(now, event)

    def _worker_down(self, now: float, event: m.WorkerDown) -> None:
        for request in self._live.values():
            lost = [wire_id for wire_id, worker in request.running.items() if worker == event.worker_id]
            if lost:
                request.say(now, event)
            for wire_id in lost:
                del request.running[wire_id]

    def _sent(self, now: float, command: m.StartPrefill | m.StartDecode) -> None:
        if request := self._live.get(command.request_id):
            request.running[command.wire_id] = command.worker_id
            request.wires.add(command.wire_id)
            self._wires[command.wire_id] = request
            request.say(now, command)

    def _aborted(self, now: float, command: m.Abort) -> None:
        if request := self._wires.get(command.wire_id):
            request.running.pop(command.wire_id, None)
            request.say(now, command)

    def _let_go(self, now: float, command: m.Release | m.Forget) -> None:
        if request := self._wires.get(command.prefill_wire_id):
            request.say(now, command)

    def _end(self, now: float, command: m.End) -> None:
        request = self._live.pop(command.report.request_id, None)
        if request is None:
            return
        request.say(now, command)
        request.end = command
        for wire_id in request.wires:
            del self._wires[wire_id]
        self._ended[command.report.request_id] = request
        if len(self._ended) > self._kept:
            del self._ended[next(iter(self._ended))]


def _story(request: _Request, gateway: str, epoch_at: float) -> RequestStory:
    arrival, end = request.arrival, request.end
    deadline = arrival.deadline
    return RequestStory(
        request_id=arrival.request_id,
        model=arrival.model,
        arrived=request.arrived - epoch_at,
        prompt_tokens=arrival.prompt_tokens,
        client_id=request.client_id,
        gateway=gateway,
        tenant=arrival.tenant,
        priority=arrival.priority,
        adapter=arrival.adapter,
        blocks=request.blocks,
        output_limit=arrival.output_limit,
        local_only=arrival.local_only,
        deadline_seconds=None if deadline is None else deadline - request.arrived,
        moments=tuple(moment(said, request.arrived) for said in request.said),
        left_out=request.left_out,
        error=end.error.code if end is not None and end.error is not None else "",
        outcome=end.report if end is not None else None,
    )
