"""What operators see of a cluster in Kubernetes: its events and its status, written by the shells."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import yaml

from orchestrator.controller.kube.herald import Herald
from orchestrator.controller.kube.owner import Owner
from orchestrator.controller.kube.ports import Kind, KubeConflict, KubeForbidden, KubePort, KubeRefused, KubeUnreachable
from orchestrator.controller.kube.poster import Poster
from orchestrator.controller.kube.resident import Resident
from orchestrator.core.spec import Role
from orchestrator.core.types import WorkerState
from tests.core.scenes import World, spec_of
from tests.kube.emulator.server import Server
from tests.kube.fake import FakeKube
from tests.kube.test_client_contract import SOON, client_of
from tests.kube.test_lease import ray_cluster, until
from tests.kube.test_mirror import Sleeper
from tests.kube.tools import Tools

R = WorkerState
PD = {Role.PREFILL: 1, Role.DECODE: 2}
STATUS = "r-segue-status"


@pytest.fixture
def world() -> World:
    return World(spec_of(m=PD))


@pytest.fixture
async def kube(emulator: Server) -> AsyncIterator[KubePort]:
    client = client_of(emulator)
    await client.create(Kind.RAYCLUSTERS, ray_cluster())
    yield client
    await client.close()


async def events(kube: KubePort) -> list[Any]:
    return list((await kube.list(Kind.EVENTS)).items)


async def come_true(there: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SOON):
        while True:
            if await there():
                return
            await asyncio.sleep(0.02)


def herald(kube: KubePort, may: Callable[[], bool] = lambda: True) -> Herald:
    return Herald(kube, Owner(kube, "r-segue"), may)


async def test_an_event_is_one_that_kubernetes_takes_and_is_found_at_the_ray_cluster(
    kube: KubePort, world: World
) -> None:
    it = herald(kube)
    it.saw(world.scene)
    it.saw(world.all_ready().scene)
    world.lose("m-decode-0", "its process is gone: exit code 137", 1.0)
    it.saw(world.scene)
    await it.write()
    ready, lost = sorted(await events(kube), key=lambda each: each["reason"])
    cluster = await kube.get(Kind.RAYCLUSTERS, "r-segue")
    assert cluster is not None
    assert ready["regarding"]["uid"] == cluster["metadata"]["uid"]
    assert (ready["type"], ready["reason"]) == ("Normal", "ModelReady")
    assert (lost["type"], lost["note"]) == ("Warning", "m-decode-0: its process is gone: exit code 137")


async def test_what_could_not_be_written_is_written_later_and_once(world: World) -> None:
    kube, may = FakeKube(), False
    it = herald(kube, lambda: may)
    it.saw(world.scene)
    it.saw(world.all_ready().scene)
    await it.write()
    assert not await events(kube), "only who holds the lease writes"
    may = True
    kube.lost = lambda call: KubeUnreachable("no answer") if call == "create events" else None
    assert await it.write() > 0
    kube.lost = lambda call: None
    assert await it.write() == 0
    assert [each["reason"] for each in await events(kube)] == ["ModelReady"]


async def test_one_that_is_refused_does_not_keep_others_back(world: World) -> None:
    kube = FakeKube()
    refusals = iter([KubeRefused("no such thing")])
    kube.trouble = lambda call: next(refusals, None) if call == "create events" else None
    it = herald(kube)
    it.saw(world.scene)
    world.all_ready()
    world.upgrade = ("rolling", 0, 3, "")
    it.saw(world.scene)
    await it.write()
    assert [each["reason"] for each in await events(kube)] == ["UpgradeBegun"]


async def test_without_the_right_nothing_piles_up(world: World) -> None:
    kube = FakeKube()
    kube.trouble = lambda call: KubeForbidden("r may not create events") if call == "create events" else None
    it = herald(kube)
    it.saw(world.scene)
    for turn in range(300):
        world.upgrade = ("rolling" if turn % 2 else "done", 3, 3, "")
        it._announcer._told_at.clear()
        it._announcer._tokens = 1.0
        it.saw(world.scene)
    assert await it.write() >= 150
    assert len(it._waiting) == 200
    assert await it.write() >= 150


async def test_the_status_reads_well_with_kubectl(
    emulator: Server, kube: KubePort, world: World, tools: Tools, tmp_path: Any
) -> None:
    poster = Poster(kube, Owner(kube, "r-segue"), lambda: True)
    world.all_ready()
    world.be("m-decode-1", R.PENDING, "no node has 8 GPUs free", anew=True)
    poster.saw(world.scene, "10.0.0.3:9100")
    await poster.write()
    (tmp_path / "kubeconfig").write_text(emulator.kubeconfig(), encoding="utf-8")
    command = [str(tools.kubectl), "get", "configmap", STATUS, "-o", "yaml"]
    environment = {"HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "kubeconfig")}
    shown = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    lines = shown.stdout.splitlines()
    assert any(line.startswith("    m prefill: 1/1 ready, since 2") for line in lines), shown.stdout
    assert any(
        line.startswith("    m decode: 1/2 ready; m-decode-1 pending: no node has 8 GPUs free, since 2")
        for line in lines
    )
    assert yaml.safe_load(shown.stdout)["metadata"]["ownerReferences"][0]["kind"] == "RayCluster"


async def test_others_who_write_the_status_are_written_over(kube: KubePort, world: World) -> None:
    poster = Poster(kube, Owner(kube, "r-segue"), lambda: True)
    poster.saw(world.scene, "")
    await poster.write()
    there = await kube.get(Kind.CONFIGMAPS, STATUS)
    assert there is not None
    await kube.replace(Kind.CONFIGMAPS, {**there, "data": {"state": "by hand"}})
    poster.saw(world.all_ready().scene, "")
    await poster.write()
    there = await kube.get(Kind.CONFIGMAPS, STATUS)
    assert there is not None
    assert there["data"]["state"].startswith("ready, since ")


async def test_a_status_that_somebody_removed_comes_back(emulator: Server, kube: KubePort, world: World) -> None:
    poster = Poster(kube, Owner(kube, "r-segue"), lambda: True)
    poster.saw(world.scene, "")
    await poster.write()
    state = emulator.state
    with state.changed:
        state.delete(next(kind for kind in state.things if kind.plural == "configmaps"), ("llm", STATUS))
    poster.saw(world.all_ready().scene, "")
    await poster.write()
    assert await kube.get(Kind.CONFIGMAPS, STATUS) is not None


async def test_another_controllers_lines_keep_their_time(world: World) -> None:
    kube = FakeKube()
    first = Poster(kube, Owner(kube, "r-segue"), lambda: True)
    first.saw(world.all_ready().scene, "")
    await first.write()
    there = await kube.get(Kind.CONFIGMAPS, STATUS)
    assert there is not None
    old = {**there["data"], "state": "ready, since 2026-01-01T00:00:00Z"}
    await kube.replace(Kind.CONFIGMAPS, {**there, "data": old})
    second = Poster(kube, Owner(kube, "r-segue"), lambda: True)
    world.be("m-decode-1", R.STARTING)
    second.saw(world.scene, "")
    await second.write()
    there = await kube.get(Kind.CONFIGMAPS, STATUS)
    assert there is not None
    assert there["data"]["state"] == "ready, since 2026-01-01T00:00:00Z"


async def test_a_status_that_changes_all_the_time_is_written_now_and_then(world: World) -> None:
    kube, sleeper = FakeKube(), Sleeper()
    poster = Poster(kube, Owner(kube, "r-segue"), lambda: True, sleep=sleeper.sleep)

    task = asyncio.create_task(poster.run())
    world.all_ready()
    for percent in range(1000):
        world.be("m-decode-1", R.STARTING, f"{percent} of 1000 loaded")
        poster.saw(world.scene, "")
        await asyncio.sleep(0)
    writes = [call for call in kube.calls if call in ("create configmaps", "update configmaps")]
    assert len(writes) > 2
    assert len(writes) <= len([each for each in sleeper.slept if each >= 5.0]) + 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_those_who_write_on_and_on_do_not_hold_it_up_for_ever(world: World) -> None:
    kube = FakeKube()
    kube.trouble = lambda call: KubeConflict("again") if call == "create configmaps" else None
    poster = Poster(kube, Owner(kube, "r-segue"), lambda: True)
    poster.saw(world.scene, "")
    with pytest.raises(KubeConflict):
        await poster.write()
    assert kube.calls.count("create configmaps") == 3


async def test_a_resident_tells_its_whole_life(emulator: Server, kube: KubePort, world: World) -> None:
    resident = Resident(client_of(emulator), "r-segue", "llm@session")
    await resident.begin()
    running = asyncio.create_task(resident.run())
    resident.saw(world.scene, "10.0.0.3:9100")
    resident.saw(world.all_ready().scene, "10.0.0.3:9100")

    async def told() -> bool:
        status = await kube.get(Kind.CONFIGMAPS, STATUS)
        return status is not None and "ModelReady" in [each["reason"] for each in await events(kube)]

    await come_true(told)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await resident.end()
    lease, status = await kube.get(Kind.LEASES, "r-segue-controller"), await kube.get(Kind.CONFIGMAPS, STATUS)
    assert lease is not None
    assert status is not None
    assert lease["spec"]["holderIdentity"] == "", "the next one need not wait"
    assert status["data"]["state"].startswith("ended, since ")


async def test_a_part_that_breaks_breaks_nothing_else(
    emulator: Server, kube: KubePort, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    resident = Resident(client_of(emulator), "r-segue", "llm@session")

    async def broken() -> None:
        raise ZeroDivisionError

    resident._parts.append(broken)
    await resident.begin()
    running = asyncio.create_task(resident.run())
    await until(lambda: any(each.msg == "kubernetes_part_broke" for each in caplog.records))
    resident.saw(world.scene, "")
    resident.saw(world.all_ready().scene, "")

    async def told() -> bool:
        return bool(await events(kube))

    await come_true(told)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await resident.end()


async def test_what_is_dropped_while_another_is_written_is_not_dropped_twice(world: World) -> None:
    kube, now = FakeKube(), 0.0
    it = Herald(kube, Owner(kube, "r-segue"), lambda: True, clock=lambda: now)
    it.saw(world.all_ready().scene)
    writing = kube.gate("create events")
    task = None
    for at in range(201):
        now = 100.0 * (at + 1)
        world.lose("m-decode-0", f"loss {at}", now)
        it.saw(world.scene)
        if task is None:
            task = asyncio.create_task(it.write())
            await writing.reached.wait()
    writing.open.set()
    assert task is not None
    await task
    assert len(await events(kube)) == 201


async def test_a_view_that_can_not_be_told_does_not_reach_the_controller(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Closable(FakeKube):
        async def close(self) -> None:
            """Nothing is open."""

    resident = Resident(Closable(), "r-segue", "llm@session")
    broken: Any = None
    for scene in (broken, broken, world.scene):
        resident.saw(scene, "")
    assert [each.msg for each in caplog.records].count("kubernetes_failed") == 1
