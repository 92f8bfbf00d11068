"""Hosts and the machines below them, by a fake of the API server and by the real client against the emulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orchestrator.controller.kube.machines import Machines
from orchestrator.controller.kube.mirror import Mirror
from orchestrator.controller.kube.ports import Kind, KubeForbidden, KubePort
from orchestrator.controller.kube.ray_objects import workers_of
from orchestrator.core.planning.hosts import Host, Topology
from tests.kube.fake import FakeKube
from tests.kube.kuberay import NAME
from tests.kube.test_client_contract import SOON, client_of

HOST = Host("id", "pod", 8, address="10.0.0.7")


@pytest.fixture(params=["fake", "real"])
async def kube(request: pytest.FixtureRequest) -> AsyncIterator[KubePort]:
    if request.param == "fake":
        yield FakeKube()
        return
    client = client_of(request.getfixturevalue("emulator"))
    yield client
    await client.close()


async def a_pod(kube: KubePort, name: str, address: str, node: str) -> None:
    labels = {"ray.io/cluster": NAME, "ray.io/node-type": "worker"}
    meta = {"name": name, "namespace": "llm", "labels": labels}
    spec = {"containers": [{"name": "ray-worker", "image": "segue"}], "nodeName": node}
    await kube.create(Kind.PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    await kube.patch(Kind.PODS, name, [{"op": "add", "path": "/status", "value": {"podIP": address}}])


async def a_node(kube: KubePort, name: str, **labels: str) -> None:
    meta = {"name": name, "labels": {key.replace("__", "/"): value for key, value in labels.items()}}
    await kube.create(Kind.NODES, {"apiVersion": "v1", "kind": "Node", "metadata": meta})


async def kept(mirror: Mirror) -> asyncio.Task[Any]:
    task = asyncio.create_task(mirror.run())
    await mirror.fresh(SOON)
    return task


async def test_the_topology_has_the_labels_of_the_machines_below_also_of_later_ones(kube: KubePort) -> None:
    await a_node(kube, "n0", zone="a", **{"nvidia.com__gpu.product": "NVIDIA-L4"})
    await a_pod(kube, "p0", "10.0.0.7", "n0")
    changed = asyncio.Event()
    pods = Mirror(kube, Kind.PODS, workers_of(NAME), changed=changed.set)
    machines = Machines(kube, pods)
    tasks = [await kept(pods), await kept(machines.nodes)]
    [host] = machines.seen(Topology((HOST,))).hosts
    assert (host.gpu, host.labels["zone"]) == ("L4", "a")
    later = Host("other", "other", address="10.0.0.8")
    assert machines.seen(Topology((later,))).hosts == (later,)
    changed.clear()
    await a_pod(kube, "p1", "10.0.0.8", "n0")
    async with asyncio.timeout(SOON):
        while machines.seen(Topology((later,))).hosts == (later,):
            await changed.wait()
            changed.clear()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_without_the_right_to_read_nodes_hosts_are_as_ray_knows_them() -> None:
    kube = FakeKube()
    kube.trouble = lambda call: KubeForbidden("may not list nodes") if call == "list nodes" else None
    await a_pod(kube, "p0", "10.0.0.7", "n0")
    pods = Mirror(kube, Kind.PODS, workers_of(NAME))
    machines = Machines(kube, pods)
    task = await kept(pods)
    nodes = asyncio.create_task(machines.nodes.run())
    async with asyncio.timeout(SOON):
        while not machines.forbidden:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert machines.seen(Topology((HOST,))).hosts == (HOST,)
    for each in (task, nodes):
        each.cancel()
    await asyncio.wait({task, nodes})
