"""The containers' own command lines on this machine's Ray: the rendered configuration comes up and answers a prompt."""

from __future__ import annotations

import copy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from orchestrator.cli.parser import build_parser
from tests.cli.test_end_to_end import START_SECONDS, segue, wait_until
from tests.kube.account import TOKEN, mount
from tests.kube.cases import CASES
from tests.kube.conftest import Object, of
from tests.kube.emulator.kinds import Schemas
from tests.kube.emulator.server import Server, serving
from tests.kube.emulator.state import State
from tests.kube.schemas import Kubernetes
from tests.kube.tools import NEWEST, Tools
from tests.ports import free_ports
from tests.ray_jobs import ray_jobs
from tests.ray_nodes import ray_nodes

SEGUE = [sys.executable, "-m", "orchestrator.cli.main"]
RAY = "127.0.0.1:6379"  # where a head's containers find it


def controller_words(objects: list[Object]) -> list[str]:
    """What the sidecar runs, once Ray is up."""
    (sidecar,) = of(objects, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["initContainers"]
    (line,) = [line for line in sidecar["args"][0].splitlines() if line.startswith("exec segue ")]
    return shlex.split(line)[2:]


def gateway_words(objects: list[Object]) -> list[str]:
    (gateway,) = of(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return [*gateway["command"][1:], *gateway["args"]]


def asking_words(objects: list[Object]) -> list[str]:
    (test,) = of(objects, "Pod")["spec"]["containers"]
    return [*test["command"][1:], *test["args"]]


@pytest.mark.parametrize("case", CASES)
def test_segue_knows_every_command_line(chart, case):
    objects = chart.objects(case)
    up = build_parser().parse_args(controller_words(objects))
    assert (up.module, up.bind, up.keep, up.no_gateways) == ("up", "node", True, True)
    groups = of(objects, "RayCluster")["spec"]["workerGroupSpecs"]
    pods = sum(group.get("replicas", group["minReplicas"]) * group["numOfHosts"] for group in groups)
    assert up.nodes == pods, "the first pods to join would get all replicas"
    mounts = of(objects, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["initContainers"][0]["volumeMounts"]
    assert str(Path(up.config).parent) in [mount["mountPath"] for mount in mounts]
    gateway = build_parser().parse_args(gateway_words(objects))
    ports = {f":{port['targetPort']}" for port in of(objects, "Service", "-gateway")["spec"]["ports"]}
    assert (gateway.http, gateway.grpc, ports) == ("0.0.0.0:8000", "0.0.0.0:9000", {":http", ":grpc"})
    chat = build_parser().parse_args(asking_words(objects))
    assert chat.model == yaml.safe_load(of(objects, "ConfigMap", "-spec")["data"]["cluster.yaml"])["models"][0]["name"]
    assert chat.prompt == "Say hello."


def probed(container: Object) -> set[str]:
    return {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}


def is_well(url: str) -> bool:
    try:
        return httpx.get(url, timeout=30).status_code == 200
    except httpx.HTTPError:  # it does not listen yet
        return False


@pytest.mark.ray
def test_ray_answers_its_probes_without_a_token(chart):
    """A kubelet has none: of the locked Ray, with its ports behind a token as ``ray.authSecret`` puts them."""
    cluster = of(chart.objects("token"), "RayCluster")["spec"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    with ray_jobs() as ray:
        assert httpx.get(f"{ray.dashboard}/api/cluster_status", timeout=30).status_code == 401
        urls = [f"{ray.dashboard}{path}" for path in probed(head)] + [f"{ray.agent}{path}" for path in probed(worker)]
        for url in urls:
            wait_until(partial(is_well, url), url, START_SECONDS)


class ApiServer:
    """The emulator, as a pod finds it: over TLS, with a token."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def refused(self) -> list[str]:
        return self._server.access.refused

    def let(self, namespace: str, objects: list[Object]) -> None:
        """Whoever brings the token may do what these Roles say."""
        self._server.access.bind("segue", f"system:serviceaccount:{namespace}:r-segue", objects)
        state = self._server.state
        with state.changed:
            kind = next(kind for kind in state.things if kind.plural == "rayclusters")
            state.create(kind, namespace, copy.deepcopy(of(objects, "RayCluster")), "helm")

    def _things(self, plural: str) -> dict[str, Object]:
        state = self._server.state
        with state.changed:
            things = next(things for kind, things in state.things.items() if kind.plural == plural)
            return {name: copy.deepcopy(thing) for (_, name), thing in things.items()}

    def reasons(self) -> set[str]:
        return {each["reason"] for each in self._things("events").values()}

    def state(self) -> str:
        return self._things("configmaps").get("r-segue-status", {"data": {"state": ""}})["data"]["state"]

    def holder(self) -> str:
        return self._things("leases")["r-segue-controller"]["spec"]["holderIdentity"]


@pytest.fixture
def api_server(tools: Tools, schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    folder = tmp_path / "account"
    monkeypatch.setenv("SEGUE_KUBERNETES_ACCOUNT", str(folder))
    with serving(State(schemas, Kubernetes(tools, NEWEST)), mount(folder)) as server:
        host, port = server.server_address[:2]
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(host))
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        server.access.token = TOKEN
        yield ApiServer(server)
    assert not server.failures


@contextmanager
def running(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen([*SEGUE, *words], stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.mark.ray
def test_the_rendered_configuration_answers_a_prompt(chart, api_server, tmp_path, monkeypatch):
    """A laptop's file, all on loopback, by the words of the sidecar, of a gateway's pod and of ``helm test``.

    The controller calls an API server with the token of a pod, which lets it do what the chart's Roles say.
    """
    http, grpc, controller = free_ports(3)
    text = f"""
cluster: {{name: from-the-chart}}
gateway: {{http: "127.0.0.1:{http}", grpc: "127.0.0.1:{grpc}"}}
controller: {{listen: "127.0.0.1:{controller}", drain_timeout: 5, rollout: {{health_seconds: 1}}}}
models:
  - name: tiny
    source: "tiny:llama"
    pools: {{prefill: {{backend: mock}}, decode: {{backend: mock, engine: {{step_seconds: 0.01}}}}}}
"""
    done = chart.template({"clusterFile": text})
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    api_server.let("llm", objects)
    file = tmp_path / "cluster.yaml"
    file.write_text(of(objects, "ConfigMap", "-spec")["data"]["cluster.yaml"], encoding="utf-8")
    monkeypatch.setenv("SEGUE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with ray_nodes(2) as address:
        there = {RAY: address, "/etc/segue/cluster.yaml": str(file)}
        up = [there.get(word, word) for word in controller_words(objects)]
        service = f"--controller=r-segue-controller.llm.svc:{controller}"
        pod = {
            service: f"--controller=127.0.0.1:{controller}",
            "--name=$(POD_NAME)": "--name=pod",
            "--http=0.0.0.0:8000": f"--http=127.0.0.1:{http}",
            "--grpc=0.0.0.0:9000": f"--grpc=127.0.0.1:{grpc}",
        }
        assert set(pod) <= set(gateway_words(objects))
        gateway = [pod.get(word, word) for word in gateway_words(objects)]
        log = tmp_path / "up.log"
        try:
            with running(up, log) as sidecar, running(gateway, tmp_path / "gateway.log") as serving:

                def answers() -> bool:
                    assert sidecar.poll() is None, log.read_text(encoding="utf-8")
                    assert serving.poll() is None, (tmp_path / "gateway.log").read_text(encoding="utf-8")
                    return segue("status", "--address", f"127.0.0.1:{grpc}", seconds=60).returncode == 0

                wait_until(answers, "the gateway to see every pool", START_SECONDS)
                host = "--address=r-segue-gateway.llm.svc:9000"
                asked = [f"--address=127.0.0.1:{grpc}" if word == host else word for word in asking_words(objects)]
                said = segue(*asked, seconds=60)
                assert said.returncode == 0, said.stderr
                assert said.stdout.strip()
                wait_until(lambda: "ModelReady" in api_server.reasons(), "the event", START_SECONDS)
                wait_until(lambda: api_server.state().startswith("ready, since "), "the status", START_SECONDS)
                assert api_server.holder().startswith("from-the-chart@session_")
                # As a changed ConfigMap comes into the pod, and as helm's notes have it carried out.
                file.write_text(file.read_text(encoding="utf-8").replace("0.01", "0.02"), encoding="utf-8")
                changed = segue("upgrade", str(file), "--address", address, seconds=START_SECONDS)
                assert changed.returncode == 0, changed.stdout + changed.stderr
                assert "engine.step_seconds: 0.01 -> 0.02" in changed.stdout
                wait_until(lambda: "UpgradeDone" in api_server.reasons(), "the event", START_SECONDS)
            assert "from-the-chart" in log.read_text(encoding="utf-8")
            with running(up, tmp_path / "again.log"):
                again = tmp_path / "again.log"
                wait_until(lambda: "found running" in again.read_text(encoding="utf-8"), "the sidecar", START_SECONDS)
        finally:
            segue("down", "--address", address, "--name", "from-the-chart", seconds=90)
    assert api_server.holder() == "", "whoever comes next need not wait"
    assert api_server.state().startswith("ended, since ")
    assert {"UpgradeBegun", "WorkerDrained", "ClusterDraining"} <= api_server.reasons()
    assert not api_server.refused
