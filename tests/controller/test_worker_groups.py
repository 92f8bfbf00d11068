"""A controller beside KubeRay, both fakes below: upgrades that need a pod more, and fewer replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.controller.kube.groups import WorkerGroups
from orchestrator.controller.kube.ports import Kind, KubeUnreachable
from orchestrator.core.spec import ClusterSpec, Device, PoolSpec, Role
from orchestrator.core.types import WorkerState
from tests.controller.conftest import WAIT, Bench, spec_of
from tests.controller.fake_cluster import FakeCluster, slot_of
from tests.controller.test_upgrade import changed, sized, through
from tests.kube.fake import FakeKube
from tests.kube.kuberay import NAME, KubeRay, a_group, a_ray_cluster

Start = Callable[..., Bench]
GATE = 10.0


def own(role: str) -> dict[str, str]:
    return {"segue.io/model": "m", "segue.io/role": role}


class Kubernetes:
    """Pods of one GPU each, that join a fake Ray."""

    def __init__(self, most: int = 3) -> None:
        self.kube = FakeKube()
        self.ray = KubeRay(self.kube, self.kube.delete)
        self.cluster = FakeCluster(hosts=())
        self.groups = WorkerGroups(self.kube, NAME, self.cluster.topology)
        self.most = most

    async def begin(self, replicas: int) -> None:
        roles = ("prefill", "decode")
        await self.kube.create(
            Kind.RAYCLUSTERS,
            a_ray_cluster(*(a_group(role, role, replicas, least=1, most=self.most) for role in roles)),
        )
        await self.turn()

    async def turn(self) -> list[str]:
        """KubeRay's; pods that it made join Ray, and the hosts of those that it ended are gone. New pods' names."""
        new = await self.ray.reconcile()
        for name in new:
            self.cluster.add_host(
                await self.ray.join(name, gpus=1, gpu="L4", cpus=4, labels=own(name.partition("-")[0]))
            )
        for name in self.ray.ended:
            if f"id-{name}" in self.cluster.hosts:
                self.cluster.lose_host(f"id-{name}")
        return new

    def where(self) -> dict[str, str]:
        return {slot_of(name): hosts[0].removeprefix("id-") for name, hosts in self.cluster.reserved.items()}


@pytest.fixture
async def kubernetes() -> Kubernetes:
    return Kubernetes()


def gpu_spec(replicas: int) -> ClusterSpec:
    spec = spec_of(replicas=replicas)
    pools = {role: PoolSpec(role, replicas, Device.GPU) for role in (Role.PREFILL, Role.DECODE)}
    return replace(spec, models=(replace(spec.models[0], pools=pools),))


async def until(bench: Bench, there: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT):
        while not there():
            await bench.settle()
            await asyncio.sleep(0.01)


async def settled(bench: Bench) -> None:
    """All is ready, and too long for anything of another controller's to come to be; less than counts as silence."""
    await bench.ready()
    bench.later(11)
    await bench.settle()


async def counts(kubernetes: Kubernetes) -> list[int]:
    return [(await kubernetes.ray.spec(index))["replicas"] for index in range(2)]


class Kept:
    """Its lists are kept; looks are the test's."""

    def __init__(self, kubernetes: Kubernetes, bench: Bench) -> None:
        self._groups, self._kubernetes = kubernetes.groups, kubernetes
        self._groups.serve(bench.controller)
        self._watch = asyncio.create_task(self._groups.pods.run())

    async def look(self) -> None:
        """By a list that is as new as can be."""
        there = (await self._kubernetes.kube.list(Kind.PODS)).items
        async with asyncio.timeout(WAIT):
            while [_version(each) for each in self._groups.pods.items] != [_version(each) for each in there]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await self._groups.settle()

    async def end(self) -> None:
        self._watch.cancel()
        await asyncio.wait({self._watch})


def _version(thing: Any) -> str:
    return str(thing["metadata"]["resourceVersion"])


async def test_an_upgrade_gets_a_pod_more_for_its_spare_however_long_it_takes_and_gives_it_back(
    start: Start, kubernetes: Kubernetes
) -> None:
    await kubernetes.begin(1)
    bench = start(gpu_spec(1), kubernetes.cluster, ground=kubernetes.groups)
    kept = Kept(kubernetes, bench)
    await settled(bench)
    assert kubernetes.where() == {"m-prefill-0": "prefill-1", "m-decode-0": "decode-2"}
    await kept.look()
    assert await counts(kubernetes) == [1, 1]

    bench.controller.upgrade(changed(bench.spec, Role.DECODE, max_num_seqs=7))
    await until(bench, lambda: "m-decode-spare-0" in {slot_of(name) for name in kubernetes.cluster.orders})
    await kept.look()
    assert await counts(kubernetes) == [1, 2]
    for _ in range(12):  # weights are fetched, for minutes
        bench.later(25)
        await kept.look()
        await bench.settle()
        assert (bench.status.rollout.state, bench.status.rollout.detail) == ("rolling", "")
    assert await kubernetes.turn() == ["decode-3"]
    await through(bench)
    served = [name for name in kubernetes.cluster.ended if "decode-0" in name]
    assert len(served) == 1, "the old one went, once the spare stood in for it"
    await kept.look()
    replicas, told = (group := await kubernetes.ray.spec(1))["replicas"], group["scaleStrategy"]["workersToDelete"]
    assert (replicas, told) == (1, ["decode-2"] if kubernetes.where()["m-decode-0"] == "decode-3" else ["decode-3"])
    await kubernetes.turn()
    assert kubernetes.ray.chosen == []
    await bench.settle()
    assert bench.status.ready
    assert bench.worker("m-decode-0").restarts == 1
    await kept.end()


