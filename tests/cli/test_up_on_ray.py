"""``segue up --address``: onto a Ray that others started, and off it again without a trace."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path

import pytest

from orchestrator.cli.run_folder import RunFolder
from tests.cli.test_end_to_end import CONFIG, START_SECONDS, segue, wait_until
from tests.ports import free_ports
from tests.ray_nodes import ray_nodes

pytestmark = pytest.mark.ray


def health(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            return int(answer.status)
    except OSError:
        return 0


def test_a_cluster_on_a_ray_that_is_there_goes_on_without_its_owner_and_leaves_ray_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a Ray on loopback is found there only so
    ports = free_ports(3)
    config = tmp_path / "e2e.yaml"
    config.write_text(CONFIG.format(*ports))
    with ray_nodes(1) as address:
        up = segue("up", "--detach", str(config), "--address", address, seconds=START_SECONDS)
        assert up.returncode == 0, up.stdout + up.stderr
        record = RunFolder.of("e2e").read()
        assert record is not None
        assert (record.ray_address, record.ray_folder) == (address, "")
        again = segue("plan", str(config), "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["changes"]["settings"] == []

        os.kill(record.pid, signal.SIGKILL)
        wait_until(lambda: not RunFolder.of("e2e").record_path.exists(), "its guard to see that the owner is gone")
        assert health(ports[0]) == 200
        still = segue("plan", str(config), "--address", address, "--json")
        assert json.loads(still.stdout)["changes"]["settings"] == [], still.stderr

        taken = segue("up", str(config), "--address", address)
        assert taken.returncode != 0
        config.write_text(CONFIG.format(*free_ports(3)))  # so that nothing but the name is taken
        taken = segue("up", str(config), "--address", address)
        assert (taken.returncode, "a cluster named 'e2e' runs on this Ray" in taken.stdout) == (2, True), taken.stdout
        assert health(ports[0]) == 200
        down = segue("down", "--name", "e2e", "--address", address, seconds=START_SECONDS)
        assert down.returncode == 0, down.stdout + down.stderr
        assert health(ports[0]) == 0
        gone = segue("down", "--name", "e2e", "--address", address)
        assert (gone.returncode, "no cluster named 'e2e'" in gone.stderr) == (3, True), gone.stderr
    nobody = segue("plan", str(config), "--address", address)
    assert nobody.returncode == 3
    assert "Ray can't be joined" in nobody.stderr
