"""Pods are as many, as large, as patient and as well found as the configuration makes them."""

from __future__ import annotations

import math
import re

import pytest
import yaml

from orchestrator import config
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.resources import footprint
from orchestrator.core.planning.owners import MODEL, ROLE, label_of, owner_for, owner_of
from orchestrator.core.slots import Kind, Slot
from orchestrator.core.spec import Device, Role
from tests.kube.cases import CASES
from tests.kube.conftest import CHART, Object, of
from tests.kube.looking import containers, pods, selects
from tests.kube.tools import ROOT

every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_selectors_find_their_pods_and_no_others(chart, case):
    objects = chart.objects(case)
    labels = {name: meta["labels"] for name, meta, _ in pods(objects)}
    workers = {name for name in labels if labels[name]["app.kubernetes.io/component"] == "worker"}
    gateway, ray = {name for name in labels if name.endswith("-gateway")}, workers | {"head"}
    expected = {
        ("Deployment", "-gateway"): gateway,
        ("PodDisruptionBudget", "-gateway"): gateway,
        ("NetworkPolicy", "-gateway"): gateway,
        ("PodMonitor", "-gateway"): gateway,
        ("Service", "-gateway"): gateway,
        ("Service", "-controller"): {"head"},
        ("NetworkPolicy", "-ray"): ray,
        ("PodMonitor", "-ray"): ray,
    }
    seen = 0
    for each in objects:
        spec = each.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if not selector or each["kind"] == "ServiceMonitor":
            continue
        selector = selector if "match" in "".join(selector) else {"matchLabels": selector}
        ending = "-" + each["metadata"]["name"].rpartition("-")[2]
        assert {name for name in labels if selects(selector, labels[name])} == expected[each["kind"], ending]
        seen += 1
    assert seen >= 3


@every_case
def test_a_worker_group_is_spread_by_its_own_pods(chart, case):
    for name, meta, spec in pods(chart.objects(case)):
        for each in spec.get("topologySpreadConstraints", []):
            assert selects(each["labelSelector"], meta["labels"]), name
            others = [labels["labels"] for other, labels, _ in pods(chart.objects(case)) if other != name]
            assert not any(selects(each["labelSelector"], labels) for labels in others), name


@every_case
def test_what_has_an_owner_gets_no_replicas(chart, case):
    objects = chart.objects(case)
    deployment, cluster = of(objects, "Deployment"), of(objects, "RayCluster")["spec"]
    scaled = [each for each in objects if each["kind"] == "HorizontalPodAutoscaler"]
    assert ("replicas" in deployment["spec"]) == (not scaled)
    for each in scaled:
        assert 1 <= each["spec"]["minReplicas"] <= each["spec"]["maxReplicas"]
        assert each["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    for group in cluster["workerGroupSpecs"]:
        assert ("replicas" in group) == (not cluster["enableInTreeAutoscaling"])
        assert group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]


@every_case
def test_nodes_of_ray_say_whose_they_are_as_the_planner_reads_it(chart, case):
    owners = []
    for group in of(chart.objects(case), "RayCluster")["spec"]["workerGroupSpecs"]:
        meta = group["template"]["metadata"]
        model, role = meta["annotations"]["segue.io/model"], meta["labels"]["segue.io/role"]
        assert group["labels"] == {MODEL: label_of(model), ROLE: role, "segue.io/group": group["groupName"]}
        owners.append(owner_of(group["labels"]))
        assert owner_for(model, Role(role), owners) == owners[-1]
    assert len(set(owners)) == len(owners)


