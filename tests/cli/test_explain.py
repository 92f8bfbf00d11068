"""Why a request went where it went, as a person is told at night and a program at any time."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.cli import explain
from orchestrator.cli.main import main
from orchestrator.core import messages as m
from orchestrator.proto import cluster_pb2_grpc
from tests.cli.conftest import Runs
from tests.cli.fakes import FakeCluster, serving, status
from tests.record.gateway import Gateway
from tests.record.world import an_hour


@pytest.fixture
def recording(tmp_path: Path) -> str:
    an_hour(tmp_path / "r")
    return str(tmp_path / "r")


def test_a_recording_tells_what_was_predicted_and_what_came(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "one", "--file", recording]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for words in (
        "request chatcmpl-one-0a1b2c3d  (x-request-id one)",
        "model m · gateway gw-0 · at 2023-11-14 22:13:22.000 UTC",
        "prompt 40 tokens, 2 whole blocks · at most 9 tokens of output · tenant t · priority -1",
        "prefill apart, as configured (apart",
        "best of 2 of 2; 0 requests there, 0 tokens cached",
        "prompt computed in 500.0 ms (predicted 14.0 ms); 16 tokens were cached (predicted 0)",
        "fetches the KV of chatcmpl-one-0a1b2c3d~p1",
        "KV of 24 tokens came over",
        "finished after 2.00 s, 1 attempt",
        "first token after 750.0 ms · queue 0.0 ms · prefill 500.0 ms · transfer 250.0 ms",
        "5 tokens of output · 16 of 40 prompt tokens cached (0 predicted) · 2.0 kB of KV cache moved",
    ):
        assert words in shown.out, words


def test_a_lost_worker_is_in_the_story(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "chatcmpl-two", "--file", recording]) == 0
    shown = capsys.readouterr().out
    assert "its process died" in shown
    assert "cancelled after 2.50 s, 2 attempts" in shown


def test_several_that_begin_so_are_listed(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "chatcmpl-t", "--file", recording]) == 1
    shown = capsys.readouterr()
    assert shown.out.split() == ["two", "chatcmpl-tow"]
    assert "several requests begin with chatcmpl-t" in shown.err


def test_nobody_of_that_name(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "nobody", "--file", recording]) == 1
    assert capsys.readouterr().err == f"segue: {recording}: no request of that id, and none whose id begins so\n"


def test_a_recording_that_was_cut_off_says_so(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(recording).write_bytes(Path(recording).read_bytes()[:-30])
    assert main(["explain", "one", "--file", recording]) == 0
    assert "cut off, in the middle of a line: the gateway was killed, or still runs" in capsys.readouterr().err


def test_json_has_the_promised_shape(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "one", "--file", recording, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["request"], told["gateways"], told["not_asked"], told["ambiguous"]) == ("one", ["gw-0"], [], [])
    (story,) = told["stories"]
    assert story["outcome"]["outcome"] == "finished"
    sent = story["moments"][1]
    assert (sent["what"], sent["decision"]["on_prefill"]["worker_id"]) == ("prefill sent", sent["worker"])
    assert story["deadline_seconds"] is None  # what is not there is null, not left out


def test_json_of_nothing_is_exit_1(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "nobody", "--file", recording, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["stories"] == []


def test_what_clients_chose_cannot_drive_the_terminal(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    gateway = Gateway("s0")
    gateway.finish("evil\x1b[2Jid", tenant="\x1b]0;title\x07t")
    cluster.explain = gateway.explain
    assert main(["explain", "evil"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "evilid" in shown


def test_a_request_that_waits_says_for_what(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    gateway = Gateway()
    cluster.explain = gateway.explain
    gateway.step(m.Arrived("r-0a1b2c3d", "m", 8), 1.0)
    assert main(["explain", "r"]) == 0
    assert "no outcome: waits: no worker takes requests" in capsys.readouterr().out
    gateway.step(m.Tick(), 40.0)
    assert main(["explain", "r"]) == 0
    shown = capsys.readouterr().out
    assert "rejected (not_ready) after 39.00 s, 0 attempts" in shown


def test_a_request_that_waited_says_for_what(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    gateway = Gateway()
    cluster.explain = gateway.explain
    gateway.step(m.Arrived("r", "m", 8), 1.0)
    late = Gateway("s0")
    gateway.step(m.WorkerUp(late.brain.fleet.get("s0").info), 1.25)
    gateway.step(m.DecodeEnded("r~d1", 1), 2.0)
    assert main(["explain", "r"]) == 0
    assert "waited 250.0 ms: no worker takes requests" in capsys.readouterr().out


class Shared:
    """Three gateway processes behind one port."""

    def __init__(self, stack: ExitStack) -> None:
        self.gateways = [Gateway("s0", name=f"gateway-{n}") for n in range(3)]
        self.address = "127.0.0.1:0"
        shown = status()
        shown.gateways[0].id = "gateway-0"
        for n in (1, 2):
            shown.gateways.add(id=f"gateway-{n}", state="ready")
        for gateway in self.gateways:
            fake = FakeCluster()
            fake.explain = gateway.explain
            fake.tell(shown)
            stack.enter_context(serving(fake, self.address))
            self.address = fake.address
        self.shown, self.fake = shown, fake


@pytest.fixture
def shared() -> Iterator[Shared]:
    with ExitStack() as stack:
        yield Shared(stack)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_whichever_process_had_it_behind_a_shared_port_is_found(
    shared: Shared, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shared.gateways[at].finish("chatcmpl-6f1-0a1b2c3d")
    assert main(["explain", "chatcmpl-6f1", "--address", shared.address, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["gateways"] == ["gateway-0", "gateway-1", "gateway-2"]
    assert [story["gateway"] for story in told["stories"]] == [f"gateway-{at}"]


def test_a_process_that_could_not_be_reached_is_named(shared: Shared, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is listed but takes no connections: nobody knows what it knows."""
    shared.shown.gateways.add(id="gateway-3", state="ready")
    shared.gateways[0].finish("r")
    assert main(["explain", "r", "--address", shared.address]) == 0
    assert "not asked, as no connection reached it: gateway-3" in capsys.readouterr().err


