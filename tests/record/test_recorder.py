"""A recording holds all that happened up to some moment, in order, or says where and why it stops."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.config import dumps
from orchestrator.core import messages as m
from orchestrator.core.decision import Decision, Rule
from orchestrator.core.errors import SegueError
from orchestrator.core.spec import ClusterSpec
from orchestrator.core.types import Load
from orchestrator.record import recorder as recorders
from orchestrator.record.codec import decode
from orchestrator.record.recorder import Recorder, open_recording
from orchestrator.record.recording import Alias, BadRecording, End, Header, Recording, Step

HEADER = Header("0.1.0", "gw-0", 3, 2**63 + 5, 1_700_000_000.25, 17.5, dumps(ClusterSpec("test", ())))


@contextmanager
def recording(path: Path, failures: list[str] | None = None) -> Iterator[Recorder]:
    told = [] if failures is None else failures
    recorder = open_recording(str(path), HEADER, told.append)
    try:
        yield recorder
    finally:
        recorder.close()
    assert failures is not None or not told


def read(path: Path) -> tuple[Recording, list[Step | Alias]]:
    with Recording(path) as found:
        return found, list(found.lines())


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everything_comes_back_in_order_under_its_header(tmp_path: Path) -> None:
    start = m.StartDecode("r", "r~d0", "w", None, Decision("w", None, Rule.ONE_POOL))
    with recording(tmp_path / "r") as recorder:
        recorder.known_as("r", "mine")
        recorder.note(0.1 + 0.2, m.Arrived("r", "m", 7, blocks=[5, 2**60 - 1]), [start])
        recorder.note(1.0, m.Tick(), [], "ZeroDivisionError")
    found, lines = read(tmp_path / "r")
    assert found.header == HEADER
    alias, arrived, tick = lines
    assert alias == Alias("r", "mine")
    assert isinstance(arrived, Step)
    assert isinstance(tick, Step)
    assert (arrived.number, arrived.now, tick.number, tick.raised) == (1, 0.1 + 0.2, 2, "ZeroDivisionError")
    assert decode(m.Event, arrived.event) == m.Arrived("r", "m", 7, blocks=(5, 2**60 - 1))
    assert [decode(m.Command, plain) for plain in arrived.commands] == [start]
    assert found.end == End("closed", 2)
    assert not found.torn


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with recording(tmp_path / "r"):
            assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_what_happened_a_moment_ago_survives_a_kill(tmp_path: Path) -> None:
    with recording(tmp_path / "r") as recorder:
        recorder.note(1.0, m.Tick(), [])
        eventually(lambda: len(read(tmp_path / "r")[1]) == 1)
        assert read(tmp_path / "r")[0].end is None


def test_a_gateway_that_comes_back_leaves_the_old_recording_alone(tmp_path: Path) -> None:
    for _ in range(2):
        with recording(tmp_path / "r"):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"r", "r.epoch-3"}
    with pytest.raises(SegueError, match="exists already"):
        open_recording(str(tmp_path / "r"), HEADER, lambda _: None)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegueError, match=r"nowhere/r: the recording can't be written: No such file"):
        open_recording(str(tmp_path / "nowhere" / "r"), HEADER, lambda _: None)


class SlowDisk:
    """Lets the header through, and then nothing until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.thaw = threading.Event()
        self.reached = threading.Event()
        self._write = os.write
        monkeypatch.setattr(recorders.os, "write", self)

    def __call__(self, file: int, data: bytes) -> int:
        if threading.current_thread().name == "recorder":
            self.reached.set()
            assert self.thaw.wait(20)
        return self._write(file, data)


def test_a_disk_that_cannot_keep_up_ends_the_recording_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorders, "BACKLOG_LIMIT", 100)
    disk, failures = SlowDisk(monkeypatch), []
    with recording(tmp_path / "r", failures) as recorder:
        recorder.note(0.0, m.Tick(), [])
        assert disk.reached.wait(10)
        began = time.perf_counter()
        for n in range(1, 1000):
            recorder.note(float(n), m.LoadReported("w", Load(n)), [])
        assert time.perf_counter() - began < 1.0  # nobody waited for the disk
        assert failures == ["the disk did not keep up"]
        disk.thaw.set()
    found, lines = read(tmp_path / "r")
    assert [step.now for step in lines] == [float(n) for n in range(100)]  # no hole in it
    assert found.end == End("the disk did not keep up", 100)


