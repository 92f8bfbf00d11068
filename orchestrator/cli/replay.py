"""``segue replay``: a recording, decided again. What comes out differently is shown where it begins."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.cli import reading, story_view, terminal
from orchestrator.cli.exits import Exit
from orchestrator.record.codec import encode
from orchestrator.record.recording import Recording
from orchestrator.record.replay import Difference, Field, Replayed, replay
from orchestrator.record.story import RequestStory

_LONG = 48  # characters of a packed row of hashes, say, that nobody reads


def run(args: argparse.Namespace) -> Exit:
    """Exit 0 if every command came out the same, 1 if one didn't."""
    began = time.perf_counter()
    with Recording(args.file) as recording, reading.shown(recording) as told:
        outcome = replay(recording, told)
    seconds = time.perf_counter() - began
    # A recording that differs was not read to its end.
    remarks = [] if outcome.difference else reading.remarks(recording)
    if args.json:
        print(json.dumps(_plain(outcome, remarks, seconds), indent=2))  # noqa: T201
    else:
        _show(terminal.out(), outcome, seconds)
    return Exit.FAILED if outcome.difference else Exit.OK


def _show(console: Console, outcome: Replayed, seconds: float) -> None:
    header = outcome.header
    console.print(
        f"gateway {header.gateway}, from {story_view.clock(header.started)}, Segue {header.version}", style="dim"
    )
    counts = f"{outcome.events} events, {outcome.commands} commands"
    if outcome.difference is None:
        console.print(
            Text.assemble(("the same", "bold green"), f": {counts}, replayed in {terminal.duration(seconds)}")
        )
        return
    _show_difference(console, outcome.difference, header.wall(outcome.difference.now), outcome)


def _show_difference(console: Console, found: Difference, at: float, outcome: Replayed) -> None:
    wrap = not console.is_terminal
    after = story_view.span(found.now - outcome.header.now)
    console.print(
        Text.assemble(
            ("different", "bold red"), f": event {found.number}, {after} after the start, {story_view.clock(at)}"
        )
    )
    console.print(f"  event     {_short(found.event)}", soft_wrap=wrap)
    console.print(f"  recorded  {_short(found.recorded)}", soft_wrap=wrap)
    console.print(f"  replayed  {_short(found.replayed)}", soft_wrap=wrap)
    if found.recorded is not None and found.replayed is not None:
        console.print("")
        console.print(_fields(found.fields), soft_wrap=wrap)
    for story in found.stories:
        console.print("\nthe request's story up to here:\n")
        console.print(story_view.as_text(story), soft_wrap=wrap)


def _fields(fields: tuple[Field, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 2))
    for title in ("FIELD", "RECORDED", "REPLAYED"):
        table.add_column(title, overflow="fold")
    for field in fields:
        sides = ("(not set)" if side is None else _short(side) for side in (field.recorded, field.replayed))
        table.add_row(Text(field.path), *map(Text, sides))
    return table


def _short(plain: Any) -> str:
    """Plain values on one line; nothing where there are none."""
    return "nothing" if plain is None else terminal.without_control(json.dumps(_cut(plain), ensure_ascii=False))


def _cut(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {name: _cut(value) for name, value in plain.items()}
    if isinstance(plain, str) and len(plain) > _LONG and " " not in plain:
        return f"{plain[:_LONG]}... ({len(plain)} characters)"
    return plain


def _plain(outcome: Replayed, remarks: list[str], seconds: float) -> dict[str, Any]:
    """The documented shape; keys may be added to it, never taken away."""
    header = outcome.header
    return {
        "same": outcome.difference is None,
        "events": outcome.events,
        "commands": outcome.commands,
        "wall_seconds": seconds,
        "remarks": remarks,
        "recorded": {
            "gateway": header.gateway,
            "epoch": header.epoch,
            "version": header.version,
            "started": header.started,
        },
        "difference": outcome.difference and _difference(outcome.difference),
    }


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "event_number": found.number,
        "now": found.now,
        "event": found.event,
        "command": found.index,
        "recorded": found.recorded,
        "replayed": found.replayed,
        "fields": [{"path": one.path, "recorded": one.recorded, "replayed": one.replayed} for one in found.fields],
        "request": found.request_id,
        "stories": [encode(RequestStory, story, whole=True) for story in found.stories],
    }