def test_gateways_of_others_are_asked_where_they_are(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explain, "OUTSIDE_SECONDS", 0.3)
    other, elsewhere = FakeCluster(), Gateway("s0", name="pod-2")
    elsewhere.finish("chatcmpl-6f1-0a1b2c3d")
    other.explain, cluster.explain = elsewhere.explain, Gateway("s0", name="pod-1").explain
    with serving(other), socket.create_server(("127.0.0.1", 0)) as mute:
        told = status()
        del told.gateways[:]
        at = {
            "pod-1": cluster.address,
            "pod-2": other.address,
            "refuses": "127.0.0.1:1",
            "mute": f"127.0.0.1:{mute.getsockname()[1]}",
            "starts": "",
            "led to another": cluster.address,
        }
        for name, address in at.items():
            told.gateways.add(id=name, grpc=address, state="ready", outside=True)
        cluster.tell(told)
        assert main(["explain", "chatcmpl-6f1", "--address", cluster.address, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["gateways"] == ["pod-1", "pod-2"]
    assert said["not_asked"] == ["refuses", "mute", "starts", "led to another"]
    assert [story["gateway"] for story in said["stories"]] == ["pod-2"]


def test_a_request_that_was_forgotten_says_how_to_keep_them(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    assert main(["explain", "r"]) == 1
    assert "gateway-0: no request of that id" in (told := capsys.readouterr().err)
    assert "the last 4096 requests; `segue up --record` keeps all" in told


class OldCluster(FakeCluster):
    """Of a time when nobody could ask."""

    Explain = cluster_pb2_grpc.ClusterServicer.Explain


def test_a_gateway_of_an_older_version_is_no_riddle(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(OldCluster()) as old:
        assert main(["explain", "r", "--address", old.address]) == 1
        assert f"{old.address}: the peer does not offer this" in capsys.readouterr().err


def test_without_a_cluster_it_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "r"]) == 3
    assert "no cluster is running" in capsys.readouterr().err
