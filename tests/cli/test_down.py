"""``segue down`` waits for a cluster that is busy: no answer for a moment is no failure."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator

import pytest
from rich.console import Console

from orchestrator.cli.down import _requests_left, drain_seconds
from orchestrator.cli.progress import Progress
from orchestrator.cli.run_folder import RunRecord
from orchestrator.config import parse
from tests.cli.test_upgrade import CONFIG, Control


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


def test_a_cluster_on_a_ray_is_drained_for_as_long_as_its_configuration_says() -> None:
    running = Control(parse({**CONFIG, "controller": {"drain_timeout": 77}}, "test"))
    told = io.StringIO()
    try:
        assert drain_seconds(lambda name: running.address, "upgraded", Progress(Console(file=told))) == 77
    finally:
        running.close()
    assert told.getvalue() == ""


def test_where_nobody_says_how_long_to_drain_that_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = "{}:{}".format(*server.getsockname())
    told = io.StringIO()
    assert drain_seconds(lambda name: nobody, "c", Progress(Console(file=told, width=200))) == 30
    assert "running requests get 30 s, as the controller does not say how long: " in told.getvalue()
