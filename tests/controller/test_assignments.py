"""What a worker's orders say of its share of a GPU: Ray counts it, the engine has to keep to it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config import effective_engine_args
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.resources import footprint
from orchestrator.core.slots import slots_of
from orchestrator.core.spec import Backend, ClusterSpec, Device, GatewaySpec, ModelSpec, PoolSpec, Role
from orchestrator.core.types import WorkerAssignment


def order(pool: PoolSpec, **engine: Any) -> WorkerAssignment:
    """The orders of the one worker of a cluster with this pool; ``engine`` is the model's."""
    model = ModelSpec("m", "none", {pool.role: pool}, engine)
    spec = ClusterSpec("test", (model,), gateway=GatewaySpec(processes=0))
    [slot] = slots_of(spec)
    made = Assigner(spec, "/nowhere", effective_engine_args).order(slot, 1)
    assert isinstance(made, WorkerAssignment)
    return made


@pytest.mark.parametrize(("engine", "taken"), [({}, 0.23), ({"gpu_memory_utilization": 0.8}, 0.2)])
def test_four_quarters_of_a_gpu_take_no_more_of_its_memory_than_a_whole_one(
    engine: dict[str, Any], taken: float
) -> None:
    made = order(PoolSpec(Role.SERVE, device=Device.GPU, share=0.25), **engine)
    assert made.engine["gpu_memory_utilization"] == pytest.approx(taken)
    assert footprint(made).actor_gpus == 0.25


def test_a_whole_gpu_is_left_to_vllms_own_defaults() -> None:
    assert "gpu_memory_utilization" not in order(PoolSpec(Role.SERVE, device=Device.GPU)).engine


def test_a_mock_knows_no_such_setting() -> None:
    made = order(PoolSpec(Role.SERVE, device=Device.GPU, backend=Backend.MOCK, share=0.25))
    assert (made.share, made.engine) == (0.25, {})
