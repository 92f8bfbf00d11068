"""The controller as it runs: a detached Ray actor, real processes, its watch over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from orchestrator.config import loads
from orchestrator.controller import ray_cluster, ray_hosts, ray_memory
from orchestrator.controller.ray_cluster import RayCluster
from orchestrator.controller.ray_controller import start_controller, stop_controller
from orchestrator.core.errors import ClusterUnreachable, ConfigError
from orchestrator.core.spec import Backend, ClusterSpec, ControllerSpec, Device, Endpoint, ModelSpec, PoolSpec, Role
from orchestrator.proto import cluster_pb2 as pb
from orchestrator.proto import cluster_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from tests.controller.conftest import DECODE, GATEWAY, PREFILL
from tests.controller.standin import standin_gateway, standin_worker

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
WAIT = 60.0  # seconds; a worker's process imports vLLM's types before it serves
NAME = "live"


def spec_of(backend: Backend = Backend.MOCK, **controller: float) -> ClusterSpec:
    pools = {role: PoolSpec(role, backend=backend) for role in (Role.PREFILL, Role.DECODE)}
    listen = Endpoint("127.0.0.1", 0)
    return ClusterSpec(
        NAME,
        (ModelSpec("m", "none", pools),),
        controller=ControllerSpec(listen, restart_backoff_initial=0.2, **controller),  # type: ignore[arg-type]
    )


STAND_INS = RayCluster(NAME, standin_worker, standin_gateway)
MOCK_WORKERS = RayCluster(NAME, gateway=standin_gateway)


class Watched:
    """A running cluster and what its fleet watch says."""

    def __init__(self, address: str, log_dir: Path, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.log_dir = log_dir
        self.cluster = cluster_pb2_grpc.ClusterStub(channel)
        self._fleet = fleet_pb2_grpc.FleetStub(channel)
        self.rewatch()
        self.seen: list[fleet_pb2.FleetSnapshot] = []

    def rewatch(self) -> None:
        self.watch = self._fleet.Watch(fleet_pb2.FleetWatchRequest(watcher_id="test"))

    @property
    def status(self) -> pb.ClusterStatus:
        return self.seen[-1].status

    def worker(self, slot_id: str) -> pb.WorkerStatus:
        pools = [pool for model in self.status.models for pool in model.pools]
        [found] = [worker for pool in pools for worker in pool.workers if worker.id == slot_id]
        return found

    def pids(self) -> set[int]:
        workers = {self.worker(slot_id).actor_pid for slot_id in (PREFILL, DECODE)}
        return workers | {self.status.gateways[0].pid, self.status.controller.pid}

    async def until(self, seen: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT):
            while not (self.seen and seen()):
                self.seen.append(await self.watch.read())


Run = Callable[..., "asyncio.Future[Watched]"]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Starts a cluster; stops it after the test, if the test did not, and looks for leftovers."""
    channels: list[grpc.aio.Channel] = []

    async def begin(cluster: RayCluster = STAND_INS, spec: ClusterSpec | None = None) -> Watched:
        address = await asyncio.to_thread(start_controller, spec or spec_of(), str(tmp_path), cluster)
        channels.append(grpc.aio.insecure_channel(address))
        return Watched(address, tmp_path, channels[-1])

    yield begin  # type: ignore[misc]
    for channel in channels:
        await channel.close()
    with contextlib.suppress(ClusterUnreachable):
        await asyncio.to_thread(stop_controller, NAME, 1.0)
    assert not ray_cluster.names(NAME)


async def gone(pids: set[int]) -> None:
    async with asyncio.timeout(10):
        while any(psutil.pid_exists(pid) for pid in pids):  # noqa: ASYNC110 - processes of others give no event
            await asyncio.sleep(0.05)


async def test_mock_workers_come_up_and_one_that_is_killed_is_replaced_and_the_watch_says_so(run: Run) -> None:
    live = await run(MOCK_WORKERS)
    await live.until(lambda: live.status.ready)
    assert loads(live.seen[0].spec_json) == spec_of()
    assert live.status.controller.address == live.address
    before = live.worker(DECODE)
    assert before.address.startswith("127.0.0.1:")
    assert before.kv_blocks_total or before.actor_pid

    os.kill(before.actor_pid, signal.SIGKILL)
    await live.until(lambda: live.worker(DECODE).state == "dead")
    assert not live.status.ready
    assert "m-decode-0" in live.worker(DECODE).detail
    await live.until(lambda: live.status.ready)
    after = live.worker(DECODE)
    assert after.actor_pid != before.actor_pid
    assert after.epoch > before.epoch
    assert after.restarts == 1
    assert live.worker(PREFILL).restarts == 0

    pids = live.pids()
    await asyncio.to_thread(stop_controller, NAME, 5.0)
    await gone(pids)
    assert not ray_cluster.names(NAME)


async def test_stop_drains_in_order_and_leaves_no_actor_process_or_placement_group(run: Run) -> None:
    live = await run()
    await live.until(lambda: live.status.ready)
    pids = live.pids()
    await asyncio.to_thread(stop_controller, NAME, 5.0)
    await gone(pids)
    assert not ray_cluster.names(NAME)
    drained = {slot: (live.log_dir / f"{slot}.drained") for slot in (GATEWAY, DECODE, PREFILL)}
    assert all(record.exists() for record in drained.values())
    assert drained[GATEWAY].stat().st_mtime_ns < drained[DECODE].stat().st_mtime_ns
    assert "shutdown" in (live.log_dir / "controller.log").read_text()
    with pytest.raises(ClusterUnreachable):
        await asyncio.to_thread(stop_controller, NAME, 5.0)


