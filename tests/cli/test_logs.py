"""Logs of workers, told apart by a prefix."""

from __future__ import annotations

import pytest

from orchestrator.cli import logs, run_folder
from orchestrator.cli.main import main
from tests.cli.conftest import Runs


def test_the_last_lines_of_each_with_its_name(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs()
    (folder.logs / "tiny-prefill-0.log").write_text("one\ntwo\nthree\n")
    (folder.logs / "gateway-0.log").write_text("\x1b[31mred\x1b[0m alarm\n")
    assert main(["logs", "-n", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gateway-0      │ red alarm",
        "tiny-prefill-0 │ two",
        "tiny-prefill-0 │ three",
    ]
    assert main(["logs", "prefill"]) == 0
    assert "gateway" not in capsys.readouterr().out


def test_of_a_cluster_elsewhere_it_is_told_where_logs_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "--address", "auto"]) == 2
    said = capsys.readouterr().err
    assert "logs are files on the machine that wrote them" in said
    assert str(run_folder.home()) in said


def test_an_unknown_worker_is_named_with_those_there_are(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    (runs().logs / "gateway-0.log").write_text("here\n")
    assert main(["logs", "decode"]) == 2
    assert "there are gateway-0" in capsys.readouterr().err


def test_logs_outlive_their_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder.RunFolder.of("test")
    folder.logs.mkdir(parents=True)
    (folder.logs / "gateway-0.log").write_text("why it ended\n")
    assert main(["logs"]) == 0
    assert "why it ended" in capsys.readouterr().out


def test_nothing_to_show_is_exit_3(runs: Runs) -> None:
    assert main(["logs"]) == 3
    runs()
    assert main(["logs"]) == 3


def test_follow_shows_what_is_added(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs()
    log = folder.logs / "tiny-decode-0.log"
    log.write_text("one\nhalf a li")

    def add() -> None:
        with log.open("a") as file:
            file.write("ne\n")

    steps = iter([add, lambda: log.write_text("anew\n")])

    def pause(seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(logs.time, "sleep", pause)
    assert main(["logs", "-f"]) == 130
    assert [line.split("│ ")[1] for line in capsys.readouterr().out.splitlines()] == ["one", "half a line", "anew"]
