"""The same events bring the same commands, wherever and whenever; anything else is found where it begins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from orchestrator.config import dumps
from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.core.spec import PrefillPlace, Role
from orchestrator.core.types import Load
from orchestrator.record.journal import Journal
from orchestrator.record.recorder import Recorder
from orchestrator.record.recording import BadRecording, Header
from tests.core.support import worker
from tests.record.world import APART, AnyRecordedOrder, Recorded, an_hour, fail, replayed

HEADER = Header("0.1.0", "gw-0", 1, 5, 1_700_000_000.0, 0.0, dumps(APART))

REPLAY_ALL = """
import sys
from tests.record.world import replayed
for path in sys.argv[1:]:
    outcome = replayed(path)
    assert outcome.difference is None, outcome.difference
print(hash("the same?"))
"""


def test_any_order_of_events_replays_to_the_same_commands_under_any_hash_seed(tmp_path: Path) -> None:
    AnyRecordedOrder.folder = tmp_path
    run_state_machine_as_test(
        AnyRecordedOrder, settings=settings(max_examples=150, stateful_step_count=40, deadline=None)
    )
    files = sorted(map(str, tmp_path.iterdir()))
    assert len(files) >= 150
    hashes = set()
    for seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", REPLAY_ALL, *files]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        hashes.add(done.stdout)
    assert len(hashes) == 3  # the seeds did take


def test_an_hour_replays(tmp_path: Path) -> None:
    commands = an_hour(tmp_path / "r")
    outcome = replayed(tmp_path / "r")
    assert (outcome.difference, outcome.end, outcome.torn) == (None, "closed", False)
    assert (outcome.events, outcome.commands) == (15, len(commands))


def test_a_model_that_is_routed_otherwise_from_then_on_is_so_in_its_replay(tmp_path: Path) -> None:
    world = Recorded(tmp_path / "r", APART, seed=7)
    for worker_id, role in (("p0", Role.PREFILL), ("d0", Role.DECODE)):
        world.step(m.WorkerUp(worker(worker_id, role)), 1.0)
    (before,) = world.step(m.Arrived("one", "m", 40), 2.0)
    weights = (m.Parameter("prefix", 2.0),)
    world.step(m.ModelRouted("m", "prefix_and_load", weights, PrefillPlace.IN_PLACE), 3.0)
    (after,) = world.step(m.Arrived("two", "m", 40), 4.0)
    world.recorder.close()
    assert (type(before), type(after)) == (m.StartPrefill, m.StartDecode)
    outcome = replayed(tmp_path / "r")
    assert (outcome.difference, outcome.events) == (None, 5)


def test_a_target_that_changed_decides_in_the_replay_as_it_did(tmp_path: Path) -> None:
    world = Recorded(tmp_path / "r", APART, seed=7)
    world.step(m.ModelRouted("m", "least_load", (), PrefillPlace.AUTO, 2.0), 1.0)
    for worker_id, role in (("p0", Role.PREFILL), ("d0", Role.DECODE)):
        world.step(m.WorkerUp(worker(worker_id, role)), 1.0)
        world.step(m.LoadReported(worker_id, Load(waiting=1000)), 1.0)
    world.step(m.Arrived("one", "m", 40), 1.0)
    for worker_id in ("p0", "d0"):
        world.step(m.LoadReported(worker_id, Load(waiting=1000)), 3.0)
    (end,) = world.step(m.Tick(), 3.0)
    world.recorder.close()
    assert end.report.outcome == "rejected"
    outcome = replayed(tmp_path / "r")
    assert (outcome.difference, outcome.end, outcome.events) == (None, "closed", 9)


def tampered(path: Path, change: Callable[[dict[str, Any]], None], kind: str) -> int:
    """Changes the first step whose commands begin with ``kind``; returns the number of its event."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line for line in lines if "event" in line]
    step = next(step for step in steps if kind in (step.get("commands") or [{}])[0])
    change(step)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return steps.index(step) + 1


def other_worker(step: dict[str, Any]) -> None:
    step["commands"][0]["StartPrefill"]["worker_id"] = "p7"


def other_score(step: dict[str, Any]) -> None:
    choice = step["commands"][0]["StartPrefill"]["decision"]["on_prefill"]
    choice["score"] = choice["score"] * (1 + 2**-52)


def no_command(step: dict[str, Any]) -> None:
    del step["commands"]


def one_more(step: dict[str, Any]) -> None:
    step["commands"].append({"Forget": {"prefill_wire_id": "w"}})


