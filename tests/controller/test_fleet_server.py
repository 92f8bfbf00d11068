"""The fleet watch and the cluster service over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.cli import rpc
from orchestrator.config import dumps
from orchestrator.controller import fleet, guests
from orchestrator.controller.fleet import Bulletin, FleetServer
from orchestrator.core.errors import ClusterUnreachable, ConfigError
from orchestrator.core.planning.hosts import Host, Topology
from orchestrator.core.spec import (
    ClusterSpec,
    ControllerSpec,
    Endpoint,
    GatewaySpec,
    HealthSpec,
    Role,
    TelemetrySpec,
)
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from tests.controller.conftest import spec_of

WAIT = 5.0


def status(epoch: int) -> cluster_pb2.ClusterStatus:
    return cluster_pb2.ClusterStatus(name="test", controller=cluster_pb2.ControllerStatus(epoch=epoch))


async def nothing() -> Topology:
    raise ClusterUnreachable("Ray does not answer")


async def refused(spec: ClusterSpec, makes_room: bool, full: object) -> None:
    raise ConfigError(f"{spec.name} can't be had", where="cluster.name")


class Served:
    """A bulletin behind a server, and a client's channel to it."""

    def __init__(self, bulletin: Bulletin, server: FleetServer, port: int, channel: grpc.aio.Channel) -> None:
        self.bulletin = bulletin
        self.server = server
        self.port = port
        self.channel = channel
        self.fleet = fleet_pb2_grpc.FleetStub(channel)
        self.cluster = cluster_pb2_grpc.ClusterStub(channel)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    bulletin = Bulletin(status(0))
    server = FleetServer(Endpoint("127.0.0.1", 0), bulletin, '{"name": "test"}', nothing, refused)
    port = server.bind()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(bulletin, server, port, channel)
    await server.stop()


async def test_the_first_snapshot_comes_at_once_with_the_spec_and_each_change_after_it(served: Served) -> None:
    watch = served.fleet.Watch(fleet_pb2.FleetWatchRequest(watcher_id="gateway-0"), timeout=WAIT)
    first = await watch.read()
    assert (first.status.controller.epoch, first.spec_json) == (0, '{"name": "test"}')
    for epoch in (1, 2):
        served.bulletin.publish(status(epoch))
        snapshot = await watch.read()
        assert (snapshot.status.controller.epoch, snapshot.spec_json) == (epoch, "")


async def test_gateways_of_others_are_in_the_status_for_as_long_as_they_say_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fleet, guests):
        monkeypatch.setattr(module, "LEASE_SECONDS", 0.4)
    watch = served.fleet.Watch(fleet_pb2.FleetWatchRequest(), timeout=WAIT)
    await watch.read()
    word = cluster_pb2.GatewayStatus(id="pod-1", http="0.0.0.0:80", grpc="10.0.0.9:90", state="ready")
    await served.fleet.Attend(fleet_pb2.AttendRequest(gateway=word))
    (told,) = (await watch.read()).status.gateways
    assert (told.id, told.http, told.grpc, told.outside) == ("pod-1", "127.0.0.1:80", "10.0.0.9:90", True)
    assert not (await watch.read()).status.gateways  # it has said no more


async def test_gateways_of_others_stay_in_what_the_controller_tells_next(served: Served) -> None:
    await served.fleet.Attend(fleet_pb2.AttendRequest(gateway=cluster_pb2.GatewayStatus(id="pod-1")))
    served.bulletin.publish(status(1))
    told = await served.cluster.Status(cluster_pb2.StatusRequest())
    assert (told.controller.epoch, [one.id for one in told.gateways]) == (1, ["pod-1"])


@pytest.mark.parametrize(
    ("name", "code"), [("", grpc.StatusCode.INVALID_ARGUMENT), ("gateway-0", grpc.StatusCode.ALREADY_EXISTS)]
)
async def test_a_gateway_without_a_name_of_its_own_is_not_listed(
    served: Served, name: str, code: grpc.StatusCode
) -> None:
    own = status(1)
    own.gateways.add(id="gateway-0")
    served.bulletin.publish(own)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await served.fleet.Attend(fleet_pb2.AttendRequest(gateway=cluster_pb2.GatewayStatus(id=name)))
    assert refusal.value.code() is code
    assert len((await served.cluster.Status(cluster_pb2.StatusRequest())).gateways) == 1


async def test_a_specification_that_changed_comes_once_with_what_is_told_next(served: Served) -> None:
    watch = served.fleet.Watch(fleet_pb2.FleetWatchRequest(), timeout=WAIT)
    await watch.read()
    served.server.respecify('{"name": "other"}')
    told = []
    for epoch in (1, 2):
        served.bulletin.publish(status(epoch))
        told.append((await watch.read()).spec_json)
    assert told == ['{"name": "other"}', ""]


async def test_an_upgrade_that_cant_be_is_an_error_that_names_the_key(served: Served) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.name: test can't be had"):
        await asyncio.to_thread(rpc.upgrade, f"127.0.0.1:{served.port}", spec_of(), makes_room=False)


