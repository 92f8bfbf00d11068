"""The life of an owner, from the first step until nothing is left of it: a fake Ray below, a fake cluster beside it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.cli import run_folder
from orchestrator.cli.exits import Exit
from orchestrator.cli.main import main
from orchestrator.cli.run_folder import RunFolder
from orchestrator.proto import cluster_pb2 as cpb
from tests.cli.conftest import Runs
from tests.cli.fakes import FakeCluster, status, worker
from tests.cli.owner_program import SHM

SECONDS = 30.0

CONFIG = """
cluster: {{name: test}}
gateway: {{http: "127.0.0.1:{http}", grpc: "127.0.0.1:{grpc}"}}
controller: {{listen: "127.0.0.1:0", drain_timeout: {drain}, start_timeout: {start}}}
models:
  - name: tiny
    source: {source}
    pools:
      prefill: {{replicas: 1, backend: mock}}
      decode: {{replicas: 1, backend: mock}}
"""


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.05)


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


class Owner:
    """A running owner_program and what it printed so far."""

    def __init__(self, config: Path, address: str, output: Path) -> None:
        self.output = output
        command = [sys.executable, "-m", "tests.cli.owner_program", str(config), address]
        with output.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def shown(self) -> str:
        return self.output.read_text()

    def wait_for(self, part: str) -> None:
        wait_until(lambda: part in self.shown or self.process.poll() is not None, part)
        assert part in self.shown, self.shown

    def exit_code(self) -> int:
        return self.process.wait(SECONDS)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def shared_memory(self) -> list[Path]:
        return list(SHM.glob(f"segue-test-{self.process.pid}-*"))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def write(http: int = 0, drain: float = 5, start: float = 60) -> Path:
        path = tmp_path / "test.yaml"
        path.write_text(CONFIG.format(http=http, grpc=0, drain=drain, start=start, source=model))
        return path

    return write


@pytest.fixture
def up(tmp_path: Path, cluster: FakeCluster) -> Iterator[Callable[[Path], Owner]]:
    owners: list[Owner] = []

    def start(path: Path) -> Owner:
        owners.append(Owner(path, cluster.address, tmp_path / f"output-{len(owners)}"))
        return owners[-1]

    yield start
    end(owners)


def end(owners: list[Owner]) -> None:
    """Those that a failed test left."""
    for owner in owners:
        if owner.process.poll() is None:
            owner.process.kill()
            owner.process.wait()


def record_exists() -> bool:
    return bool(run_folder.running())


def test_from_up_to_nothing_left(
    up: Callable[[Path], Owner],
    config: Callable[..., Path],
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEGUE_TEST_ORPHAN", "1")
    importing = worker("prefill", "starting", stage="importing vLLM")
    cluster.tell(status(importing, worker("decode", "pending"), ready=False))
    owner = up(config())
    owner.wait_for("worker tiny-prefill-0: importing vLLM")
    cluster.tell(status(grpc_address=cluster.address))
    owner.wait_for("Stop it: Ctrl-C")
    shown = owner.shown
    assert "\x1b" not in shown
    assert "✓ worker tiny-prefill-0: ready (" in shown
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in shown
    assert "The capital is Paris." in shown
    assert "prefill on tiny-prefill-0 · decode on tiny-decode-0 · 1.5 MB of KV cache moved" in shown

    folder, record = run_folder.find(None)
    assert (record.pid, record.phase, record.grpc) == (owner.process.pid, "ready", cluster.address)
    cluster.tell(status(worker("prefill", "dead", detail="killed"), worker("decode"), grpc_address=cluster.address))
    owner.wait_for("✗ worker tiny-prefill-0: killed\n")  # and not how long it had been up

    started = owner.descendants()
    assert owner.shared_memory()
    owner.process.send_signal(signal.SIGINT)
    assert owner.exit_code() == 0
    assert "draining test for 5 s" in owner.shown
    assert "had to end process" in owner.shown  # the orphan that ignores SIGTERM
    assert "none left, ports free" in owner.shown
    assert not living(started)
    assert not owner.shared_memory()
    assert not folder.record_path.exists()
    assert not (folder.path / "ray").exists()
    assert folder.logs.is_dir()


def test_the_welcome_names_a_gateway_that_serves(
    up: Callable[[Path], Owner], config: Callable[..., Path], cluster: FakeCluster
) -> None:
    still = cpb.GatewayStatus(id="gateway-0", state="starting", stage="loading the tokenizer")
    two = status(grpc_address=cluster.address)
    [serving] = two.gateways
    serving.id = "gateway-1"
    del two.gateways[:]
    two.gateways.extend([still])
    cluster.tell(two)
    owner = up(config())
    owner.wait_for("… gateway gateway-0: loading the tokenizer")
    assert "Segue is up" not in owner.shown
    two = cpb.ClusterStatus.FromString(two.SerializeToString())
    two.gateways.extend([serving])
    cluster.tell(two)
    owner.wait_for("Stop it: Ctrl-C")
    assert "http://127.0.0.1:8000/v1" in owner.shown
    _, record = run_folder.find(None)
    assert (record.http, record.grpc) == ("127.0.0.1:8000", cluster.address)


def test_a_gateway_that_never_serves_does_not_hold_it_up_for_ever(
    up: Callable[[Path], Owner], config: Callable[..., Path], cluster: FakeCluster
) -> None:
    cluster.tell(status(gateway="starting"))
    owner = up(config(start=2))
    assert owner.exit_code() == 1
    assert "not ready after 2 s; still waiting for gateway gateway-0" in owner.shown


def test_an_interrupt_before_it_is_ready_is_130(
    up: Callable[[Path], Owner], config: Callable[..., Path], cluster: FakeCluster
) -> None:
    cluster.tell(status(worker("prefill", "starting", stage="importing vLLM"), ready=False))
    owner = up(config())
    owner.wait_for("importing vLLM")
    owner.process.send_signal(signal.SIGTERM)
    assert owner.exit_code() == 130
    assert not owner.shared_memory()


def test_a_second_interrupt_hurries_the_drain(
    up: Callable[[Path], Owner], config: Callable[..., Path], cluster: FakeCluster
) -> None:
    cluster.tell(status(grpc_address=cluster.address))
    owner = up(config(drain=600))
    owner.wait_for("Stop it: Ctrl-C")
    owner.process.send_signal(signal.SIGINT)
    owner.wait_for("draining test for 600 s")
    owner.process.send_signal(signal.SIGINT)
    owner.wait_for("draining test for 0 s")
    assert owner.exit_code() == 0


def test_the_drain_is_as_long_as_an_upgrade_has_made_it(
    up: Callable[[Path], Owner], config: Callable[..., Path], cluster: FakeCluster
) -> None:
    cluster.tell(status(grpc_address=cluster.address))
    owner = up(config(drain=5))
    owner.wait_for("Stop it: Ctrl-C")
    folder, _ = run_folder.find(None)
    folder.update(drain_seconds=7.0)  # as `segue upgrade` does
    owner.process.send_signal(signal.SIGINT)
    assert owner.exit_code() == 0
    assert "draining test for 7 s" in owner.shown


def test_a_worker_that_fails_twice_ends_it_with_its_last_lines(
    up: Callable[[Path], Owner], config: Callable[..., Path], cluster: FakeCluster
) -> None:
    failed = status(
        worker("prefill"), worker("decode", "failed", detail="tiny-decode-0: engine start failed"), ready=False
    )
    cluster.tell(failed)
    owner = up(config())
    owner.wait_for("tiny-decode-0 | ValueError: no memory for the cache")
    assert "Traceback" not in owner.shown
    cluster.tell(status(worker("prefill"), worker("decode", "starting"), ready=False))
    owner.wait_for("… worker tiny-decode-0: starting")
    cluster.tell(failed)
    assert owner.exit_code() == 1
    log = RunFolder.of("test").logs / "tiny-decode-0.log"
    assert "tiny-decode-0 | Traceback" in owner.shown
    assert f"segue: tiny-decode-0: ValueError: no memory for the cache (its whole log: {log})" in owner.shown
    assert not owner.shared_memory()


def test_a_start_is_bounded(up: Callable[[Path], Owner], config: Callable[..., Path], cluster: FakeCluster) -> None:
    cluster.tell(status(worker("prefill"), worker("decode", "starting", stage="loading weights"), ready=False))
    owner = up(config(start=2))
    assert owner.exit_code() == 1
    assert "not ready after 2 s; still waiting for worker tiny-decode-0" in owner.shown


def test_the_same_name_twice_is_refused(
    up: Callable[[Path], Owner], config: Callable[..., Path], cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.tell(status(grpc_address=cluster.address))
    owner = up(config())
    owner.wait_for("Stop it: Ctrl-C")
    assert main(["up", str(config())]) == 1
    said = capsys.readouterr().err
    assert f"cluster test is already up (process {owner.process.pid}" in said
    assert "segue down --name test" in said
    assert main(["status"]) == 0  # the first one is unharmed
    assert main(["down"]) == 0
    assert owner.exit_code() == 0
    assert main(["down"]) == 3


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_cluster_of_that_name_on_the_same_ray_is_refused_and_not_taken_down(
    when: str, up: Callable[[Path], Owner], config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be somebody else's, or of another SEGUE_HOME."""
    monkeypatch.setenv("SEGUE_TEST_TAKEN", when)
    owner = up(config())
    assert owner.exit_code() == Exit.USAGE
    assert "cluster.name: the name is taken" in owner.shown
    assert "draining test" not in owner.shown


