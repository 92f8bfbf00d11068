"""What the chart comes to is what Kubernetes and KubeRay take, with both helms, and serves what it was given."""

from __future__ import annotations

import pytest
import yaml

from orchestrator import config
from tests.kube.cases import CASES, CONFIGS
from tests.kube.conftest import CHART, of
from tests.kube.schemas import REAL_CRD, Kubernetes, against_the_real_crd, foreign_kinds, real_crd
from tests.kube.tools import HELMS, NEWEST, OLDEST

needs_crd = pytest.mark.skipif(not REAL_CRD, reason="SEGUE_KUBERAY_CRD names no CRD of KubeRay's")


@pytest.fixture(scope="session", params=[OLDEST, NEWEST])
def kubernetes(request, tools) -> Kubernetes:
    return Kubernetes(tools, request.param)


@pytest.mark.parametrize("helm", HELMS)
def test_lint_has_nothing_to_say(charts, helm):
    done = charts(helm).run("lint", "--strict", str(CHART), values=CASES["cpu-pd"])
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_takes_every_object(chart, kubernetes, case):
    objects = chart.objects(case)
    found = {f"{each['kind']}/{each['metadata']['name']}": kubernetes.complaints(each) for each in objects}
    assert not {name: complaints for name, complaints in found.items() if complaints}


def test_a_wrong_field_is_told(chart, kubernetes):
    deployment = of(chart.objects("cpu-pd"), "Deployment")
    assert kubernetes.complaints({**deployment, "spec": {**deployment["spec"], "replica": 2}})
    cluster = of(chart.objects("cpu-pd"), "RayCluster")
    head = cluster["spec"]["headGroupSpec"]
    wrong = {**head, "template": {**head["template"], "spec": {**head["template"]["spec"], "nodeSelektor": {}}}}
    assert kubernetes.complaints({**cluster, "spec": {**cluster["spec"], "headGroupSpec": wrong}})
    assert kubernetes.complaints({**cluster, "spec": {**cluster["spec"], "workers": []}})


@pytest.mark.parametrize("case", CASES)
def test_both_helms_render_the_same(charts, case):
    def by_name(helm):
        return {(each["kind"], each["metadata"]["name"]): each for each in charts(helm).objects(case)}

    assert by_name("helm3") == by_name("helm4")


@pytest.mark.parametrize("case", CASES)
def test_no_crd_and_nothing_outside_the_namespace_but_the_right_to_read_nodes(chart, case):
    for each in chart.objects(case):
        assert each["kind"] not in ("CustomResourceDefinition", "Namespace")
        if each["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            assert case not in ("bare", "closed"), "where it was not to be"
            assert each["metadata"]["name"].startswith("segue:llm:"), "a release may have that name elsewhere"
            if each["kind"] == "ClusterRole":
                assert each["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}]
        else:
            assert each["metadata"].get("namespace", "llm") == "llm"


def test_a_file_goes_into_the_cluster_as_it_is(chart):
    text = (CONFIGS / "local.yaml").read_text(encoding="utf-8")
    assert of(chart.objects("cpu-pd"), "ConfigMap", "-spec")["data"]["cluster.yaml"] == text


@pytest.mark.parametrize("case", CASES)
def test_segue_takes_the_rendered_configuration(chart, case, tmp_path):
    """Numbers too: a template engine likes to write 67108864 as 6.7108864e+07, which is no count of bytes."""

    def read(text):
        file = tmp_path / "cluster.yaml"
        file.write_text(text, encoding="utf-8")
        return config.load(file)

    text = of(chart.objects(case), "ConfigMap", "-spec")["data"]["cluster.yaml"]
    given = CASES[case].get("clusterFile") or yaml.safe_dump(CASES[case].get("cluster"))
    assert read(text) == read(given)


def test_notes_tell_the_next_command(charts):
    done = charts("helm4").run(
        "install", "r", str(CHART), "--dry-run=client", "-n", "llm", values=CASES["gpu-over-nodes"]
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "m-serve: 2 x 2 pod(s) of 8 GPU(s)" in notes
    assert "kubectl -n llm rollout status deployment/r-segue-gateway" in notes
    assert "helm test r -n llm" in notes


@needs_crd
def test_kuberay_takes_every_cluster(chart):
    found = {case: against_the_real_crd(of(chart.objects(case), "RayCluster")) for case in CASES}
    assert not {case: complaints for case, complaints in found.items() if complaints}


@needs_crd
def test_the_schema_here_is_a_part_of_kuberays():
    """So that what passes where there is no CRD at hand passes KubeRay too."""
    wrong: list[str] = []

    def compare(own, real, path):
        for name, part in own.get("properties", {}).items():
            theirs = real.get("properties", {}).get(name)
            if theirs is None:
                wrong.append(f"{path}.{name}")
            elif part.get("type", theirs.get("type")) != theirs.get("type"):
                wrong.append(f"{path}.{name} is a {theirs.get('type')}")
            else:
                compare(part.get("items", part), theirs.get("items", theirs), f"{path}.{name}")

    compare(foreign_kinds()["RayCluster"]["properties"]["spec"], real_crd()["properties"]["spec"], "spec")
    assert not wrong
