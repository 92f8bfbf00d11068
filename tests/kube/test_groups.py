"""Counts of worker pods, with a fake of the API server and with the real client against the emulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from orchestrator.controller.kube.groups import WorkerGroups
from orchestrator.controller.kube.ports import Kind, KubeConflict, KubeForbidden, KubePort, KubeUnreachable
from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.rollout import PoolKey
from orchestrator.core.spec import Role
from orchestrator.core.worker_groups import Wanted
from tests.kube.emulator.kinds import KINDS
from tests.kube.emulator.server import Server
from tests.kube.fake import FakeKube
from tests.kube.kuberay import NAME, KubeRay, a_group, a_ray_cluster
from tests.kube.test_client_contract import SOON, client_of

POOL: PoolKey = ("m", Role.DECODE)


@dataclass
class Segue:
    """What the cluster wants, and Ray below it. ``meanwhile`` is called in each look, between reading and writing."""

    count: int = 2
    moving: bool = False
    hosts: dict[str, Host] = field(default_factory=dict)
    reserved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    meanwhile: Callable[[], Awaitable[Any]] | None = None
    ending: bool = False

    @property
    def wanted(self) -> Wanted | None:
        return None if self.ending else Wanted({POOL: self.count}, {}, frozenset({POOL} if self.moving else ()))

    async def close(self, hosts: Set[str]) -> frozenset[str]:
        busy = {host_id for ids in self.reserved.values() for host_id in ids}
        self.closed = frozenset(hosts) - busy
        return self.closed

    async def topology(self) -> Topology:
        if self.meanwhile is not None:
            await self.meanwhile()
        return Topology(tuple(self.hosts.values()), self.reserved)


def version(thing: Any) -> str:
    return str(thing["metadata"]["resourceVersion"])


class Bench:
    """Groups that are kept, KubeRay, and time."""

    def __init__(self, kube: KubePort, ray: KubeRay) -> None:
        self.kube, self.ray, self.segue, self.now = kube, ray, Segue(), 0.0
        self.groups = WorkerGroups(kube, NAME, self.segue.topology, clock=lambda: self.now)
        self.groups.serve(self.segue)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Its lists are kept; looks are the test's."""
        task = asyncio.create_task(self.groups.pods.run())
        try:
            assert await self.groups.pods.fresh(SOON)
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def until(self, there: Callable[[], object]) -> None:
        """Until what is watched shows it."""
        async with asyncio.timeout(SOON):
            while not there():  # noqa: ASYNC110 - only the last of many watchers is told
                await asyncio.sleep(0.01)

    async def caught_up(self) -> None:
        """Until its list is as the server has it."""
        there = (await self.kube.list(Kind.PODS)).items
        await self.until(
            lambda: [version(each) for each in self.groups.pods.items] == [version(each) for each in there]
        )

    async def settle(self) -> None:
        await self.caught_up()
        await self.groups.settle()

    async def fill(self, names: list[str]) -> None:
        """Each of these pods joins, and gets a replica."""
        for name in names:
            host = self.segue.hosts[name] = await self.ray.join(name)
            self.segue.reserved[f"m-decode-{name}"] = (host.host_id,)

    async def counts(self) -> tuple[int, tuple[str, ...] | None]:
        group = await self.ray.spec()
        told = group.get("scaleStrategy")
        return group["replicas"], tuple(told["workersToDelete"]) if told else None


