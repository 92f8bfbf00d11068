"""A release's life with real helm and kubectl, against the emulator: installed, changed, set back, tested, removed."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.parser import build_parser
from tests.kube.cases import CASES, Values, block
from tests.kube.conftest import CHART
from tests.kube.emulator.kinds import KINDS
from tests.kube.emulator.server import Server
from tests.kube.emulator.state import Object
from tests.kube.tools import HELMS, Tools

GATEWAY, RAY = ("llm", "r-segue-gateway"), ("llm", "r-segue")
LOCAL = CASES["cpu-pd"]


class Cluster:
    """An emulator, and the clients that talk to it."""

    def __init__(self, server: Server, tools: Tools, helm: Path, folder: Path) -> None:
        self._server = server
        self._kubectl = tools.kubectl
        self._helm = helm
        self._folder = folder
        (folder / "kubeconfig").write_text(server.kubeconfig(), encoding="utf-8")

    def kubectl(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self._folder), "KUBECONFIG": str(self._folder / "kubeconfig")}
        return subprocess.run([str(self._kubectl), *words], env=environment, capture_output=True, text=True, timeout=60)

    def helm(self, *words: str, values: Values | None = None) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self._folder), "KUBECONFIG": str(self._folder / "kubeconfig")}
        command = [str(self._helm), *words]
        if values is not None:
            file = self._folder / "values.json"
            file.write_text(json.dumps(values), encoding="utf-8")
            command += ["--values", str(file)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)

    def done(self, *words: str, values: Values | None = None) -> str:
        """What helm said, which has to have worked."""
        said = self.helm(*words, values=values)
        assert said.returncode == 0, said.stderr
        return said.stdout

    def install(self, values: Values) -> str:
        return self.done("install", "r", str(CHART), "--wait", "--timeout", "30s", values=values)

    def upgrade(self, values: Values, *words: str) -> subprocess.CompletedProcess[str]:
        return self.helm("upgrade", "r", str(CHART), *words, values=values)

    def get(self, name: str, key: tuple[str, str]) -> Object:
        with self._server.state.changed:
            return copy.deepcopy(self._server.state.get(kind(name), key))

    def change(self, name: str, key: tuple[str, str], manager: str, changed: Callable[[Object], Any]) -> None:
        """As a controller of that name would."""
        with self._server.state.changed:
            thing = copy.deepcopy(self._server.state.get(kind(name), key))
            changed(thing)
            self._server.state.replace(kind(name), key, thing, manager)

    def everything(self) -> set[tuple[str, str]]:
        """Kind and name, without namespaces."""
        with self._server.state.changed:
            things = self._server.state.things
            return {(each.name, key[1]) for each in things for key in things[each]} - {
                ("Namespace", "default"),
                ("Namespace", "llm"),
            }


def kind(name: str) -> Any:
    return next(each for each in KINDS if each.name == name)


@pytest.fixture(params=HELMS)
def helm_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster(helm_name: str, tools: Tools, emulator: Server, tmp_path: Path) -> Cluster:
    return Cluster(emulator, tools, tools.helm(helm_name), tmp_path)


def gateways(values: Values, **more: Any) -> Values:
    return values | {"gateway": values.get("gateway", {}) | more}


def test_a_release_is_installed_changed_set_back_tested_and_removed(cluster):
    notes = cluster.install(LOCAL | {"cache": {"mode": "pvc"}})
    assert "helm test r -n llm --logs" in notes
    assert cluster.get("Deployment", GATEWAY)["spec"]["replicas"] == 2
    assert "r-segue" in cluster.kubectl("get", "raycluster").stdout

    said = cluster.upgrade(gateways(LOCAL, replicas=3) | {"cache": {"mode": "pvc"}}, "--wait", "--timeout", "30s")
    assert said.returncode == 0, said.stderr
    lines = [line.partition("-- segue ")[2].split() for line in said.stdout.splitlines() if "-- segue " in line]
    changed, anew = (build_parser().parse_args(words) for words in lines)
    assert (changed.module, changed.config) == ("upgrade", "/etc/segue/cluster.yaml")
    assert (anew.module, anew.name) == ("down", "local")
    assert mounted(cluster.get("RayCluster", RAY), "ray-head") >= {"/etc/segue"}, "where the notes have both run"
    assert cluster.get("Deployment", GATEWAY)["spec"]["replicas"] == 3
    assert cluster.get("RayCluster", RAY)["metadata"]["generation"] == 1, "Ray's pods have nothing to do with it"

    cluster.done("rollback", "r", "1", "--wait", "--timeout", "30s")
    assert cluster.get("Deployment", GATEWAY)["spec"]["replicas"] == 2

    tested = cluster.done("test", "r", "--logs", "--timeout", "30s")
    assert "Phase:          Succeeded" in tested
    assert "log of r-segue-ask" in tested

    cluster.done("uninstall", "r", "--wait", "--timeout", "30s")
    left = {("PersistentVolumeClaim", "r-segue-cache"), ("Pod", "r-segue-ask")}
    assert cluster.everything() == left, "what was downloaded stays, and the last test's pod"


def mounted(ray: Object, name: str) -> set[str]:
    (container,) = ray["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["name"] == name
    return {mount["mountPath"] for mount in container["volumeMounts"]}


def test_what_is_switched_off_goes(cluster):
    cluster.install(CASES["autoscaled"])
    assert ("HorizontalPodAutoscaler", "r-segue-gateway") in cluster.everything()
    said = cluster.upgrade(LOCAL | {"networkPolicy": {"enabled": False}})
    assert said.returncode == 0, said.stderr
    kinds = {name for name, _ in cluster.everything()}
    assert not {"HorizontalPodAutoscaler", "NetworkPolicy"} & kinds
    assert cluster.get("Deployment", GATEWAY)["spec"]["replicas"] == 2


def test_a_count_that_somebody_changed_by_hand(cluster, helm_name):
    """helm 4 says whose it is and leaves it; helm 3 sets it back without a word."""
    cluster.install(LOCAL)
    assert cluster.kubectl("scale", "deployment/r-segue-gateway", "--replicas=7").returncode == 0
    said = cluster.upgrade(gateways(LOCAL, replicas=4))
    if helm_name == "helm3":
        assert said.returncode == 0
        assert cluster.get("Deployment", GATEWAY)["spec"]["replicas"] == 4
        return
    assert said.returncode == 1
    assert 'conflict with "kubectl": .spec.replicas' in said.stderr
    assert cluster.get("Deployment", GATEWAY)["spec"]["replicas"] == 7
    forced = cluster.upgrade(gateways(LOCAL, replicas=4), "--force-conflicts")
    assert forced.returncode == 0, forced.stderr
    assert cluster.get("Deployment", GATEWAY)["spec"]["replicas"] == 4


def test_an_autoscalers_count_stays(cluster):
    values = gateways(LOCAL, autoscaling={"enabled": True})
    cluster.install(values)
    assert cluster.kubectl("scale", "deployment/r-segue-gateway", "--replicas=7").returncode == 0
    said = cluster.upgrade(values | {"podLabels": {"team": "llm"}})
    assert said.returncode == 0, said.stderr
    deployment = cluster.get("Deployment", GATEWAY)
    assert deployment["spec"]["template"]["metadata"]["labels"]["team"] == "llm"
    assert deployment["spec"]["replicas"] == 7


def test_worker_groups_that_rays_autoscaler_changed(cluster, helm_name):
    """A group is an element of one list, which belongs to whoever changed it last: to helm 4 that is a conflict."""
    values = CASES["autoscaled"]
    cluster.install(values)

    def more(thing: Object) -> None:
        thing["spec"]["workerGroupSpecs"][0]["replicas"] = 4

    cluster.change("RayCluster", RAY, "kuberay-autoscaler", more)
    said = cluster.upgrade(values | {"podLabels": {"team": "llm"}})
    if helm_name == "helm4":
        assert 'conflict with "kuberay-autoscaler": .spec.workerGroupSpecs' in said.stderr
        said = cluster.upgrade(values | {"podLabels": {"team": "llm"}}, "--force-conflicts")
    assert said.returncode == 0, said.stderr
    group = cluster.get("RayCluster", RAY)["spec"]["workerGroupSpecs"][0]
    assert "replicas" not in group
    assert group["minReplicas"] == 1, "so that KubeRay never goes below what the configuration needs"


def replicas(count: int) -> Values:
    """The configuration with so many replicas in its first group, and two in the other."""
    return block(prefill={"replicas": count}, decode={"replicas": 2})


def counts(cluster: Cluster) -> list[tuple[int, int, int]]:
    groups = cluster.get("RayCluster", RAY)["spec"]["workerGroupSpecs"]
    return [(group["minReplicas"], group["replicas"], group["maxReplicas"]) for group in sorted(groups, key=name_of)]


def name_of(group: Object) -> str:
    return str(group["groupName"])


def test_an_upgrade_takes_back_no_worker_pods_that_the_controller_gave(cluster, helm_name):
    """KubeRay would end pods of its own choice, as it would where an upgrade asked for fewer."""
    cluster.install(replicas(3))
    assert counts(cluster) == [(2, 2, 3), (3, 3, 4)]

    def spare(thing: Object) -> None:
        for group in thing["spec"]["workerGroupSpecs"]:
            group["replicas"] = group["maxReplicas"]

    cluster.change("RayCluster", RAY, "segue", spare)
    for count, expected in ((3, [(2, 3, 3), (3, 4, 4)]), (1, [(2, 3, 3), (1, 4, 4)]), (6, [(2, 3, 3), (6, 6, 7)])):
        said = cluster.upgrade(replicas(count))
        if said.returncode:
            assert helm_name == "helm4"
            assert 'conflict with "segue": .spec.workerGroupSpecs' in said.stderr
            said = cluster.upgrade(replicas(count), "--force-conflicts")
        assert said.returncode == 0, said.stderr
        assert counts(cluster) == expected


def test_a_dry_run_changes_nothing(cluster):
    cluster.install(LOCAL)
    before = cluster.get("Deployment", GATEWAY)
    said = cluster.upgrade(gateways(LOCAL, replicas=5), "--dry-run=server")
    assert said.returncode == 0, said.stderr
    assert cluster.get("Deployment", GATEWAY) == before


def test_what_kubernetes_refuses_is_told_and_the_release_can_be_mended(cluster):
    cluster.install(LOCAL)
    odd = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "odd"}, "dat": {}}
    said = cluster.upgrade(LOCAL | {"extraObjects": [odd]})
    assert said.returncode == 1
    assert "dat" in said.stderr
    assert cluster.upgrade(gateways(LOCAL, replicas=3)).returncode == 0
    assert cluster.get("Deployment", GATEWAY)["spec"]["replicas"] == 3
