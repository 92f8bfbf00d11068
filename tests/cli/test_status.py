"""What scripts and people see of a running cluster."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from orchestrator.cli.main import main
from tests.cli.conftest import Runs
from tests.cli.fakes import FakeCluster, serving, status, worker


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_json_has_the_promised_shape(cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs(grpc=cluster.address)
    cluster.tell(status(worker("prefill"), worker("decode", running=2, waiting=1, kv_blocks_used=128)))
    assert main(["status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is True
    [model] = told["models"]
    assert model["name"] == "tiny"
    assert [pool["role"] for pool in model["pools"]] == ["prefill", "decode"]
    [decode] = model["pools"][1]["workers"]
    promised = {"id", "node", "state", "pids", "running", "waiting", "kv_usage", "kv_blocks_used"}
    assert {key: decode[key] for key in promised} == {
        "id": "tiny-decode-0",
        "node": "127.0.0.1",
        "state": "ready",
        "pids": {"actor": 11, "engine": 12},
        "running": 2,
        "waiting": 1,
        "kv_usage": 0.25,
        "kv_blocks_used": 128,
    }
    assert [(one["http"], one["grpc"], one["pid"]) for one in told["gateways"]] == [
        ("127.0.0.1:8000", "127.0.0.1:1", 13)
    ]
    assert (told["controller"]["pid"], told["controller"]["epoch"]) == (14, 3)


def test_the_table_is_plain_text_when_piped(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    cluster.tell(status(worker("prefill", restarts=2), worker("decode", running=7, kv_blocks_used=256)))
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    [decode] = [line for line in shown.splitlines() if "tiny-decode-0" in line]
    assert "decode 1/1" in decode
    assert "█████░░░░░ 256/512" in decode
    assert decode.split("ready")[1].split()[0] == "7"
    [prefill] = [line for line in shown.splitlines() if "tiny-prefill-0" in line]
    assert prefill.startswith("tiny ")
    assert "http://127.0.0.1:8000" in shown


def test_gateways_of_others_are_listed_as_such(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    told = status()
    told.gateways.add(id="pod-1", state="starting", stage="importing vLLM", pid=7, outside=True)
    told.gateways.add(id="pod-2", http="10.0.0.2:80", grpc="10.0.0.2:90", state="ready", detail="can't", outside=True)
    cluster.tell(told)
    assert main(["status"]) == 0
    own, first, second = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.startswith("gateway")]
    assert "outside" not in own
    assert first == "gateway pod-1  starting importing vLLM  pid 7  outside of Ray"
    assert second == "gateway pod-2  ready can't  http://10.0.0.2:80  grpc 10.0.0.2:90  pid 0  outside of Ray"
    assert main(["status", "--json"]) == 0
    assert [one["outside"] for one in json.loads(capsys.readouterr().out)["gateways"]] == [False, True, True]


def test_not_ready_is_exit_3_and_says_why(cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs(grpc=cluster.address)
    failed = worker("decode", "failed", detail="out of memory")
    cluster.tell(status(worker("prefill", "starting", stage="loading weights"), failed, ready=False))
    assert main(["status"]) == 3
    shown = capsys.readouterr().out
    assert "not ready" in shown
    assert "loading weights" in shown
    assert "out of memory" in shown


def test_the_controller_answers_where_no_gateway_does(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=unused_address(), controller=cluster.address)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True


def test_a_controller_that_is_there_is_not_away(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address, controller=cluster.address)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["controller"]["away"] is False
    assert main(["status"]) == 0
    assert "controller  pid 14  epoch 3  127.0.0.1:9100" in capsys.readouterr().out


def test_a_dead_controller_is_away_while_the_cluster_stays_ready(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address, controller=unused_address())
    assert main(["status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is True
    assert {key: told["controller"][key] for key in ("pid", "epoch", "away")} == {"pid": 14, "epoch": 3, "away": True}
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "controller away  gateways go on without it; last known: pid 14  epoch 3" in shown.replace("\n", " ")


def test_a_controller_that_hangs_is_away_after_a_second(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        runs(grpc=cluster.address, controller=f"127.0.0.1:{mute.getsockname()[1]}")
        began = time.monotonic()
        assert main(["status", "--json"]) == 0
        assert time.monotonic() - began < 5
    assert json.loads(capsys.readouterr().out)["controller"]["away"] is True


def test_a_cluster_elsewhere_is_taken_at_its_gateways_word(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--json", "--address", cluster.address]) == 0
    assert json.loads(capsys.readouterr().out)["controller"]["away"] is False
    told = status()
    told.controller.Clear()
    cluster.tell(told)
    assert main(["status", "--json", "--address", cluster.address]) == 0
    assert json.loads(capsys.readouterr().out)["controller"]["away"] is True


def test_nothing_running_is_exit_3_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 3
    assert "no cluster is running" in capsys.readouterr().err
    assert main(["status", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["ready"], told["models"]) == (False, [])


def test_a_cluster_on_its_way_up_says_so(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs(phase="starting")
    assert main(["status"]) == 3
    assert "cluster test is starting" in capsys.readouterr().err


def test_several_clusters_need_a_name(cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs("one", grpc=cluster.address)
    runs("two", grpc=unused_address())
    assert main(["status"]) == 2
    assert "one, two" in capsys.readouterr().err
    assert main(["status", "--name", "one"]) == 0


Watched = Callable[[str], None]


@pytest.fixture
def watched(capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[list[str], list[int], Watched]]:
    """`segue status --watch --json` in a thread: the lines that it shows, its exit code, and a wait for a line."""
    shown: list[str] = []
    codes: list[int] = []
    watcher = threading.Thread(target=lambda: codes.append(main(["status", "--watch", "--json"])), daemon=True)

    def wait_for(part: str) -> None:
        if not watcher.ident:
            watcher.start()
        for _ in range(200):
            shown.extend(capsys.readouterr().out.splitlines())
            if any(part in line for line in shown):
                return
            watcher.join(0.05)
        pytest.fail(f"{part} was not shown, but {shown}")

    yield shown, codes, wait_for
    watcher.join(10)
    assert not watcher.is_alive()


def test_watch_follows_changes_until_the_cluster_is_gone(
    cluster: FakeCluster, runs: Runs, watched: tuple[list[str], list[int], Watched]
) -> None:
    shown, codes, wait_for = watched
    folder = runs(grpc=cluster.address)
    cluster.tell(status(ready=False))
    wait_for('"ready": false')
    cluster.tell(status(ready=True))
    wait_for('"ready": true')
    folder.forget()
    cluster.stop()
    wait_for("no cluster is running")
    for _ in range(200):
        if codes:
            break
        time.sleep(0.05)
    assert codes == [3]
    assert all(json.loads(line) for line in shown)


def test_watch_shows_that_the_controller_went_though_nothing_else_changed(
    cluster: FakeCluster, runs: Runs, watched: tuple[list[str], list[int], Watched]
) -> None:
    shown, _, wait_for = watched
    with serving(FakeCluster()) as controller:
        folder = runs(grpc=cluster.address, controller=controller.address)
        wait_for('"away": false')
        controller.stop()
        wait_for('"away": true')
    assert [json.loads(line)["ready"] for line in shown] == [True, True]  # and nothing was shown twice
    folder.forget()
    cluster.stop()
    wait_for("no cluster is running")