@pytest.fixture(params=["fake", "real"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "fake":
        fake = FakeKube()
        yield Bench(fake, KubeRay(fake, fake.delete))
        return
    server: Server = request.getfixturevalue("emulator")
    client = client_of(server)

    async def delete(kind: Kind, name: str) -> None:
        with server.state.changed:
            server.state.delete(next(each for each in KINDS if each.name == kind.kind), ("llm", name))

    yield Bench(client, KubeRay(client, delete))
    await client.close()


async def begin(bench: Bench, *groups: dict[str, Any], **more: Any) -> None:
    """Two pods with a replica each, or those of other groups."""
    await bench.kube.create(Kind.RAYCLUSTERS, a_ray_cluster(*(groups or (a_group("g", "decode", 2),)), **more))
    await bench.fill(await bench.ray.reconcile())


async def test_a_pool_grows_by_a_pod_and_shrinks_by_the_one_that_is_empty(bench: Bench) -> None:
    await begin(bench)
    async with bench.watching():
        bench.segue.count, bench.segue.moving = 3, True
        await bench.settle()
        assert await bench.counts() == (3, None)
        await bench.settle()
        assert bench.groups.room.coming == {POOL}
        [new] = await bench.ray.reconcile()
        await bench.fill([new])
        await bench.settle()
        assert bench.groups.room.coming == frozenset()

        bench.segue.count = 2
        await bench.settle()
        assert await bench.counts() == (3, None), "what is to go still has a replica on it"
        del bench.segue.reserved["m-decode-g-1"]  # the others stay
        await bench.settle()
        assert await bench.counts() == (3, None), "something still moves"
        bench.segue.moving = False
        await bench.settle()
        assert await bench.counts() == (2, ("g-1",))
        assert bench.segue.closed == {"id-g-1"}
        await bench.ray.reconcile()
        assert (await bench.ray.names(), bench.ray.chosen) == (["g-2", "g-3"], [])

        await bench.settle()
        assert await bench.counts() == (2, ("g-1",)), "KubeRay may not have seen yet that it is gone"
        bench.now += 60
        await bench.settle()
        assert await bench.counts() == (2, None), "as it was installed"


async def test_a_pod_that_is_well_stays_whatever_ray_leaves_out(bench: Bench) -> None:
    await begin(bench)
    for name in await bench.ray.names():
        await bench.ray.is_well(name)
    async with bench.watching():
        bench.segue.hosts.clear()
        bench.segue.count = 1
        await bench.settle()
        assert await bench.counts() == (2, None), "what it serves can't be seen now"


async def test_who_writes_in_between_is_read_and_it_is_decided_anew(bench: Bench) -> None:
    await begin(bench)
    async with bench.watching():
        await bench.caught_up()
        bench.segue.count = 3

        async def raised() -> None:
            bench.segue.meanwhile = None
            await bench.ray.write(lambda group: group.update(replicas=5))

        bench.segue.meanwhile = raised
        await bench.groups.settle()
        assert await bench.counts() == (5, None), "theirs stays until there are pods that can go"
        await bench.fill((await bench.ray.reconcile())[:1])
        await bench.settle()
        replicas, ends = await bench.counts()
        assert (replicas, ends) == (3, ("g-4", "g-5"))
        await bench.ray.reconcile()
        assert bench.ray.chosen == []


async def test_who_writes_in_between_each_time_has_it_wait(bench: Bench) -> None:
    await begin(bench)
    async with bench.watching():
        await bench.caught_up()
        bench.segue.count = 3
        bench.segue.meanwhile = lambda: bench.ray.write(
            lambda group: group["rayStartParams"].update(
                x=str(len(group["rayStartParams"])), **{f"y{len(group['rayStartParams'])}": "z"}
            )
        )
        with pytest.raises(KubeConflict, match="each of 5 times"):
            await bench.groups.settle()
        assert await bench.counts() == (2, None)
        bench.segue.meanwhile = None
        await bench.settle()
        assert await bench.counts() == (3, None)


async def test_a_count_that_an_upgrade_of_the_chart_set_back_comes_to_be_what_is_wanted(bench: Bench) -> None:
    """In the middle of an upgrade, with a spare on the third pod: before KubeRay acts on it, or after."""
    await begin(bench)
    async with bench.watching():
        bench.segue.count = 3
        await bench.settle()
        await bench.fill(await bench.ray.reconcile())
        await bench.ray.write(lambda group: group.update(replicas=2))
        await bench.settle()
        assert await bench.counts() == (3, None)
        await bench.ray.reconcile()
        assert bench.ray.chosen == []

        await bench.ray.write(lambda group: group.update(replicas=2))
        await bench.ray.reconcile()
        [lost] = bench.ray.chosen
        del bench.segue.hosts[lost], bench.segue.reserved[f"m-decode-{lost}"]
        bench.segue.moving = True
        await bench.settle()
        assert await bench.counts() == (3, None)
        assert bench.groups.room.coming == {POOL}


async def test_nothing_is_written_where_the_autoscaler_owns_the_counts(bench: Bench) -> None:
    await begin(bench, a_group("g", "decode", 2), autoscaled=True)
    async with bench.watching():
        bench.segue.count = 3
        await bench.settle()
        assert await bench.counts() == (2, None)


async def test_groups_that_are_not_of_any_pool_are_left_alone(bench: Bench) -> None:
    own = a_group("own", "decode", 3)
    del own["template"]["metadata"]["annotations"]
    await begin(bench, a_group("g", "decode", 2), own)
    async with bench.watching():
        bench.segue.count = 3
        await bench.settle()
        assert ((await bench.ray.spec(0))["replicas"], (await bench.ray.spec(1))["replicas"]) == (3, 3)


async def test_more_than_the_groups_most_can_not_be_had_and_why_is_said(bench: Bench) -> None:
    await begin(bench, a_group("g", "decode", 2, most=2))
    async with bench.watching():
        bench.segue.count = 3
        await bench.settle()
        assert await bench.counts() == (2, None)
        assert (bench.groups.room.coming, bench.groups.room.lacks) == (
            frozenset(),
            {POOL: "worker group g would need 3 replicas, and its maxReplicas is 2"},
        )


async def test_a_pod_that_no_node_has_room_for_is_nothing_to_wait_for(bench: Bench) -> None:
    await begin(bench)
    async with bench.watching():
        bench.segue.count, bench.segue.moving = 3, True
        await bench.settle()
        [new] = await bench.ray.reconcile()
        message = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        await bench.ray.tell(new, phase="Pending", conditions=[condition])
        await bench.settle()
        assert bench.groups.room.coming == frozenset()
        assert bench.groups.room.lacks == {POOL: f"pod {new} has no node: {message}"}
        bench.segue.count, bench.segue.moving = 2, False  # it goes on without a spare
        await bench.settle()
        assert await bench.counts() == (2, (new,))


async def test_while_a_cluster_ends_its_groups_stay_as_they_are(bench: Bench) -> None:
    await begin(bench)
    async with bench.watching():
        bench.segue.ending = True
        bench.segue.reserved.clear()
        await bench.settle()
        assert await bench.counts() == (2, None)


async def test_a_watch_that_ends_and_begins_again_misses_nothing(bench: Bench, request: pytest.FixtureRequest) -> None:
    await begin(bench)
    async with bench.watching():
        await bench.settle()
        if isinstance(bench.kube, FakeKube):
            await bench.kube.end_watches()
        else:
            request.getfixturevalue("emulator").end_watches(dropping=True)
        bench.segue.count = 3
        await bench.ray.write(lambda group: group["rayStartParams"].update(x="y"))
        await bench.settle()
        assert await bench.counts() == (3, None)
        await bench.fill(await bench.ray.reconcile())
        await bench.settle()
        assert bench.groups.room.coming == frozenset()


async def test_a_list_that_lags_behind_ends_no_pod_that_serves_by_now() -> None:
    fake = FakeKube()
    bench = Bench(fake, KubeRay(fake, fake.delete))
    await begin(bench, a_group("g", "decode", 3))
    [last] = [name for name in await bench.ray.names() if name == "g-3"]
    host = bench.segue.hosts.pop(last)
    bench.segue.reserved = {slot: ids for slot, ids in bench.segue.reserved.items() if host.host_id not in ids}
    await bench.ray.tell(last, phase="Pending")  # it has no address yet
    async with bench.watching():
        await bench.caught_up()
        fake.trouble = lambda call: KubeUnreachable("it is away") if call.startswith("watch") else None
        await fake.end_watches()
        await bench.fill([last])  # and what it gets takes the place of another's
        bench.segue.reserved.pop("m-decode-g-1")
        await bench.groups.settle()
        assert await bench.counts() == (3, None)
        fake.trouble = lambda call: None
    async with bench.watching():
        await bench.settle()
        assert await bench.counts() == (2, ("g-1",))


async def test_a_right_that_is_missing_is_said_once_and_missed_until_it_is_given(caplog: Any) -> None:
    fake = FakeKube()
    bench = Bench(fake, KubeRay(fake, fake.delete))
    await begin(bench)
    refusal = KubeForbidden("may not patch rayclusters", where="llm", hint="kubernetes.enabled")
    fake.trouble = lambda call: refusal if call == "patch rayclusters" else None
    bench.segue.count = 3
    run = asyncio.create_task(bench.groups.run())
    await bench.until(lambda: bench.groups.room.lacks)
    assert bench.groups.room.lacks == {POOL: f"worker groups are not kept: {refusal}"}
    assert bench.groups.room.coming == frozenset()
    assert bench.groups._failed(refusal) >= 60
    assert [record.message for record in caplog.records].count("worker_groups_not_kept") == 1
    fake.trouble = lambda call: None
    await bench.groups.settle()
    assert await bench.counts() == (3, None)
    run.cancel()
    await asyncio.wait({run})


async def test_of_pods_that_share_an_address_none_is_taken_to_be_empty() -> None:
    """They are on their machine's network: by the address nobody knows which of them it is that serves."""
    fake = FakeKube()
    bench = Bench(fake, KubeRay(fake, fake.delete))
    await begin(bench)
    busy = bench.segue.hosts["g-1"]
    bench.segue.hosts["g-2"] = replace(bench.segue.hosts["g-2"], address=busy.address)
    pod = await fake.get(Kind.PODS, "g-2")
    assert pod is not None
    await fake.replace(Kind.PODS, {**pod, "status": {**pod["status"], "podIP": busy.address}})
    del bench.segue.reserved["m-decode-g-2"]
    bench.segue.count = 1
    async with bench.watching():
        for _ in range(2):
            await bench.settle()
            assert await bench.counts() == (2, None)


async def test_who_plans_an_upgrade_sees_the_pods_that_groups_may_still_have(bench: Bench) -> None:
    start = {"num-gpus": "4", "num-cpus": "8"}
    own = {"segue.io/model": "m", "segue.io/role": "prefill"}
    empty = a_group("p", "prefill", 0, most=1, rayStartParams=start, labels=own)
    await begin(bench, a_group("g", "decode", 2, most=3), empty)
    for name, host in bench.segue.hosts.items():
        bench.segue.hosts[name] = replace(host, gpus=8, gpu="L4", labels={"segue.io/role": "decode"})
    topology = await bench.segue.topology()
    async with bench.watching():
        await bench.settle()
        seen = bench.groups.could_be(topology)
        assert seen.hosts[:2] == topology.hosts
        decode, prefill = seen.hosts[2:]
        assert (decode.name, decode.gpus, decode.gpu, decode.labels) == ("g+1", 8, "L4", {"segue.io/role": "decode"})
        assert (prefill.name, prefill.gpus, prefill.cpus, prefill.labels) == ("p+1", 4, 8, own)
        assert bench.groups.seen(topology) == topology, "where replicas are placed there is nothing yet"