def test_a_taken_port_is_refused_before_anything_starts(
    config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["up", str(config(http=port))]) == 1
    said = capsys.readouterr().err
    assert f"gateway.http: 127.0.0.1:{port} is taken by process {os.getpid()} (" in said
    assert f"kill {os.getpid()}" in said
    assert not record_exists()


def test_a_port_of_a_cluster_that_has_lost_its_owner_is_freed_by_taking_the_cluster_down(
    config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        title = "ray::GatewayProcess" + 40 * " "  # as Ray calls an actor's process
        with subprocess.Popen([title, "60"], executable="sleep", pass_fds=[other.fileno()]) as holder:
            port = other.getsockname()[1]
            other.close()
            assert main(["up", str(config(http=port))]) == 1
            holder.kill()
    said = capsys.readouterr().err
    assert f"is taken by process {holder.pid} (ray::GatewayProcess" in said
    assert "segue down --name NAME --address ADDRESS" in said
    assert f"kill {holder.pid}" not in said


def test_a_port_of_another_cluster_names_that_cluster(
    config: Callable[..., Path], cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs("other", http=cluster.address)
    assert main(["up", str(config(http=int(cluster.address.split(":")[1])))]) == 1
    said = capsys.readouterr().err
    assert f"{cluster.address} is taken by cluster other (segue down --name other, or" in said


def test_a_bad_configuration_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("cluster: {name: test}\nmodels:\n  - {name: m, source: ./x, pools: {serve: {replicaz: 1}}}\n")
    for command in (["up"], ["config", "check"]):
        assert main([*command, str(bad)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        [line] = said.err.splitlines()
        assert str(bad) in line
        assert "replicaz" in line
    assert main(["config", "check", "--json", str(bad)]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["valid"], "replicaz" in told["error"]["where"] + told["error"]["what"]) == (False, True)


@pytest.mark.parametrize(
    ("source", "told"), [("./absent", "no such folder"), ("pip:segue-absent-model", "is not installed")]
)
def test_a_source_that_is_not_here_is_for_up_to_tell_and_ray_is_not_started(
    up: Callable[[Path], Owner],
    config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    told: str,
) -> None:
    path = config()
    path.write_text(path.read_text().replace(f"source: {tmp_path}/model", f"source: {source}"))
    assert main(["config", "check", str(path)]) == 0  # it may be meant for another machine
    owner = up(path)
    assert owner.exit_code() == 1
    assert told in owner.shown
    assert "ray: starting" not in owner.shown


def test_an_impossible_number_is_one_line_with_all_one_needs(
    config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config()
    path.write_text(path.read_text().replace("replicas: 1, backend: mock", "replicas: 1, engine: {max_num_seqs: 0}"))
    assert main(["config", "check", str(path)]) == 2
    place = f"{path}:9: models[0].pools.prefill.engine.max_num_seqs"
    assert capsys.readouterr().err == f"segue: {place}: found 0, allowed: 1 or more\n"


def test_what_is_left_open_is_a_good_configuration_that_nothing_is_simulated_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "open.yaml"
    load = "{requests_per_second: 1, prompt_tokens: 1, output_tokens: 1}"
    pools = "{prefill: {replicas: auto}, decode: {replicas: 2}}"
    path.write_text(f"cluster: {{name: test}}\nmodels:\n  - {{name: m, source: ./x, pools: {pools}, load: {load}}}\n")
    assert main(["config", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: ok, cluster test: m (auto prefill, 2 decode)\n"
    assert main(["sim", "--trace", "generate:poisson", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    what = "models[0].pools.prefill.replicas is still auto, and has to be a number here (write a number)"
    assert said.err == f"segue: {path}: {what}\n"


def test_a_good_configuration(config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = config()
    assert main(["config", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: ok, cluster test: tiny (1 prefill, 1 decode)\n"
    assert main(["config", "check", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["name"] == "test"


def test_an_owner_that_is_killed_leaves_nothing_either(
    up: Callable[[Path], Owner],
    config: Callable[..., Path],
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEGUE_TEST_ORPHAN", "1")
    cluster.tell(status(grpc_address=cluster.address))
    owner = up(config())
    owner.wait_for("Stop it: Ctrl-C")
    assert owner.shared_memory()
    started = owner.descendants()
    folder = RunFolder.of("test")
    owner.process.kill()
    owner.process.wait()
    wait_until(lambda: not folder.record_path.exists(), "the guard's end")
    wait_until(lambda: not living(started), "the end of all processes, the guard's too")
    assert not owner.shared_memory()
    assert main(["status"]) == 3


def test_a_record_without_an_owner_is_cleaned_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = RunFolder.of("test")
    folder.logs.mkdir(parents=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = subprocess.Popen(["sleep", "600"])
    ray_folder = tmp_path / "ray"
    ray_folder.mkdir()
    record = run_folder.RunRecord("test", gone.pid, "some.yaml", time.time(), ray_folder=str(ray_folder))
    folder.write(record)
    created = psutil.Process(left.pid).create_time()
    folder.footprint.write_text(json.dumps({"processes": {left.pid: created, os.getpid(): 1.0}, "shm": []}))
    assert main(["status"]) == 3
    assert main(["down"]) == 3
    assert left.wait(SECONDS) == -signal.SIGTERM
    said = capsys.readouterr()
    assert "cluster test had died" in said.out
    assert "no cluster is running" in said.err
    assert not ray_folder.exists()
    assert not folder.record_path.exists()
