"""``segue down`` waits for a cluster that is busy: no answer for a moment is no failure."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from orchestrator.cli.down import _requests_left
from orchestrator.cli.run_folder import RunRecord


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        yield f"{host}:{port}"


def test_a_controller_that_is_too_busy_to_answer_does_not_end_the_wait(silent: str) -> None:
    record = RunRecord("c", 1, "c.yaml", 0.0, controller=silent)
    assert _requests_left(record) == "waiting; the controller is busy"


def test_a_controller_that_is_gone_has_nothing_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
    assert _requests_left(RunRecord("c", 1, "c.yaml", 0.0, controller=f"{host}:{port}")) == "ending processes"
