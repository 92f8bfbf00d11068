"""Consoles and the few formats that several commands share."""

from __future__ import annotations

import re
import sys

from rich.console import Console

# Piped output is for grep and files: never wrapped at 80 columns.
_PIPE_WIDTH = 200
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]")


def out() -> Console:
    """A console on standard output, as it is now."""
    return _console(stderr=False)


def err() -> Console:
    """A console on standard error, as it is now."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def without_control(text: str) -> str:
    """Text without escape sequences and control characters, so that a log or a model can't drive the terminal."""
    return _CONTROL.sub("", text)


def byte_count(count: int) -> str:
    """1536 -> '1.5 kB'; decimal units."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 1000:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """0.0312 -> '31 ms', 4.2 -> '4.2 s', 130 -> '2 min 10 s', 7300 -> '2 h 1 min'."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