def it_raised(step: dict[str, Any]) -> None:
    step["commands"], step["raised"] = [], "KeyError"


@pytest.mark.parametrize(
    ("change", "index", "paths"),
    [
        (other_worker, 0, ["StartPrefill.worker_id"]),
        (other_score, 0, ["StartPrefill.decision.on_prefill.score"]),
        (no_command, 0, [""]),
        (one_more, 1, [""]),
        (it_raised, 0, ["raised", "StartPrefill"]),
    ],
)
def test_a_tampered_line_is_the_first_difference(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], index: int, paths: list[str]
) -> None:
    an_hour(tmp_path / "r")
    number = tampered(tmp_path / "r", change, "StartPrefill")
    found = replayed(tmp_path / "r").difference
    assert found is not None
    assert (found.number, found.now, found.index) == (number, 2.0, index)
    assert [field.path for field in found.fields] == paths
    if found.recorded is None or change in (other_worker, other_score):
        assert found.request_id == "chatcmpl-one-0a1b2c3d"
        assert [moment.what for moment in found.stories[0].moments] == ["arrived"]


def test_a_difference_shows_as_late_as_it_matters(tmp_path: Path) -> None:
    """An event that is not what it was changes what follows; the story tells how the request got there."""
    an_hour(tmp_path / "r")
    text = (tmp_path / "r").read_text()
    assert '"cached_tokens":16,"transferred_tokens":24' in text
    (tmp_path / "r").write_text(
        text.replace('"cached_tokens":16,"transferred_tokens":24', '"cached_tokens":0,"transferred_tokens":24', 1)
    )
    found = replayed(tmp_path / "r").difference
    assert found is not None
    assert [field.path for field in found.fields] == ["End.report.cached_tokens"]
    whats = [moment.what for moment in found.stories[0].moments]
    assert whats == ["arrived", "prefill sent", "prefill ended", "decode sent", "first token", "decode ended"]


def test_a_step_that_raised_raises_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    an_hour(tmp_path / "r")
    tampered(tmp_path / "r", it_raised, "StartPrefill")
    step = Brain.step

    def breaks(brain: Brain, event: Any, now: float) -> list[Any]:
        if now == 2.0:
            raise KeyError
        return step(brain, event, now)

    monkeypatch.setattr(Brain, "step", breaks)
    found = replayed(tmp_path / "r").difference
    assert found is not None
    assert found.now > 2.0  # what follows is another matter


def test_a_recording_that_was_cut_off_is_replayed_as_far_as_it_goes(tmp_path: Path) -> None:
    an_hour(tmp_path / "r")
    (tmp_path / "r").write_bytes((tmp_path / "r").read_bytes()[:-40])
    outcome = replayed(tmp_path / "r")
    assert (outcome.difference, outcome.events, outcome.end, outcome.torn) == (None, 14, None, True)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('{"Arrived"', '{"Departed"', "event 4: .*Departed.*written by Segue 0.1.0"),
        ('"queue_seconds"', '"queue_hours"', "its configuration can't be read: .*queue_hours"),
    ],
)
def test_what_another_version_wrote_is_told_apart_from_a_difference(
    tmp_path: Path, old: str, new: str, match: str
) -> None:
    an_hour(tmp_path / "r")
    text = (tmp_path / "r").read_text()
    assert old in text
    (tmp_path / "r").write_text(text.replace(old, new))
    with pytest.raises(BadRecording, match=match):
        replayed(tmp_path / "r")


def test_a_defect_of_the_brain_is_recorded_and_happens_again(tmp_path: Path) -> None:
    """Such a step may have changed the brain half-way: without it the rest could not come out the same."""
    recorder = Recorder(str(tmp_path / "r"), HEADER, fail)
    journal = Journal(recorder)
    step = journal.around(Brain.of(APART, Random(HEADER.seed)).step)
    step(m.WorkerUp(worker("s0", Role.SERVE)), 1.0)
    step(m.Arrived("r", "m", 8), 2.0)
    with pytest.raises(ValueError, match="arrived twice"):
        step(m.Arrived("r", "m", 8), 3.0)
    step(m.Cancelled("r"), 4.0)
    journal.close()
    assert '"raised":"ValueError"' in (tmp_path / "r").read_text()
    outcome = replayed(tmp_path / "r")
    assert (outcome.difference, outcome.events) == (None, 4)
    assert [moment.what for moment in journal.stories.find("r").stories[0].moments] == [
        "arrived",
        "decode sent",
        "cancelled",
        "aborted",
        "ended",
    ]