async def test_without_room_in_the_group_a_replica_is_missing_instead_and_why_is_said(start: Start) -> None:
    kubernetes = Kubernetes(most=2)
    await kubernetes.begin(2)
    bench = start(gpu_spec(2), kubernetes.cluster, ground=kubernetes.groups)
    kept = Kept(kubernetes, bench)
    await settled(bench)
    bench.controller.upgrade(changed(bench.spec, Role.DECODE, max_num_seqs=7))
    await until(bench, lambda: "m-decode-spare-0" in {slot_of(name) for name in kubernetes.cluster.orders})
    await kept.look()
    bench.later(25)
    await until(bench, lambda: bench.status.rollout.detail)
    assert bench.status.rollout.detail == (
        "no room for a spare of m decode: a replica is missing instead; "
        "worker group decode would need 3 replicas, and its maxReplicas is 2"
    )
    await through(bench)
    await kept.end()


async def test_a_pool_grows_and_shrinks_and_no_replica_that_stays_is_touched(
    start: Start, kubernetes: Kubernetes
) -> None:
    await kubernetes.begin(1)
    bench = start(gpu_spec(1), kubernetes.cluster, ground=kubernetes.groups)
    kept = Kept(kubernetes, bench)
    await settled(bench)
    bench.controller.upgrade(sized(bench.spec, decode=3))
    await bench.settle()
    await kept.look()
    assert await counts(kubernetes) == [1, 3]
    assert len(await kubernetes.turn()) == 2
    await through(bench)
    before = {slot: (bench.worker(slot).epoch, kubernetes.where()[slot]) for slot in ("m-prefill-0", "m-decode-0")}

    gate = kubernetes.cluster.freeze("drain", "m-decode-2")
    bench.controller.upgrade(sized(bench.spec, decode=1))
    await gate.reached.wait()
    await kept.look()
    assert await counts(kubernetes) == [1, 3], "a stream runs on"
    gate.open()
    await through(bench)
    await kept.look()
    assert await counts(kubernetes) == [1, 1]
    await kubernetes.turn()
    await bench.settle()
    assert kubernetes.ray.chosen == []
    after = {slot: (bench.worker(slot).epoch, kubernetes.where()[slot]) for slot in before}
    assert after == before
    assert bench.status.ready
    await kept.end()


async def test_what_is_lost_while_pods_go_comes_up_on_one_that_stays(start: Start, kubernetes: Kubernetes) -> None:
    """A pod that is about to end is still a node of Ray's, with room."""
    await kubernetes.begin(2)
    bench = start(sized(gpu_spec(2), decode=1), kubernetes.cluster, ground=kubernetes.groups)
    kept = Kept(kubernetes, bench)
    await settled(bench)
    stays = kubernetes.where()["m-decode-0"]
    await kept.look()  # the other is named
    assert await counts(kubernetes) == [2, 1]
    kubernetes.cluster.kill("m-decode-0")
    await bench.until(lambda: bench.state("m-decode-0") is WorkerState.DEAD)
    bench.later(2)
    await bench.until(lambda: bench.worker("m-decode-0").restarts and bench.status.ready)
    assert kubernetes.where()["m-decode-0"] == stays
    await kept.end()


async def test_replicas_are_kept_as_ever_while_the_api_server_is_away(start: Start, kubernetes: Kubernetes) -> None:
    await kubernetes.begin(1)
    kubernetes.kube.trouble = lambda call: KubeUnreachable("it is being upgraded")
    bench = start(gpu_spec(1), kubernetes.cluster, ground=kubernetes.groups)
    kubernetes.groups.serve(bench.controller)
    run = asyncio.create_task(kubernetes.groups.run())
    await settled(bench)
    kubernetes.cluster.kill("m-decode-0")
    await bench.until(lambda: bench.state("m-decode-0") is WorkerState.DEAD)
    bench.later(2)
    await bench.until(lambda: bench.worker("m-decode-0").restarts and bench.status.ready)
    run.cancel()
    await asyncio.wait({run})
