"""What `segue up` is told of how long a cluster on a Ray of others lives, and who sees to it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from orchestrator.cli import guard
from orchestrator.cli.main import main
from orchestrator.cli.run_folder import RunFolder, RunRecord

CONFIG = """
cluster: {name: test}
models: [{name: tiny, source: "tiny:llama", pools: {serve: {backend: mock}}}]
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep"], "--keep: a Ray that ends with the command keeps nothing"),
        (["--attach", "--detach"], "--detach: what is attached to a command that returns ends at once (add --keep)"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "test.yaml"
    config.write_text(CONFIG)
    assert main(["up", str(config), *words]) == 2
    assert said in capsys.readouterr().err
    assert not RunFolder.of("test").path.exists()


def test_a_guard_that_stands_apart_is_nobody_s_descendant_and_ends_with_its_release() -> None:
    """Ray kills a job's process with all that is below it."""
    folder = RunFolder.of("test")
    folder.logs.mkdir(parents=True)
    with guard.guarded(folder, apart=True) as pid:
        process = psutil.Process(pid)
        assert process.ppid() != os.getpid()
        assert pid not in [each.pid for each in psutil.Process().children(recursive=True)]
        assert process.terminal() is None or os.getsid(pid) != os.getsid(0)
    process.wait(30)


@pytest.mark.parametrize(
    ("record", "takes_down"),
    [
        ({"ray_address": "h:1", "attached": True}, True),
        ({"ray_address": "h:1", "ends_by": 5.0}, True),
        ({"ray_address": "h:1"}, False),
        ({"ray_address": "h:1", "ray_folder": "/f", "attached": True, "ends_by": 5.0}, False),
        ({"attached": True, "ends_by": 5.0}, False),
    ],
    ids=["attached", "while it was stopping", "by --address alone", "a Ray of its own", "not on a Ray yet"],
)
def test_whose_cluster_a_guard_takes_down(record: dict[str, object], takes_down: bool) -> None:
    assert RunRecord("test", 1, "c.yaml", 0.0, **record).outlived is takes_down
