"""``segue down`` waits for a cluster that is busy: no answer for a moment is no failure."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli import attach
from orchestrator.cli.attach import Stay
from orchestrator.cli.down import _requests_left, drain_seconds
from orchestrator.cli.ground import RayThatIsThere
from orchestrator.cli.progress import Progress
from orchestrator.cli.run_folder import RunRecord
from orchestrator.cli.up import Owner
from orchestrator.config import parse
from orchestrator.core.errors import ClusterUnreachable, ConfigError
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


def test_a_job_ends_its_cluster_as_an_upgrade_from_elsewhere_has_made_it(tmp_path: Path) -> None:
    spec = parse(CONFIG, "test")
    running = Control(parse({**CONFIG, "controller": {"drain_timeout": 77}}, "test"))
    ground = Ground()
    try:
        owner = Owner(spec, tmp_path, ground, Progress(Console(file=io.StringIO())), background=False, stay=Stay(True))
        owner._controller, owner._controller_asked = running.address, True
        with owner._folder.claim():
            owner._write_record()
            assert owner._end()
    finally:
        running.close()
    assert ground.drained == [77.0]


class Ground:
    """Of others: there is nothing to end but the cluster."""

    def __init__(self) -> None:
        self.drained: list[float] = []

    def stop_controller(self, name: str, drain_seconds: float) -> None:
        self.drained.append(drain_seconds)


class Clusters(RayThatIsThere):
    def __init__(self, *names: str) -> None:
        self._names = list(names)

    def clusters(self) -> list[str]:
        return self._names


def test_the_only_cluster_on_a_ray_needs_no_name() -> None:
    assert attach.only_cluster(Clusters("one"), "ray") == "one"
    with pytest.raises(ConfigError, match="several clusters are up: one, two"):
        attach.only_cluster(Clusters("one", "two"), "ray")
    with pytest.raises(ClusterUnreachable, match="ray: no cluster runs on this Ray"):
        attach.only_cluster(Clusters(), "ray")


def test_where_nobody_says_how_long_to_drain_that_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = "{}:{}".format(*server.getsockname())
    told = io.StringIO()
    assert drain_seconds(lambda name: nobody, "c", Progress(Console(file=told, width=200))) == 30
    assert "running requests get 30 s, as the controller does not say how long: " in told.getvalue()