def test_any_models_name_is_the_same_label_in_the_chart_as_in_the_planner(charts):
    names = ("m", "Qwen/Qwen3-8B", "-a-", "A" * 40, "a" * 29 + "--b", "a" * 29 + ".b", "é", "a_b", "x--y", "1.5")
    models = [{"name": name, "source": "org/Name", "pools": {"serve": {}}} for name in names]
    done = charts("helm4").template({"cluster": {"cluster": {"name": "names"}, "models": models}})
    assert not done.returncode, done.stderr
    documents = [each for each in yaml.safe_load_all(done.stdout) if each]
    groups = of(documents, "RayCluster")["spec"]["workerGroupSpecs"]
    assert [group["labels"][MODEL] for group in groups] == [label_of(name) for name in names]
    assert all(re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", group["groupName"]) for group in groups)


@every_case
def test_a_group_has_room_for_the_spares_of_an_upgrade(chart, case):
    cluster = of(chart.objects(case), "RayCluster")["spec"]
    for group in cluster["workerGroupSpecs"]:
        if not cluster["enableInTreeAutoscaling"]:
            assert group["maxReplicas"] == group["replicas"] + 1, "as many as controller.rollout.surge"
            assert group["minReplicas"] == group["replicas"]


@every_case
def test_gpus_and_pods_are_what_the_workers_will_ask_of_ray(chart, case, tmp_path):
    """Of Ray's bundles, which the controller reserves for each replica; a share of a GPU counts as such."""
    objects = chart.objects(case)
    file = tmp_path / "cluster.yaml"
    file.write_text(of(objects, "ConfigMap", "-spec")["data"]["cluster.yaml"], encoding="utf-8")
    spec = config.load(file)
    write = Assigner(spec, "", lambda model, pool: {})
    groups = {
        (
            group["template"]["metadata"]["annotations"]["segue.io/model"],
            group["template"]["metadata"]["labels"]["segue.io/role"],
        ): group
        for group in of(objects, "RayCluster")["spec"]["workerGroupSpecs"]
    }
    assert set(groups) == {(model.name, role.value) for model in spec.models for role in model.pools}
    for (name, role), group in groups.items():
        pool = next(pool for each, pool in spec.model(name).pools.items() if each.value == role)
        order = write.order(Slot(f"{name}-{role}-0", Kind.WORKER, name, pool.role), 1)
        asked = footprint(order)
        resources = group["template"]["spec"]["containers"][0]["resources"]
        per_pod = resources["requests"].get("nvidia.com/gpu", 0)
        assert per_pod == resources["limits"].get("nvidia.com/gpu", 0)
        assert group["rayStartParams"]["num-gpus"] == str(per_pod)
        gpus = sum(bundle.get("GPU", 0) for bundle in asked.bundles)
        if pool.device is Device.CPU:
            assert (per_pod, group["numOfHosts"], group.get("replicas", pool.replicas)) == (0, 1, pool.replicas)
        elif pool.share < 1:
            assert (per_pod, group["replicas"]) == (1, math.ceil(pool.replicas / (1 // pool.share)))
        else:
            assert per_pod * group["numOfHosts"] == gpus == pool.tensor_parallel * pool.pipeline_parallel
            assert group["replicas"] == pool.replicas
            assert per_pod % pool.tensor_parallel == 0, "a stage is never cut between pods"
            assert asked.strategy != "STRICT_PACK" or group["numOfHosts"] == 1
        assert float(group["rayStartParams"]["num-cpus"]) >= sum(b["CPU"] for b in asked.bundles) / group["numOfHosts"]


UNITS = {"m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


def quantity(value: object) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value)).groups()
    return float(number) * UNITS.get(unit, 1.0)


@every_case
def test_no_container_requests_more_than_its_limit(chart, case):
    """Kubernetes refuses such pods, which only KubeRay's operator gets to hear. Memory always has a limit."""
    for name, _, spec in pods(chart.objects(case)):
        for each in containers(spec):
            asked, most = each["resources"]["requests"], each["resources"]["limits"]
            assert "memory" in most, (name, each["name"])
            over = {key for key in asked.keys() & most if quantity(asked[key]) > quantity(most[key])}
            assert not over, (name, each["name"], asked, most)


def test_a_pool_has_its_own_place(chart):
    groups = of(chart.objects("gpu-apart"), "RayCluster")["spec"]["workerGroupSpecs"]
    prefill, decode = sorted(
        (group["template"]["spec"] for group in groups), key=lambda spec: "nodeSelector" not in spec
    )
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert prefill["nodeSelector"] == {"pool": "prefill"}
    assert prefill["tolerations"] == [{"key": "prefill", "operator": "Exists"}, gpu]
    assert prefill["topologySpreadConstraints"][0]["topologyKey"] == "zone"
    assert prefill["containers"][0]["resources"]["requests"] == {"cpu": "1500m", "memory": "16Gi", "nvidia.com/gpu": 2}
    assert "nodeSelector" not in decode
    assert decode["tolerations"] == [gpu]
    assert decode["containers"][0]["resources"]["requests"] == {"cpu": "16", "memory": "16Gi", "nvidia.com/gpu": 8}
    assert prefill["runtimeClassName"] == decode["runtimeClassName"] == "nvidia"


@every_case
def test_probes_ask_for_what_is_there(chart, case):
    for name, _, spec in pods(chart.objects(case)):
        if name.endswith("-ask"):
            continue
        (main,) = spec["containers"]
        ports = {port["name"] for port in main["ports"]}
        probes = {kind: main[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
        assert all(probe["httpGet"]["port"] in ports for probe in probes.values()), name
        # A start, as long as it may take, is never cut short by the other two.
        assert probes["startup"]["failureThreshold"] * probes["startup"]["periodSeconds"] >= 300, name
        slowest = probes["liveness"]["failureThreshold"] * probes["liveness"]["periodSeconds"]
        assert slowest > probes["readiness"]["failureThreshold"] * probes["readiness"]["periodSeconds"], name


def test_gateways_start_for_as_long_as_70b_weights_take(chart):
    (main,) = of(chart.objects("gpu-pd"), "Deployment")["spec"]["template"]["spec"]["containers"]
    start = main["startupProbe"]
    assert start["httpGet"]["path"] == "/ready"
    assert start["failureThreshold"] * start["periodSeconds"] >= 3600
    assert main["livenessProbe"]["httpGet"]["path"] == main["readinessProbe"]["httpGet"]["path"] == "/health"
    assert of(chart.objects("gpu-pd"), "Deployment")["spec"]["progressDeadlineSeconds"] > 3600


def test_probes_can_be_changed_field_by_field(chart):
    objects = chart.objects("extras")
    (gateway,) = of(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert gateway["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    worker = of(objects, "RayCluster")["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["startupProbe"]["failureThreshold"] == 720
    assert worker["startupProbe"]["httpGet"]["path"] == "/api/local_raylet_healthz"


def test_the_head_is_ready_before_there_is_anything_to_control(chart):
    """Workers find the head through a Service that leaves out what is not ready; the controller waits for workers."""
    head = of(chart.objects("cpu-pd"), "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    (controller,) = head["initContainers"]
    assert controller["restartPolicy"] == "Always"
    assert not {"readinessProbe", "startupProbe"} & set(controller)
    assert of(chart.objects("cpu-pd"), "Service", "-controller")["spec"]["publishNotReadyAddresses"] is True


def test_the_controller_shares_rays_sockets_with_the_head(chart):
    head = of(chart.objects("autoscaled"), "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    for each in (head["initContainers"][0], head["containers"][0]):
        assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in each["volumeMounts"]  # noqa: S108
        assert {"name": "home", "mountPath": "/home/segue"} in each["volumeMounts"]


@every_case
def test_grace_periods_add_up(chart, case, tmp_path):
    objects = chart.objects(case)
    file = tmp_path / "cluster.yaml"
    file.write_text(of(objects, "ConfigMap", "-spec")["data"]["cluster.yaml"], encoding="utf-8")
    drain = config.load(file).controller.drain_timeout
    for name, _, spec in pods(objects):
        if name.endswith("-ask"):
            continue
        (main,) = spec["containers"]
        if name.endswith("-gateway"):
            (linger,) = [int(arg.partition("=")[2]) for arg in main["args"] if arg.startswith("--linger=")]
            assert spec["terminationGracePeriodSeconds"] >= linger + drain + 15
            (wait,) = [int(arg.partition("=")[2]) for arg in main["args"] if arg.startswith("--wait=")]
            deployment = of(objects, "Deployment", "-gateway")["spec"]
            assert wait == deployment["progressDeadlineSeconds"] - 600, "it waits for as long as a start may take"
        else:
            # What runs on a worker goes on for as long as the gateways take to finish.
            command, seconds = main["lifecycle"]["preStop"]["exec"]["command"]
            assert command == "sleep"
            assert int(seconds) >= linger_of(objects) + drain
            assert spec["terminationGracePeriodSeconds"] >= int(seconds) + 15


def linger_of(objects: list[Object]) -> int:
    (main,) = of(objects, "Deployment", "-gateway")["spec"]["template"]["spec"]["containers"]
    return next(int(arg.partition("=")[2]) for arg in main["args"] if arg.startswith("--linger="))


@every_case
def test_gateways_call_the_controller_where_it_listens(chart, case):
    objects = chart.objects(case)
    service = of(objects, "Service", "-controller")
    (port,) = service["spec"]["ports"]
    (main,) = of(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert f"--controller={service['metadata']['name']}.llm.svc:{port['port']}" in main["args"]
    head = of(objects, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "controller", "containerPort": port["port"]} in head["ports"]


@every_case
def test_names_are_short_enough_for_what_kuberay_makes_of_them(chart, case):
    """It appends -head-svc and, to a group's name, -worker- and five letters; a Service's name has 63 at most."""
    cluster = of(chart.objects(case), "RayCluster")
    assert len(cluster["metadata"]["name"]) <= 40
    names = [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 50 for name in names)


def test_the_image_has_the_ray_that_the_chart_names():
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    lock = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    assert f"ray=={values['ray']['version']}\n" in lock
