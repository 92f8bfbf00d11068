"""Joining a Ray that others started: where none answers that is said within seconds."""

from __future__ import annotations

import time

import pytest

from orchestrator.cli.exits import Exit
from orchestrator.cli.ground import RayThatIsThere
from orchestrator.cli.main import main
from orchestrator.core.errors import ClusterUnreachable
from tests.ports import free_ports

SECONDS = 10.0  # Ray itself goes on for minutes


def test_a_ray_that_does_not_answer_is_told_soon_whoever_named_it(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    nobody = f"127.0.0.1:{port}"
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    before = time.monotonic()
    for address in ("auto", nobody):
        with pytest.raises(ClusterUnreachable, match=rf"^{address}: Ray can't be joined: \S+:{port} does not answer: "):
            RayThatIsThere(address).start(None)
    assert time.monotonic() - before < SECONDS


@pytest.mark.parametrize("command", [["status"], ["chat", "hello"]])
def test_auto_is_a_ray_also_where_a_gateway_could_be_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The only cluster there needs no name."""
    [port] = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert main([*command, "--address", "auto"]) == Exit.NOT_READY
    assert "auto: Ray can't be joined: " in capsys.readouterr().err


@pytest.mark.parametrize("address", ["local", "ray://127.0.0.1:10001"])
def test_an_address_by_which_ray_would_start_one_or_be_a_client_is_refused(address: str) -> None:
    with pytest.raises(ClusterUnreachable, match="it has to be HOST:PORT, or auto"):
        RayThatIsThere(address).start(None)


@pytest.mark.parametrize("command", [["up", "c.yaml"], ["plan", "c.yaml"], ["down"]])
def test_an_empty_address_is_not_taken_for_none(command: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--address", ""])
    assert ended.value.code == Exit.USAGE
