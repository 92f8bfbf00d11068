"""Shows a board: live on a terminal, one line a change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from orchestrator.cli.board import Board, Step, StepState
from orchestrator.cli.terminal import duration

_MARKS = {
    StepState.WAITING: Text("·", style="dim"),
    StepState.DONE: Text("✓", style="bold green"),
    StepState.FAILED: Text("✗", style="bold red"),
}


class Progress:
    """Takes steps and shows them. ``say`` prints a line of its own that stays."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.board = Board()
        self._zero = time.monotonic()
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None

    def running(self, name: str, detail: str) -> None:
        self.put(name, StepState.RUNNING, detail)

    def done(self, name: str, detail: str) -> None:
        self.put(name, StepState.DONE, detail)

    def failed(self, name: str, detail: str) -> None:
        self.put(name, StepState.FAILED, detail)

    def put(self, name: str, state: StepState, detail: str) -> None:
        step = self.board.put(name, state, detail, time.monotonic())
        if step and self._live is None:
            self.console.print(self._line(step), soft_wrap=True)

    def say(self, line: RenderableType) -> None:
        """To be copied, so never broken."""
        self.console.print(line, soft_wrap=True)

    def tell(self, line: Text) -> None:
        """To be read: folded between words, and indented, where it is wider than the terminal."""
        self.console.print(Padding(line, (0, 0, 0, 2)) if self.console.is_terminal else Text("  ") + line)

    @property
    def elapsed(self) -> float:
        """Seconds since the first step could have begun."""
        return time.monotonic() - self._zero

    @contextmanager
    def live(self) -> Iterator[None]:
        """While it lasts, a terminal sees the steps move; elsewhere it changes nothing."""
        if not self.console.is_terminal:
            yield
            return
        live = Live(console=self.console, get_renderable=self._table, refresh_per_second=8, redirect_stdout=False)
        with live as self._live:
            try:
                yield
            finally:
                self.board.end(time.monotonic())
        self._live = None

    def _line(self, step: Step) -> Text:
        mark = _MARKS.get(step.state, Text("…"))
        elapsed = step.elapsed(time.monotonic())
        took = f" ({duration(elapsed)})" if step.ended is not None and elapsed is not None else ""
        return Text.assemble(f"[{self.elapsed:6.1f} s] ", mark, f" {step.name}: {step.detail}{took}")

    def _table(self) -> Table:
        now = time.monotonic()
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True, style="dim", min_width=7)
        table.add_column(ratio=1)
        for step in list(self.board.steps.values()):
            mark: RenderableType = _MARKS.get(step.state, self._spinner)
            elapsed = step.elapsed(now)
            took = "" if step.state is StepState.WAITING or elapsed is None else duration(elapsed)
            style = {StepState.DONE: "dim", StepState.FAILED: "red"}.get(step.state, "")
            table.add_row(mark, step.name, took, Text(step.detail, style=style))
        return table
