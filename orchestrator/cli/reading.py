"""What the commands that read a recording show beside what they find in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.cli import terminal
from orchestrator.record.recording import CLOSED, Recording


@contextmanager
def shown(recording: Recording) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal while a long file is read; takes the number of bytes read."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
    )
    console = terminal.err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(recording.path.name, total=recording.size)
        yield lambda read: progress.update(task, completed=read)


def remarks(recording: Recording) -> list[str]:
    """Tells, on standard error, what a reader should know of the recording; returns it, too."""
    told = list(_remarks(recording))
    for remark in told:
        terminal.err().print(f"segue: {recording.path}: {remark}", soft_wrap=True)
    return told


def _remarks(recording: Recording) -> Iterator[str]:
    written, running = recording.header.version, metadata.version("segue")
    if written != running:
        yield f"recorded by Segue {written}, read by {running}"
    if recording.end is None:
        torn = ", in the middle of a line" if recording.torn else ""
        yield f"cut off{torn}: the gateway was killed, or still runs"
    elif recording.end.end != CLOSED:
        yield f"the recording ended early: {recording.end.end}"
