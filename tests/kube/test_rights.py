"""The Role of the chart against what the controller asks, over real sockets: nothing missing, and nothing unused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from orchestrator.controller.kube.resident import Resident
from orchestrator.core.spec import Role
from orchestrator.core.types import WorkerState
from tests.core.scenes import World, spec_of
from tests.kube.conftest import Chart, Object
from tests.kube.emulator.access import Asked, allows
from tests.kube.emulator.server import LostError, Server
from tests.kube.emulator.state import Key, State
from tests.kube.kuberay import a_group
from tests.kube.test_client_contract import client_of
from tests.kube.test_groups import Segue
from tests.kube.test_lease import ray_cluster, until

R = WorkerState
ACCOUNT = "system:serviceaccount:llm:r-segue"
LEASE, STATUS = "r-segue-controller", "r-segue-status"


def kept(state: State, plural: str) -> dict[Key, Object]:
    with state.changed:
        return dict(next(things for kind, things in state.things.items() if kind.plural == plural))


@pytest.fixture
def bound(emulator: Server, chart: Chart) -> Server:
    """An API server that lets the controller do what the chart's Roles say."""
    with emulator.state.changed:
        kind = next(kind for kind in emulator.state.things if kind.plural == "rayclusters")
        thing = ray_cluster()
        thing["spec"]["workerGroupSpecs"] = [a_group("g", "decode", 0)]
        emulator.state.create(kind, "llm", thing, "helm")
    emulator.access.bind("segue", ACCOUNT, chart.objects("cpu-pd"))
    return emulator


@asynccontextmanager
async def living(server: Server, identity: str) -> AsyncIterator[Resident]:
    resident = Resident(client_of(server), "r-segue", identity)
    await resident.begin()
    running = asyncio.create_task(resident.run())
    try:
        yield resident
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await resident.end()


async def everything_it_does(server: Server) -> None:
    """All paths: what is made, what is there already, what is written again, given back and taken over."""
    world = World(spec_of(m={Role.PREFILL: 1, Role.DECODE: 1}))
    for count, identity in enumerate(("first", "second"), 1):
        async with living(server, identity) as resident:
            resident.serve(Segue(count))
            await until(lambda count=count: replicas(server.state) == count)  # type: ignore[misc]
            resident.saw(world.scene, "10.0.0.3:9100")
            resident.saw(world.all_ready().scene, "10.0.0.3:9100")
            await until(lambda: ("llm", STATUS) in kept(server.state, "configmaps"))
            world.lose("m-decode-0", f"lost by {identity}", 1.0)
            resident.saw(world.scene, "10.0.0.3:9100")
            await until(
                lambda identity=identity: any(  # type: ignore[misc]
                    identity in each["note"] for each in kept(server.state, "events").values()
                )
            )
            writes = server.access.asked.count(lease_update())
            await until(lambda writes=writes: server.access.asked.count(lease_update()) > writes)  # type: ignore[misc]


def replicas(state: State) -> int:
    (thing,) = kept(state, "rayclusters").values()
    return int(thing["spec"]["workerGroupSpecs"][0]["replicas"])


def lease_update() -> Asked:
    return Asked("update", "coordination.k8s.io", "leases", LEASE, "llm", "segue")


async def test_the_role_is_what_the_controller_asks(bound: Server) -> None:
    await everything_it_does(bound)
    asked = {each for each in bound.access.asked if each.agent == "segue"}
    rules = [*bound.access.namespaced, *bound.access.everywhere]
    missing = {each for each in asked if not any(allows(rule, each) for rule in rules)}
    assert not missing
    given = {
        (verb, group, resource, name)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }
    used = {(each.verb, each.group, each.resource, each.name) for each in asked}
    used |= {(verb, group, resource, "") for verb, group, resource, _ in used if verb in ("list", "watch", "patch")}
    assert not given - used, "rights that nothing needs"


@pytest.mark.parametrize("taken", ["leases", "configmaps", "events", "rayclusters"])
async def test_one_missing_right_is_said_once_and_stops_nothing_else(
    bound: Server, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    bound.access.namespaced = [rule for rule in bound.access.namespaced if taken not in rule["resources"]]
    world = World(spec_of(m={Role.PREFILL: 1, Role.DECODE: 1}))

    def said() -> list[str]:
        failed = [each for each in caplog.records if each.msg == "kubernetes_failed"]
        return [str(each.__dict__["segue_fields"]["said"]) for each in failed]

    async with asyncio.timeout(20), living(bound, "first") as resident:
        resident.saw(world.scene, "10.0.0.3:9100")
        resident.saw(world.all_ready().scene, "10.0.0.3:9100")
        await until(lambda: bool(said()))
        if taken != "leases":  # without one nothing is written, as another one may
            for other in {"configmaps", "events"} - {taken}:
                await until(lambda other=other: bool(kept(bound.state, other)))  # type: ignore[misc]
    (told,) = said()
    assert ACCOUNT in told
    assert taken in told
    assert "kubernetes.enabled" in told


async def test_an_api_server_that_is_away_holds_nothing_up(bound: Server) -> None:
    """And what could not be written meanwhile is written once it is back."""
    world = World(spec_of(m={Role.PREFILL: 1, Role.DECODE: 1}))
    async with living(bound, "first") as resident:
        resident.saw(world.scene, "")

        def away(method: str, path: str) -> None:
            raise LostError

        bound.before = away
        bound.drop_all()
        resident.saw(world.all_ready().scene, "")
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await until(lambda: bool(kept(bound.state, "events")))
        assert not kept(bound.state, "events")
        bound.before = lambda method, path: None
        await until(lambda: bool(kept(bound.state, "events")))
        await until(lambda: bool(kept(bound.state, "configmaps")))
