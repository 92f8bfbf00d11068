"""A controller on a fake cluster and a hand-driven clock, checked after every test for what it left behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.assignments import Assigner
from orchestrator.controller.controller import Controller
from orchestrator.controller.placer import Patience
from orchestrator.controller.ports import Ground, Memory
from orchestrator.controller.roster import Bounds
from orchestrator.controller.status import cluster_status
from orchestrator.core.slots import Observed
from orchestrator.core.spec import ClusterSpec, ControllerSpec, GatewaySpec, ModelSpec, PoolSpec, Role
from orchestrator.core.types import WorkerState
from orchestrator.proto import cluster_pb2 as pb
from tests.controller.fake_cluster import FakeCluster

WAIT = 5.0  # seconds; the bound of every wait in these tests, never reached when they pass
QUICK = Bounds(
    create=1,
    snapshot=0.2,
    first_word=1,
    ask_starting=0.01,
    ask_ready=0.01,
    drain_grace=0.2,
    stop=0.2,
    remove=0.2,
    retry=0.01,
)
_OBJECT_STORE = 80 << 20  # bytes; the least that Ray takes is a little less
HASTY = Patience(plan_lasts=0.01, settle=0.02, pinned=0.1, look_again=0.03)
BEGAN_MS = 1_700_000_000_000
PREFILL, DECODE, GATEWAY = "m-prefill-0", "m-decode-0", "gateway-0"


def no_engine_args(model: ModelSpec, pool: PoolSpec) -> dict[str, Any]:
    return {**model.engine, **pool.engine}


def spec_of(*, replicas: int = 1, **controller: Any) -> ClusterSpec:
    """One model m apart in two pools, and one gateway."""
    pools = {role: PoolSpec(role, replicas) for role in (Role.PREFILL, Role.DECODE)}
    return ClusterSpec(
        "test",
        (ModelSpec("m", "tiny:llama", pools),),
        gateway=GatewaySpec(processes=1),
        controller=ControllerSpec(**controller),
    )


class Bench:
    """A controller that runs, its cluster, its clock and the statuses it published."""

    def __init__(
        self,
        spec: ClusterSpec,
        cluster: FakeCluster,
        bounds: Bounds = QUICK,
        memory: Memory | None = None,
        ground: Ground | None = None,
    ) -> None:
        self.spec = spec
        self.cluster = cluster
        self.now = 1000.0
        self.statuses: list[pb.ClusterStatus] = []
        self._news = asyncio.Event()
        assigner = Assigner(spec, "/nowhere", no_engine_args, "127.0.0.1:9100")
        self.controller = Controller(
            assigner,
            cluster,
            self._publish,
            clock=lambda: self.now,
            bounds=bounds,
            patience=HASTY,
            memory=memory or Memory("", began_ms=BEGAN_MS),
            ground=ground,
        )
        self.running = asyncio.create_task(self._run())
        self.crashed = False

    async def _run(self) -> None:
        term = await self.cluster.claim()
        memory = await self.cluster.recall()
        await self.controller.take_over(term, memory.epoch if memory else 0)
        await self.controller.run()

    def _publish(self, observed: Observed, ending: bool) -> None:
        control = self.controller
        told = cluster_status(control.spec, observed, ending=ending, rollout=control.rollout, expected=control.expected)
        self.statuses.append(told)
        self._news.set()

    async def crash(self) -> None:
        """As where its process is killed: nothing of what it began is finished or undone."""
        self.crashed = True
        self.running.cancel()
        await asyncio.wait({self.running})

    @property
    def status(self) -> pb.ClusterStatus:
        return self.statuses[-1]

    def worker(self, slot_id: str) -> pb.WorkerStatus:
        [found] = [
            worker
            for model in self.status.models
            for pool in model.pools
            for worker in pool.workers
            if worker.id == slot_id
        ]
        return found

    def state(self, slot_id: str) -> WorkerState:
        return WorkerState(self.worker(slot_id).state)

    def later(self, seconds: float) -> None:
        """Moves the planner's clock on and has the controller look."""
        self.now += seconds
        self.controller.look()

    async def until(self, seen: Callable[[], object]) -> None:
        """Until a published status shows it."""
        async with asyncio.timeout(WAIT):
            while not (self.statuses and seen()):
                self._news.clear()
                await self._news.wait()

    async def ready(self) -> None:
        await self.until(lambda: self.status.ready)

    async def settle(self) -> None:
        """Until the controller looked twice more: whatever it had to do about the present, it has begun."""
        for _ in range(2):
            seen = len(self.statuses)
            self.controller.look()
            await self.until(lambda seen=seen: len(self.statuses) > seen)  # type: ignore[misc]


@pytest.fixture(scope="package")
def local_ray() -> Iterator[Any]:
    """A Ray on this machine with one GPU that is only a number, to which nodes can be added (ray.cluster_utils).

    Its processes can import this project and its tests.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    root = str(Path(__file__).parents[2])
    head = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        namespace="segue-tests",
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def ray_nodes(local_ray: Any) -> Iterator[Callable[..., Any]]:
    """Adds a node of so many GPUs and twice the CPUs, with these labels; after the test they are gone."""
    nodes: list[Any] = []

    def add(gpus: int, **labels: str) -> Any:
        node = local_ray.add_node(num_cpus=2 * gpus, num_gpus=gpus, object_store_memory=_OBJECT_STORE, labels=labels)
        nodes.append(node)
        return node

    yield add
    for node in nodes:
        if node in local_ray.worker_nodes:
            local_ray.remove_node(node)


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Bench]]:
    """Starts benches; after the test each is shut down, and nothing may be left: no actor, reservation or task."""
    benches: list[Bench] = []

    def begin(spec: ClusterSpec | None = None, cluster: FakeCluster | None = None, **more: Any) -> Bench:
        benches.append(Bench(spec or spec_of(), cluster or FakeCluster(), **more))
        return benches[-1]

    yield begin
    for bench in benches:
        bench.cluster.open_all()
        if bench.crashed:
            continue
        async with asyncio.timeout(WAIT):
            await bench.controller.shutdown(0.1)
            await bench.running
        assert await bench.cluster.names() == frozenset()
    assert asyncio.all_tasks() == {asyncio.current_task()}
