"""Replicas on one machine's CPU take what they need of one memory, and together no more than there is."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.planning.places import Node
from orchestrator.core.planning.plan import Asked, ClusterPlan, Inventory, plan
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.spec import ClusterSpec, Device, ModelSpec, PoolSpec, Role
from orchestrator.planning import catalogue
from tests.planning.models import SMOLLM2_135M
from tests.planning.plans import CPU

GIB = 1 << 30
MACHINE = replace(CPU, memory_bytes=16 * GIB)


def planned(kv_bytes: int, replicas: int) -> ClusterPlan:
    pool = PoolSpec(Role.SERVE, replicas, Device.CPU)
    spec = ClusterSpec("c", (ModelSpec("m", "./m", {Role.SERVE: pool}),))
    asked = Asked(shape_of(SMOLLM2_135M), {Role.SERVE: Settings(kv_cache_memory_bytes=kv_bytes)})
    node = Node("here", MACHINE.name, replicas, shared_bytes=MACHINE.memory_bytes)
    return plan(spec, {"m": asked}, Inventory((node,), catalogue.builtin().extended((MACHINE,))))


def test_a_replica_may_take_more_than_an_equal_part_of_the_memory() -> None:
    assert planned(10 * GIB, 1).fits
    assert planned(6 * GIB, 2).fits


def test_replicas_that_take_more_than_all_of_it_are_refused_with_the_numbers() -> None:
    found = planned(10 * GIB, 2)
    [reason] = found.reasons
    assert reason.startswith("here: 2 replicas need ")
    assert "it has 17.2 GB" in reason
    assert not found.fits