async def test_a_failed_start_reaches_status_and_is_tried_again(run: Run, tmp_path: Path) -> None:
    (tmp_path / f"{DECODE}.fail").write_text("no weights there")
    live = await run()
    await live.until(lambda: live.worker(DECODE).state == "failed" and live.worker(DECODE).restarts >= 1)
    assert live.worker(DECODE).detail == "m-decode-0: no weights there"
    (tmp_path / f"{DECODE}.fail").unlink()
    await live.until(lambda: live.status.ready)


async def test_workers_and_gateways_outlive_a_killed_controller_and_can_be_stopped_without_it(run: Run) -> None:
    live = await run()
    await live.until(lambda: live.status.ready)
    os.kill(live.status.controller.pid, signal.SIGKILL)
    await gone({live.status.controller.pid})
    rest = live.pids() - {live.status.controller.pid}
    assert all(psutil.pid_exists(pid) for pid in rest)
    assert len(ray_cluster.names(NAME)) == 3
    await asyncio.to_thread(stop_controller, NAME, 1.0)
    await gone(rest)
    assert not ray_cluster.names(NAME)


async def test_a_worker_that_hangs_can_be_stopped(run: Run) -> None:
    live = await run()
    await live.until(lambda: live.status.ready)
    os.kill(live.worker(DECODE).actor_pid, signal.SIGSTOP)
    pids = live.pids()
    await asyncio.to_thread(stop_controller, NAME, 0.5)
    await gone(pids)


async def test_a_second_cluster_of_the_same_name_is_refused(run: Run, tmp_path: Path) -> None:
    await run()
    with pytest.raises(ConfigError, match=r"cluster\.name: a cluster named 'live' runs on this Ray already"):
        await asyncio.to_thread(start_controller, spec_of(), str(tmp_path), STAND_INS)


async def test_a_port_that_is_taken_is_told_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    live = await run()
    host, _, port = live.address.partition(":")
    other = ClusterSpec("other", spec_of().models, controller=ControllerSpec(Endpoint(host, int(port))))
    with pytest.raises(ConfigError, match=r"controller\.listen"):
        await asyncio.to_thread(start_controller, other, str(tmp_path), RayCluster("other", standin_worker))
    with pytest.raises(ClusterUnreachable):
        stop_controller("other", 1.0)
    assert ray_memory.ages("other") == [], "it has claimed a term, which is nobody's now"


def gpu_spec(replicas: int, tensor: int) -> ClusterSpec:
    pool = PoolSpec(Role.SERVE, replicas, Device.GPU, tensor, backend=Backend.MOCK)
    spec = spec_of()
    return replace(spec, models=(ModelSpec("m", "none", {Role.SERVE: pool}),))


async def places() -> dict[str, set[str]]:
    """By slot the nodes of its devices."""
    topology = await asyncio.to_thread(ray_hosts.topology, NAME)
    return {slot_id: set(hosts) for slot_id, hosts in topology.reserved.items()}


def serving(live: Watched) -> set[str]:
    return {worker.id for worker in live.status.models[0].pools[0].workers if worker.state == "ready"}


async def test_replicas_are_spread_over_nodes_and_one_whose_node_dies_comes_up_on_another(
    run: Run, local_ray: Any, ray_nodes: Callable[..., Any]
) -> None:
    nodes = {node.node_id: node for node in (ray_nodes(4, rack="r0"), ray_nodes(4, rack="r1"))}
    live = await run(spec=gpu_spec(2, 4))
    await live.until(lambda: len(serving(live)) == 2)
    before = await places()
    assert all(len(hosts) == 1 for hosts in before.values())
    assert set.union(*before.values()) == set(nodes)

    spare = ray_nodes(4, rack="r2")
    [lost] = before["m-serve-0"]
    await asyncio.to_thread(local_ray.remove_node, nodes[lost])
    await live.until(lambda: serving(live) == {"m-serve-1"})
    await live.until(lambda: len(serving(live)) == 2)
    assert await places() == before | {"m-serve-0": {spare.node_id}}


async def test_no_actor_outlives_a_node_whose_raylet_is_killed(
    run: Run, local_ray: Any, ray_nodes: Callable[..., Any]
) -> None:
    node = ray_nodes(4)
    live = await run(spec=gpu_spec(1, 4))
    await live.until(lambda: serving(live))
    before = live.worker("m-serve-0")
    [raylet] = node.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGKILL)
    await gone({before.actor_pid})
    await live.until(lambda: live.worker("m-serve-0").state != "ready")
    ray_nodes(4)
    await live.until(lambda: serving(live))
    assert live.worker("m-serve-0").actor_pid != before.actor_pid


async def test_what_does_not_fit_says_why_and_comes_up_once_a_node_is_added(
    run: Run, ray_nodes: Callable[..., Any]
) -> None:
    ray_nodes(2)
    live = await run(spec=gpu_spec(1, 4))
    await live.until(lambda: live.worker("m-serve-0").stage)
    assert live.worker("m-serve-0").state == "pending"
    assert "tensor_parallel 4 needs 4 gpu in one node" in live.worker("m-serve-0").stage
    assert "have 2 at most" in live.worker("m-serve-0").stage
    node = ray_nodes(4)
    await live.until(lambda: serving(live))
    assert await places() == {"m-serve-0": {node.node_id}}
