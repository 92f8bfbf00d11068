"""What this process logs, by Segue's rules, while a test listens."""

from __future__ import annotations

import io
import logging

import pytest

from orchestrator.telemetry import logs


def listen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What this process logs from here on."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.LineFormatter())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    return stream