async def test_a_burst_of_changes_reaches_a_watcher_as_its_newest(served: Served) -> None:
    watch = served.fleet.Watch(fleet_pb2.FleetWatchRequest(), timeout=WAIT)
    await watch.read()
    for epoch in range(1, 1001):
        served.bulletin.publish(status(epoch))
    seen = [(await watch.read()).status.controller.epoch]
    while seen[-1] < 1000:
        seen.append((await watch.read()).status.controller.epoch)
    assert len(seen) <= 2


async def test_nothing_is_sent_while_nothing_changes(served: Served) -> None:
    watch = served.fleet.Watch(fleet_pb2.FleetWatchRequest(), timeout=WAIT)
    await watch.read()
    served.bulletin.publish(status(0))
    silent = asyncio.ensure_future(watch.read())
    done, _ = await asyncio.wait({silent}, timeout=0.2)
    assert not done
    served.bulletin.publish(status(1))
    assert (await silent).status.controller.epoch == 1


async def test_watchers_are_independent_and_one_that_leaves_is_no_loss(served: Served) -> None:
    watches = [served.fleet.Watch(fleet_pb2.FleetWatchRequest(), timeout=WAIT) for _ in range(3)]
    for watch in watches:
        await watch.read()
    watches[0].cancel()
    served.bulletin.publish(status(7))
    assert [(await watch.read()).status.controller.epoch for watch in watches[1:]] == [7, 7]


async def test_status_and_watch_of_the_cluster_service(served: Served) -> None:
    served.bulletin.publish(status(3))
    assert await served.cluster.Status(cluster_pb2.StatusRequest(), timeout=WAIT) == status(3)
    watch = served.cluster.Watch(cluster_pb2.WatchRequest(min_interval_ms=10), timeout=WAIT)
    assert await watch.read() == status(3)
    served.bulletin.publish(status(4))
    assert await watch.read() == status(4)


@pytest.mark.parametrize("service", ["", "segue.v1.Cluster", "segue.internal.v1.Fleet"])
async def test_health(served: Served, service: str) -> None:
    health = health_pb2_grpc.HealthStub(served.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_port_that_is_taken_is_an_error_that_names_the_key(served: Served) -> None:
    second = FleetServer(Endpoint("127.0.0.1", served.port), Bulletin(status(0)), "{}", nothing, refused)
    with pytest.raises(ConfigError, match=r"controller\.listen: can't listen on 127\.0\.0\.1"):
        second.bind()
    await second.stop()


async def test_what_the_controller_sees_below_it_reaches_a_planner_as_it_is() -> None:
    hosts = (Host("a1", "n0", 8, "H100-80GB", 96.0, 2 << 40, {"rack": "r1"}), Host("b2", "n1", cpus=4.0, here=False))
    seen, spec = Topology(hosts, {"m-serve-0": ("a1", "a1")}), spec_of(replicas=2)

    async def look() -> Topology:
        return seen

    server = FleetServer(Endpoint("127.0.0.1", 0), Bulletin(status(0)), dumps(spec), look, refused)
    port = server.bind()
    await server.start()
    try:
        assert await asyncio.to_thread(rpc.topology, f"127.0.0.1:{port}") == (seen, spec)
    finally:
        await server.stop()


async def test_a_controller_that_cant_see_says_why(served: Served) -> None:
    with pytest.raises(ClusterUnreachable, match="Ray does not answer"):
        await asyncio.to_thread(rpc.topology, f"127.0.0.1:{served.port}")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gateway": GatewaySpec(processes=-1)}, "gateway.processes"),
        ({"gateway": GatewaySpec(silence_seconds=0.5)}, "gateway.silence_seconds"),
        ({"gateway": GatewaySpec(http=Endpoint("127.0.0.1", 70_000))}, "gateway.http"),
        ({"gateway": GatewaySpec(health=HealthSpec(slow=0.0))}, "gateway.health.slow"),
        ({"controller": ControllerSpec(drain_timeout=-1.0)}, "controller.drain_timeout"),
        ({"telemetry": TelemetrySpec(log_level="shout")}, "telemetry.log_level"),
        ({"models": ()}, "models"),
    ],
)
async def test_what_a_file_would_be_refused_for_is_refused_as_an_upgrade_too(
    served: Served, change: dict[str, Any], named: str
) -> None:
    spec = replace(spec_of(), **change)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await served.fleet.Upgrade(fleet_pb2.UpgradeRequest(spec_json=dumps(spec)), timeout=WAIT)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named in str(raised.value.details())


async def test_a_pool_that_is_filed_under_another_role_is_refused(served: Served) -> None:
    spec = spec_of()
    [(role, pool)] = list(spec.models[0].pools.items())[:1]
    other = Role.DECODE if role is not Role.DECODE else Role.PREFILL
    model = replace(spec.models[0], pools={**spec.models[0].pools, role: replace(pool, role=other)})
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await served.fleet.Upgrade(
            fleet_pb2.UpgradeRequest(spec_json=dumps(replace(spec, models=(model,)))), timeout=WAIT
        )
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
