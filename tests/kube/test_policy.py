"""What a platform's policies, and whoever is on call, ask of the rendered objects."""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Iterator

import pytest
import yaml

from orchestrator import config
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.resources import footprint
from orchestrator.core.slots import Kind, Slot
from orchestrator.core.spec import Device
from tests.kube.cases import CASES
from tests.kube.conftest import CHART, Object, of
from tests.kube.tools import ROOT

every_case = pytest.mark.parametrize("case", CASES)


def pods(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Name, metadata and spec of every pod that the objects lead to."""
    for each in objects:
        if each["kind"] == "Pod":
            yield each["metadata"]["name"], each["metadata"], each["spec"]
        elif each["kind"] == "Deployment":
            template = each["spec"]["template"]
            yield each["metadata"]["name"], template["metadata"], template["spec"]
        elif each["kind"] == "RayCluster":
            head = each["spec"]["headGroupSpec"]["template"]
            yield "head", head["metadata"], head["spec"]
            for group in each["spec"]["workerGroupSpecs"]:
                yield group["groupName"], group["template"]["metadata"], group["template"]["spec"]


def containers(spec: Object) -> Iterator[Object]:
    yield from spec.get("initContainers", [])
    yield from spec["containers"]


def selects(selector: Object, labels: Object) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


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
def test_pods_keep_to_the_restricted_standard(chart, case):
    for name, _, spec in pods(chart.objects(case)):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["seccompProfile"]["type"] == "RuntimeDefault", name
        for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            assert not spec.get(field), name
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


@functools.cache
def imported() -> set[str]:
    """Every top-level module that the code imports."""
    files = [file for folder in ("orchestrator", "workers") for file in (ROOT / folder).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in names}


@every_case
def test_rights_are_those_that_the_code_uses(chart, case):
    """None, as long as nothing here imports Kubernetes' client. Whoever adds that adds the verbs to the chart."""
    objects = chart.objects(case)
    roles = [each for each in objects if each["kind"] in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")]
    assert bool(roles) == ("kubernetes" in imported())
    assert not any(
        "*" in rule.get(field, [])
        for role in roles
        for rule in role.get("rules", [])
        for field in ("verbs", "resources", "apiGroups")
    )
    for name, _, spec in pods(objects):
        # KubeRay's autoscaler, which runs in the head's pod, calls Kubernetes.
        assert spec["automountServiceAccountToken"] is (name == "head" and case == "autoscaled"), name


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
        ("cpu-pd", {"emptyDir": {"sizeLimit": "100Gi"}}),
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


@every_case
def test_names_are_short_enough_for_what_kuberay_makes_of_them(chart, case):
    """It appends -head-svc and, to a group's name, -worker- and five letters; a Service's name has 63 at most."""
    cluster = of(chart.objects(case), "RayCluster")
    assert len(cluster["metadata"]["name"]) <= 40
    names = [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 50 for name in names)


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


def test_the_image_has_the_ray_that_the_chart_names():
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    lock = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    assert f"ray=={values['ray']['version']}\n" in lock
