"""The controller's actor, all of it but Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_an_upgrade_that_was_answered_goes_on_with_the_next_controller(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.controller.service_program", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=120, check=False)
    log = tmp_path / "controller.log"
    assert done.returncode == 0, log.read_text() if log.exists() else ""
    assert json.loads((tmp_path / "told.json").read_text()) == {
        "answered_before_it_was_remembered": False,
        "remembered": True,
        "same_cluster": True,
        "term": 2,
        "becomes_the_new_one": True,
        "left": [],
        "left_in_memory": None,
    }
