"""What a platform's policies ask of the rendered objects: rights, secrets, networks, what may be written where."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from tests.kube.cases import CASES
from tests.kube.conftest import of
from tests.kube.looking import containers, pods, selects
from tests.kube.tools import ROOT

every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_pods_keep_to_the_restricted_standard(chart, case):
    for name, _, spec in pods(chart.objects(case)):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["seccompProfile"]["type"] == "RuntimeDefault", name
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            assert not spec.get(field), name
        assert spec.get("shareProcessNamespace", False) == (name == "head"), "where a driver looks for its raylet"
        for each in containers(spec):
            own = each["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, each["name"]
            assert own["capabilities"] == {"drop": ["ALL"]}, each["name"]
            assert own["readOnlyRootFilesystem"] is True, each["name"]
            assert not own.get("privileged")
        hosts = [volume["name"] for volume in spec.get("volumes", []) if "hostPath" in volume]
        assert hosts == (["cache"] if case == "cache-host" and name != "r-segue-ask" else []), name


@every_case
def test_containers_can_write_where_they_have_to(chart, case):
    """The root is read-only: HOME, /tmp and the cache have volumes, and every mount has its volume."""
    for name, _, spec in pods(chart.objects(case)):
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for each in containers(spec):
            mounts = {mount["mountPath"]: mount["name"] for mount in each["volumeMounts"]}
            assert len(mounts) == len(each["volumeMounts"]), (name, each["name"])
            assert set(mounts.values()) <= volumes, (name, each["name"])
            assert {"/home/segue", "/tmp"} <= set(mounts), (name, each["name"])  # noqa: S108
            environment = {variable["name"]: variable.get("value") for variable in each["env"]}
            assert environment["HOME"] in mounts
            assert name == "r-segue-ask" or name == "llm-ask" or "/cache" in mounts


def test_rays_autoscaler_can_write_there_as_well(chart):
    """KubeRay puts it into the head's pod, and gives it /tmp/ray alone."""
    cluster = of(chart.objects("autoscaled"), "RayCluster")["spec"]
    options, pod = cluster["autoscalerOptions"], cluster["headGroupSpec"]["template"]["spec"]
    assert options["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in options["volumeMounts"]} == {"/home/segue", "/tmp"}  # noqa: S108
    assert {mount["name"] for mount in options["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


@every_case
def test_no_secret_stands_in_plain_text(chart, case):
    for each in chart.objects(case):
        assert each["kind"] != "Secret"
    for name, _, spec in pods(chart.objects(case)):
        for each in containers(spec):
            for variable in each["env"]:
                if re.search("TOKEN|PASSWORD|SECRET|KEY$", variable["name"]):
                    assert "value" not in variable, (name, variable["name"])
                    assert "secretKeyRef" in variable["valueFrom"], (name, variable["name"])


def test_tokens_come_by_reference(chart):
    for name, _, spec in pods(chart.objects("token")):
        for each in containers(spec):
            references = {
                v["name"]: v["valueFrom"]["secretKeyRef"]
                for v in each["env"]
                if "secretKeyRef" in v.get("valueFrom", {})
            }
            assert references["HF_TOKEN"] == {"name": "hub", "key": "token"}, name
            if each["name"] == "controller":
                assert references["RAY_AUTH_TOKEN"] == {"name": "ray", "key": "auth_token"}
    assert of(chart.objects("token"), "RayCluster")["spec"]["authOptions"] == {"mode": "token", "secretName": "ray"}


@every_case
def test_only_the_head_gets_a_token_and_a_role_that_names_what_it_may(chart, case):
    objects = chart.objects(case)
    roles = [each for each in objects if each["kind"] in ("Role", "ClusterRole")]
    head = of(objects, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    assert bool(roles) == ("--kubernetes" in head["initContainers"][0]["args"][0]) == (case != "bare")
    for rule in [rule for role in roles for rule in role["rules"]]:
        assert not any("*" in rule[field] for field in ("verbs", "resources", "apiGroups"))
        if rule["resources"] != ["events"] and {"get", "update", "patch", "delete"} & set(rule["verbs"]):
            assert rule["resourceNames"], "what is written is bound to our own names"
    for each in objects:
        if each["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            (subject,) = each["subjects"]
            assert (subject["name"], subject["namespace"]) == (head["serviceAccountName"], "llm")
            assert each["roleRef"]["name"] in [role["metadata"]["name"] for role in roles]
    for name, _, spec in pods(objects):
        assert spec["automountServiceAccountToken"] is (name == "head" and case != "bare"), name


@every_case
def test_no_policy_stands_between_the_controller_and_kubernetes(chart, case):
    for each in chart.objects(case):
        if each["kind"] == "NetworkPolicy":
            assert each["spec"]["policyTypes"] == ["Ingress"], "outgoing traffic is not bound"


@every_case
def test_only_gateways_and_workers_reach_workers(chart, case):
    policies = {
        each["metadata"]["name"]: each["spec"] for each in chart.objects(case) if each["kind"] == "NetworkPolicy"
    }
    if case == "bare":
        assert not policies
        return
    ray = next(spec for name, spec in policies.items() if name.endswith("-ray"))
    (first, *others) = ray["ingress"]
    (peer,) = first["from"]
    labels = {name: meta["labels"] for name, meta, _ in pods(chart.objects(case))}
    allowed = {name for name in labels if selects(peer["podSelector"], labels[name])}
    assert allowed == {name for name in labels if not name.endswith("-ask")}
    assert all(rule["ports"] in ([{"protocol": "TCP", "port": p}] for p in (8080, 8265)) for rule in others)
    assert len(others) == (2 if case == "closed" else 0)
    gateway = next(spec for name, spec in policies.items() if name.endswith("-gateway"))
    open_to_all = "from" not in gateway["ingress"][0]
    assert open_to_all == (case != "closed")
    if not open_to_all:
        test = next(labels[name] for name in labels if name.endswith("-ask"))
        assert any(selects(peer.get("podSelector", {}), test) for peer in gateway["ingress"][0]["from"])


@pytest.mark.parametrize(
    ("case", "source"),
    [
        ("cpu-pd", {"emptyDir": {"sizeLimit": "200Gi"}}),
        ("cache-existing", {"persistentVolumeClaim": {"claimName": "models"}}),
        ("cache-pvc", {"persistentVolumeClaim": {"claimName": "r-segue-cache"}}),
        ("cache-host", {"hostPath": {"path": "/var/models", "type": "DirectoryOrCreate"}}),
    ],
)
def test_models_are_kept_where_the_values_say(chart, case, source):
    for name, _, spec in pods(chart.objects(case)):
        if not name.endswith("-ask"):
            assert {"name": "cache", **source} in spec["volumes"], name
    claims = [each["metadata"]["name"] for each in chart.objects(case) if each["kind"] == "PersistentVolumeClaim"]
    assert claims == (["r-segue-cache"] if case == "cache-pvc" else [])


@every_case
def test_workers_fetch_their_own_model_first(chart, case):
    configured = yaml.safe_load(of(chart.objects(case), "ConfigMap", "-spec")["data"]["cluster.yaml"])
    sources = {model["name"]: model["source"] for model in configured["models"]}
    for group in of(chart.objects(case), "RayCluster")["spec"]["workerGroupSpecs"]:
        template = group["template"]
        if case == "cache-pvc":  # prefetch: false
            assert "initContainers" not in template["spec"]
            continue
        (prefetch,) = template["spec"]["initContainers"]
        assert prefetch["args"] == [sources[template["metadata"]["annotations"]["segue.io/model"]]]
        assert prefetch["command"][:2] == ["python", "-m"]
        assert ROOT.joinpath(*prefetch["command"][2].split(".")).with_suffix(".py").is_file()


def test_extras_reach_everything(chart):
    objects = chart.objects("extras")
    for name, meta, spec in pods(objects):
        assert meta["labels"]["team"] == "llm", name
        for each in containers(spec):
            assert {"name": "NCCL_DEBUG", "value": "INFO"} in each["env"], (name, each["name"])
        if not name.endswith("-ask"):
            assert {"name": "more", "emptyDir": {}} in spec["volumes"], name
    assert {"beside", "r-too"} <= {each["metadata"]["name"] for each in objects}
    assert "NCCL_DEBUG" not in json.dumps(of(objects, "ConfigMap", "beside"))


def test_the_dashboard_asks_for_metrics_that_there_are(chart):
    board = json.loads(of(chart.objects("service-monitor"), "ConfigMap", "-dashboard")["data"]["segue.json"])
    asked = {
        name for panel in board["panels"] for t in panel["targets"] for name in re.findall(r"segue_\w+", t["expr"])
    }
    documented = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    assert len(asked) > 8
    assert not {name for name in asked if f"`{name.removesuffix('_bucket')}`" not in documented}
