"""`segue replay`: the same again, or where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.record.world import an_hour


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    an_hour(tmp_path / "r")
    return tmp_path / "r"


def other_score(recording: Path) -> None:
    text = recording.read_text()
    assert text.count('"score":1.0,"candidates":2') == 2
    recording.write_text(text.replace('"score":1.0,"candidates":2', '"score":0.5,"candidates":2', 1))


def test_the_same(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recording)]) == 0
    shown = capsys.readouterr()
    assert "gateway gw-0, from 2023-11-14 22:13:20.000 UTC, Segue 0.1.0" in shown.out
    assert "the same: 15 events, 8 commands" in shown.out
    assert shown.err == ""


def test_the_first_difference(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_score(recording)
    assert main(["replay", str(recording)]) == 1
    shown = capsys.readouterr().out
    for words in (
        "different: event 4, 2.00 s after the start, 2023-11-14 22:13:22.000 UTC",
        'event     {"Arrived": {"request_id": "chatcmpl-one-0a1b2c3d"',
        'recorded  {"StartPrefill": {',
        'replayed  {"StartPrefill": {',
        "the request's story up to here",
        "prompt 40 tokens, 2 whole blocks",
    ):
        assert words in shown, words
    (row,) = [line for line in shown.splitlines() if "on_prefill.score" in line]
    assert row.split() == ["StartPrefill.decision.on_prefill.score", "0.5", "1.0"]


def test_json(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recording), "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert (same["same"], same["events"], same["commands"], same["difference"]) == (True, 15, 8, None)
    assert same["recorded"] == {"gateway": "gw-0", "epoch": 1, "version": "0.1.0", "started": 1_700_000_000.0}
    other_score(recording)
    assert main(["replay", str(recording), "--json"]) == 1
    other = json.loads(capsys.readouterr().out)
    assert (other["same"], other["events"]) == (False, 3)
    found = other["difference"]
    assert (found["event_number"], found["command"], found["request"]) == (4, 0, "chatcmpl-one-0a1b2c3d")
    assert found["fields"] == [{"path": "StartPrefill.decision.on_prefill.score", "recorded": 0.5, "replayed": 1.0}]


def test_a_torn_last_line_and_another_version_are_remarks(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = recording.read_text().replace('"version":"0.1.0"', '"version":"0.0.9"')
    recording.write_text(text[:-30])
    assert main(["replay", str(recording)]) == 0
    told = capsys.readouterr().err
    assert "recorded by Segue 0.0.9, read by" in told
    assert "cut off, in the middle of a line: the gateway was killed, or still runs" in told


def test_a_recording_that_ended_early_says_why(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording.write_text(recording.read_text().replace('"end":"closed"', '"end":"the disk did not keep up"'))
    assert main(["replay", str(recording), "--json"]) == 0
    told = capsys.readouterr()
    assert "the recording ended early: the disk did not keep up" in told.err
    assert json.loads(told.out)["remarks"] == ["the recording ended early: the disk did not keep up"]


def test_what_is_no_recording_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("cluster: {name: x}\n")
    for name in ("c.yaml", "nothing"):
        assert main(["replay", str(tmp_path / name)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
