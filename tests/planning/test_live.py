"""Hosts of a live cluster as what can be planned with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.devices import DeviceKind
from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.spec import ClusterSpec, Device, ModelSpec, PoolSpec, Role
from orchestrator.planning.live import inventory_of
from tests.planning.plans import CPU

GB = 1_000_000_000


def cluster(pool: PoolSpec) -> ClusterSpec:
    return ClusterSpec("c", (ModelSpec("m", "./m", {Role.SERVE: pool}),))


def measured(parts: int) -> DeviceKind:
    return replace(CPU, memory_bytes=99 * GB, memory_bandwidth=24e9 / parts)


ON_CPUS = cluster(PoolSpec(Role.SERVE, 2, Device.CPU, 1, 2))


def test_hosts_that_are_about_alike_are_one_kind_with_the_least_memory_and_each_its_own_to_share() -> None:
    hosts = (
        Host("a", "n0", cpus=8, memory_bytes=19 * GB),
        Host("b", "n1", cpus=8, memory_bytes=18 * GB),
        Host("c", "head", cpus=2, memory_bytes=4 * GB),
        Host("d", "unknown", cpus=2),
    )
    found = inventory_of(Topology(hosts), ON_CPUS, measured)
    kinds = {node.name: (node.device, node.shared_bytes) for node in found.nodes}
    assert kinds == {
        "n0": ("cpu-18GB", 19 * GB),
        "n1": ("cpu-18GB", 18 * GB),
        "head": ("cpu-4GB", 4 * GB),
        "unknown": ("cpu-99GB", 99 * GB),
    }
    assert found.catalogue.find("cpu-18GB").memory_bytes == 18 * GB
    assert not found.buys


def test_gpus_come_by_the_catalogues_name_and_cpus_only_where_pools_run_on_them() -> None:
    hosts = (Host("a", "n0", 8, "H100-80GB", 96, 900 * GB, {"rack": "r1"}),)
    gpus = inventory_of(Topology(hosts), cluster(PoolSpec(Role.SERVE, 1, Device.GPU)), measured)
    assert [(node.name, node.device, node.count, node.labels) for node in gpus.nodes] == [
        ("n0", "H100-80GB", 8, {"rack": "r1"})
    ]
    both = inventory_of(Topology(hosts), ON_CPUS, measured)
    assert [node.device for node in both.nodes] == ["H100-80GB", "cpu-900GB"]


def test_gpus_that_no_pool_may_run_on_need_no_kind() -> None:
    topology = Topology((Host("a", "n0", 2, "", 8, 64 * GB), Host("b", "n1", 2, "L4", 8, 64 * GB)))
    assert [node.name for node in inventory_of(topology, ON_CPUS, measured).nodes] == ["n0 cpu", "n1", "n1 cpu"]
    named = cluster(PoolSpec(Role.SERVE, 1, Device.GPU, gpu=("L4",)))
    assert [node.name for node in inventory_of(topology, named, measured).nodes] == ["n1"]


@pytest.mark.parametrize("gpu", ["", "GTX-470"])
def test_a_gpu_that_nobody_can_plan_with_is_named_with_what_to_do(gpu: str) -> None:
    topology = Topology((Host("a", "n0", 2, gpu),))
    with pytest.raises(ConfigError, match=r"GPUs of unknown kind on n0 .*segue\.io/gpu=KIND"):
        inventory_of(topology, cluster(PoolSpec(Role.SERVE, 1, Device.GPU)), measured)
