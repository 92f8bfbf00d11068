"""Ctrl-C, SIGTERM and a closing terminal, as one thing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Somebody wants this to end."""


class Interrupts:
    """Raises Interrupted at a signal, but only inside ``raising()``; elsewhere it is kept for the next such block."""

    def __init__(self) -> None:
        self._raising = False
        self._pending = False

    def install(self) -> None:
        """May be called again, after a library has put its own handlers in."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @contextmanager
    def raising(self) -> Iterator[None]:
        self._raising = True
        try:
            self._raise_pending()
            yield
        finally:
            self._raising = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        if self._raising:
            self._raise_pending()

    def _raise_pending(self) -> None:
        if self._pending:
            self._pending = self._raising = False
            raise Interrupted
