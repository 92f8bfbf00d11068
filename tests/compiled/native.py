"""A plugin for pytest that ends a session which would test the sources."""

from __future__ import annotations

from orchestrator.core import brain


def pytest_sessionstart() -> None:
    assert str(brain.__file__).endswith(".so"), brain.__file__