def test_large_events_count_for_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "BACKLOG_LIMIT", 100)
    disk, failures = SlowDisk(monkeypatch), []
    with recording(tmp_path / "r", failures) as recorder:
        recorder.note(0.0, m.CacheChanged("w", stored=range(100_000)), [])  # however large, the first has room
        assert disk.reached.wait(10)
        assert not failures
        recorder.note(1.0, m.CacheChanged("w", stored=range(100)), [])
        assert failures
        disk.thaw.set()
    assert len(read(tmp_path / "r")[1]) == 1


class FullDisk:
    """Has room for a part of the next line; what is cut off a file makes room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10
        self._write, self._truncate = os.write, os.ftruncate
        monkeypatch.setattr(recorders.os, "write", self.write)
        monkeypatch.setattr(recorders.os, "ftruncate", self.truncate)

    def write(self, file: int, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = self._write(file, data[: self.room])
        self.room -= written
        return written

    def truncate(self, file: int, size: int) -> None:
        self._truncate(file, size)
        self.room = 4096


def test_a_full_disk_ends_it_after_the_last_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[str] = []
    with recording(tmp_path / "r", failures) as recorder:
        recorder.note(1.0, m.Tick(), [])
        eventually(lambda: len(read(tmp_path / "r")[1]) == 1)
        FullDisk(monkeypatch)
        recorder.note(2.0, m.Tick(), [])
        eventually(lambda: bool(failures))
        recorder.note(3.0, m.Tick(), [])
    found, lines = read(tmp_path / "r")
    assert [step.now for step in lines] == [1.0]
    assert found.end == End("it can't be written: No space left on device", 1)
    assert failures == ["it can't be written: No space left on device"]


def test_what_is_no_event_ends_it_loudly(tmp_path: Path) -> None:
    failures: list[str] = []
    with recording(tmp_path / "r", failures) as recorder:
        recorder.note(1.0, "boo", [])  # type: ignore[arg-type]
        eventually(lambda: bool(failures))
    assert "str" in failures[0]
    assert "str" in read(tmp_path / "r")[0].end.end


@pytest.mark.parametrize("keep", [1, 10, -1, -2])
def test_a_torn_last_line_is_tolerated_and_told(tmp_path: Path, keep: int) -> None:
    with recording(tmp_path / "r") as recorder:
        recorder.note(1.0, m.Tick(), [])
        recorder.note(2.0, m.Tick(), [])
    header, first, second, _ = (tmp_path / "r").read_bytes().splitlines(keepends=True)
    (tmp_path / "r").write_bytes(header + first + second[:keep])
    found, lines = read(tmp_path / "r")
    assert [step.now for step in lines] == [1.0]
    assert (found.torn, found.end) == (True, None)


def test_a_broken_line_in_the_middle_is_no_recording(tmp_path: Path) -> None:
    with recording(tmp_path / "r") as recorder:
        recorder.note(1.0, m.Tick(), [])
    lines = (tmp_path / "r").read_bytes().splitlines(keepends=True)
    (tmp_path / "r").write_bytes(lines[0] + b'{"now":1.0,"ev\n' + lines[2])
    with pytest.raises(BadRecording, match="r:2: not a line"):
        read(tmp_path / "r")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no recording"),
        ("cluster: {name: x}\n", "not a line of a recording"),
        ("{}\n", "no recording"),
        ('{"segue_recording": 99, "version": "7.0.0"}\n', "format 99.*written by Segue 7.0.0"),
        ('{"segue_recording": 1}\n', "no Header can be read"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "r").write_text(text)
    with pytest.raises(BadRecording, match=match):
        read(tmp_path / "r")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRecording, match="No such file"):
        Recording(tmp_path / "nothing")
