"""``segue explain``: why did this request go there? From the gateways' memory, or from a recording."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.cli import reading, rpc, run_folder, story_view, terminal
from orchestrator.cli.exits import Exit
from orchestrator.core.errors import ClusterUnreachable, SegueError
from orchestrator.record.codec import encode
from orchestrator.record.lookup import look_up
from orchestrator.record.recording import Recording
from orchestrator.record.stories import KEPT, Found, merged
from orchestrator.record.story import RequestStory

# Calls for each gateway process behind a shared port. The kernel spreads connections over them by chance: 16 times as
# many as there are leave one out in a case of ten million.
_CALLS = 16
_SERVING = ("ready", "draining")
_AT_A_TIME = 16
OUTSIDE_SECONDS = 3.0  # for a gateway that may be out of this machine's reach


class NotKnown(SegueError):  # noqa: N818  # named as its relatives in core.errors
    """Nobody who was asked knows the request."""

    code = "request_not_known"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found, by asking whom."""

    found: Found
    asked: tuple[str, ...]
    silent: tuple[str, ...] = ()  # gateways that no connection reached


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 with the story; 1 where nobody knows the request, or where several have ids that begin so."""
    answer = _in_file(args.file, args.request) if args.file else _live(_address(args), args.request)
    if args.json:
        print(json.dumps(_plain(args.request, answer), indent=2))  # noqa: T201
        return Exit.OK if answer.found.stories else Exit.FAILED
    console = terminal.out()
    for number, story in enumerate(answer.found.stories):
        console.print(*([""] if number else []), story_view.as_text(story), sep="\n", soft_wrap=not console.is_terminal)
    if answer.silent:
        terminal.err().print(f"segue: not asked, as no connection reached it: {', '.join(answer.silent)}")
    if answer.found.ambiguous:
        terminal.err().print(f"segue: several requests begin with {terminal.without_control(args.request)}:")
        for name in answer.found.ambiguous:
            console.print(terminal.without_control(name))
        return Exit.FAILED
    if not answer.found.stories:
        raise _not_known(args, answer)
    return Exit.OK


def _in_file(path: str, request_id: str) -> Answer:
    with Recording(path) as recording, reading.shown(recording) as told:
        found = look_up(recording, request_id, told)
    reading.remarks(recording)
    return Answer(found, (recording.header.gateway,))


def _address(args: argparse.Namespace) -> str:
    if args.address:
        return str(args.address)
    _, record = run_folder.find(args.name)
    if not record.grpc:
        raise ClusterUnreachable(f"cluster {record.name} is {record.phase}", hint="its gateway is not up yet")
    return record.grpc


def _live(address: str, request_id: str) -> Answer:
    """Asks until each gateway process has answered. A cluster's own share a port, and none is to be had by itself;
    others have addresses."""
    gateways = [one for one in rpc.status(address).gateways if one.state in _SERVING]
    sharing = {one.id for one in gateways if not one.outside}
    answers: dict[str, Found] = {}
    for _ in range(max(1, _CALLS * len(sharing))):
        found = rpc.explain(address, request_id)
        answers.setdefault(found.gateway, found)
        if answers.keys() >= sharing:
            break
    others = [one.grpc for one in gateways if one.outside and one.grpc and one.id not in answers]
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for found in filter(None, pool.map(lambda each: _asked(each, request_id), others)):
            answers.setdefault(found.gateway, found)
    silent = tuple(one.id for one in gateways if one.id not in answers)
    return Answer(merged(request_id, list(answers.values())), tuple(sorted(answers)), silent)


def _asked(address: str, request_id: str) -> Found | None:
    """What a gateway outside of Ray knows; None where it can't be reached from here, whatever is there instead."""
    try:
        return rpc.explain(address, request_id, OUTSIDE_SECONDS)
    except SegueError:  # it is named with those that are silent
        return None


def _plain(request_id: str, answer: Answer) -> dict[str, object]:
    """The documented shape; keys may be added to it, never taken away."""
    return {
        "request": request_id,
        "gateways": list(answer.asked),
        "not_asked": list(answer.silent),
        "ambiguous": list(answer.found.ambiguous),
        "stories": [encode(RequestStory, story, whole=True) for story in answer.found.stories],
    }


def _not_known(args: argparse.Namespace, answer: Answer) -> NotKnown:
    where = args.file or ", ".join(answer.asked)
    hint = "" if args.file else f"a gateway remembers the last {KEPT} requests; `segue up --record` keeps all"
    return NotKnown("no request of that id, and none whose id begins so", where=where, hint=hint)
