"""A pipeline whose stages are on two Ray nodes says what the model says whole, and ends as a whole."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.controller.resources import footprint
from tests.e2e.golden import OUTPUT_TOKENS, transformers_greedy
from tests.workers.leftovers import gone, shared_memory, wait
from tests.workers.support import TINY_ENGINE, gateway, tokens
from tests.workers.worker_process import assignment
from workers import inventory
from workers.inventory import descendants

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(300)]

PLACES = ("second", "first")  # of the stages: the worker is not where the cluster's head is
ENGINE = {**TINY_ENGINE, "max_model_len": 1024, "pipeline_parallel_size": 2}


@dataclass(frozen=True)
class Replica:
    """A worker in its own actor, its processes and what they hold."""

    handle: Any
    address: str
    log: Path
    worker_pid: int
    engine_pid: int
    ranks: dict[int, str]  # pid: Ray's id of its node
    family: list[int]  # all processes but the worker's own
    memory: set[Path]

    def left(self) -> list[object]:
        """What of it is still there once it has ended."""
        folders = [
            folder
            for pid in (self.worker_pid, *self.ranks)
            for folder in Path(tempfile.gettempdir()).glob(f"segue-worker-{pid}-*")
        ]
        living = [pid for pid in self.family if not gone([pid])]
        return [*living, *ranks(), *folders, *(path for path in self.memory if path.exists())]


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, str]]:
    """Two Ray nodes on this machine, their ids by the resource that each alone has."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "resources": {"first": 1}})
    try:
        second = cluster.add_node(**small, resources={"second": 1})
        ray.init(cluster.address, namespace="segue", log_to_driver=False, logging_level="error")
        yield {"first": cluster.head_node.node_id, "second": second.node_id}
    finally:
        ray.shutdown()
        cluster.shutdown()


def ranks() -> dict[int, str]:
    """Live actors that are ranks."""
    from ray._private.state import actors

    found = [row for row in actors().values() if row["ActorClassName"] == "CpuRank" and row["State"] == "ALIVE"]
    return {row["Pid"]: row["Address"]["NodeID"] for row in found}


@asynccontextmanager
async def replica(nodes: dict[str, str], logs: Path) -> AsyncIterator[Replica]:
    """A pipeline of two stages, each on the node that it is meant for."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from workers.actor import WorkerActor

    order = assignment(
        {
            "pipeline_parallel": 2,
            "hosts": tuple(nodes[place] for place in PLACES),
            "engine": ENGINE,
            "log_dir": str(logs),
        }
    )
    need = footprint(order)
    pinned = [{**bundle, place: 0.01} for bundle, place in zip(need.bundles, PLACES, strict=True)]
    group = placement_group(pinned, need.strategy)
    assert await asyncio.to_thread(group.wait, 30)
    strategy = PlacementGroupSchedulingStrategy(group, 0, True)
    handle = ray.remote(WorkerActor).options(num_cpus=0, scheduling_strategy=strategy).remote(order)
    try:
        await handle.start.remote()
        told = await handle.snapshot.remote()
        there = ranks()
        family = [*descendants(told.actor_pid), *there, *(pid for rank in there for pid in descendants(rank))]
        memory = shared_memory(family)
        log = logs / f"{order.worker_id}.log"
        yield Replica(handle, told.address, log, told.actor_pid, told.engine_pid, there, family, memory)
    finally:
        ray.kill(handle)
        remove_placement_group(group)


async def test_stages_on_two_nodes_say_what_the_model_says_whole_and_leave_nothing(
    nodes: dict[str, str], tiny_path: str, tmp_path: Path
) -> None:
    golden = await asyncio.to_thread(transformers_greedy, tiny_path)
    async with replica(nodes, tmp_path) as pipeline:
        assert sorted(pipeline.ranks.values()) == sorted(nodes.values())
        # Nodes are this machine, but may not count on it: between machines there is no memory to compute in together.
        assert not any("vllm_dist" in each.name for each in inventory.shared_memory(pipeline.ranks))
        async with gateway(pipeline.address) as peer:
            for n, one in enumerate(golden):
                await peer.submit(f"r{n}", one.prompt, max_tokens=OUTPUT_TOKENS)
            for n, one in enumerate(golden):
                assert tokens(await peer.finished(f"r{n}", 60)) == one.output, f"prompt of {len(one.prompt)} tokens"
        await pipeline.handle.stop.remote()
        assert all(f"pid={pid}" in pipeline.log.read_text() for pid in pipeline.ranks)  # their words are in its log
        os.kill(pipeline.worker_pid, signal.SIGKILL)  # as its end through Ray is
        wait(lambda: not pipeline.left(), 10)


async def test_a_killed_rank_ends_the_replica(nodes: dict[str, str], tmp_path: Path) -> None:
    async with replica(nodes, tmp_path) as pipeline:
        (victim,) = [pid for pid, node in pipeline.ranks.items() if node == nodes["first"]]
        async with gateway(pipeline.address) as peer:
            await peer.submit("running", list(range(10, 40)), max_tokens=900)
            await peer.until(lambda g: g.outputs.get("running"))
            os.kill(victim, signal.SIGKILL)
            assert await peer.ended(20) is grpc.StatusCode.UNAVAILABLE
        wait(lambda: gone([pipeline.worker_pid]) and not pipeline.left(), 10)
