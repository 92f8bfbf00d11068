"""Labels of Kubernetes' nodes, as placement goes by them."""

from __future__ import annotations

from orchestrator.controller.kinds import kind_called
from orchestrator.core.planning.hosts import Host, Topology, nodes_of
from orchestrator.core.planning.kube_labels import Machine, labelled
from orchestrator.core.planning.places import NVLINK_DOMAIN, RACK, ZONE
from orchestrator.core.planning.placing import place
from tests.planning.support import gang

LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.clique": "uuid.0",
    "topology.kubernetes.io/zone": "a",
    "network.topology.nvidia.com/leaf": "s1",
    "kubernetes.io/hostname": "n0",
}


def pod(number: int = 0, gpus: int = 8, gpu: str = "", **labels: str) -> Host:
    return Host(f"id-{number}", f"pod-{number}", gpus, gpu, labels=labels, address=f"10.0.0.{number}")


def on(*hosts: Host, gpus: int = 8, **labels: str) -> tuple[Host, ...]:
    """The hosts, all on one machine with these labels."""
    machine = Machine("n0", {name.replace("__", "/"): value for name, value in labels.items()}, gpus)
    return labelled(Topology(hosts), {host.address: machine for host in hosts}, kind_called).hosts


def test_a_pod_is_where_its_machine_is_and_has_its_gpus() -> None:
    [host] = labelled(Topology((pod(),)), {"10.0.0.0": Machine("n0", LABELS, 8)}, kind_called).hosts
    [node] = nodes_of(Topology((host,)), 0)
    assert (node.device, node.label(ZONE), node.label(RACK)) == ("H100-80GB", "a", "s1")
    assert node.label(NVLINK_DOMAIN) == "uuid.0"
    assert "kubernetes.io/hostname" not in host.labels


def test_what_a_host_says_itself_stands() -> None:
    said = pod(gpu="L4", zone="mine", **{"segue.io/gpu": "L4"})
    [host] = labelled(Topology((said,)), {"10.0.0.0": Machine("n0", LABELS, 8)}, kind_called).hosts
    [node] = nodes_of(Topology((host,)), 0)
    assert (node.device, node.label(ZONE), node.label(RACK)) == ("L4", "mine", "s1")


def test_rays_own_word_for_gpus_is_less_than_the_device_plugins() -> None:
    """Ray says A100, of both of its sizes."""
    [host] = on(pod(gpu="A100-40GB"), **{"nvidia.com__gpu.product": "NVIDIA-A100-SXM4-80GB"})
    assert host.gpu == kind_called("NVIDIA-A100-SXM4-80GB") != "A100-40GB"


def test_numbers_of_a_machines_gpus_say_nothing_of_a_pod_that_has_some_of_them() -> None:
    [whole] = on(pod(gpus=8), nvlink_domain="0-3,4-7")
    [half] = on(pod(gpus=4), nvlink_domain="0-1,2-3")
    assert (whole.labels.get("nvlink_domain"), half.labels.get("nvlink_domain")) == ("0-3,4-7", None)
    [half] = on(pod(gpus=4), nvlink_domain="rack-7")
    assert half.labels["nvlink_domain"] == "rack-7"


def test_a_host_of_which_kubernetes_says_nothing_is_as_it_was() -> None:
    topology = Topology((pod(), pod(1)), {"m-serve-0": ("id-0",)})
    assert labelled(topology, {}, kind_called) is topology


def test_stages_of_a_replica_go_into_one_rack_by_these_labels() -> None:
    hosts = tuple(pod(number, 4, "H100-80GB") for number in range(4))
    racks = ["s1", "s2", "s1", "s2"]
    below = {
        host.address: Machine(f"n{rack}", {"network.topology.nvidia.com/leaf": rack}, 4)
        for host, rack in zip(hosts, racks, strict=True)
    }
    nodes = nodes_of(labelled(Topology(hosts), below, kind_called), 0)
    placement = place([gang("g", 4, 2, devices=("H100-80GB",))], nodes)
    assert [name for name, _ in placement.placed[0].stages] in (["pod-0", "pod-2"], ["pod-1", "pod-3"])
