"""What orders say of a share of a GPU, which Ray counts and the engine has to keep to; and what they make, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.config import effective_engine_args
from orchestrator.controller.assignments import Assigner, version_of
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


def everyone(spec: ClusterSpec, epoch: int = 1, log_dir: str = "/nowhere", address: str = "here:1") -> dict[str, str]:
    """The versions of a cluster's actors."""
    assigner = Assigner(spec, log_dir, effective_engine_args, address)
    return {slot.slot_id: assigner.order(slot, epoch).version for slot in slots_of(spec)}


def apart(**decode: Any) -> ClusterSpec:
    pools = {Role.PREFILL: PoolSpec(Role.PREFILL, 2), Role.DECODE: PoolSpec(Role.DECODE, 2, engine=decode)}
    return ClusterSpec("test", (ModelSpec("m", "none", pools),))


def test_what_is_made_of_the_same_has_one_version_whoever_starts_it_when_and_where() -> None:
    versions = everyone(apart())
    assert versions == everyone(apart(), epoch=7, log_dir="/elsewhere", address="there:2")
    assert versions["m-decode-0"] == versions["m-decode-1"] != versions["m-prefill-0"]
    order = Assigner(apart(), "", effective_engine_args).order(slots_of(apart())[0], 1)
    assert isinstance(order, WorkerAssignment)
    assert version_of(replace(order, hosts=("a",))) == order.version != ""


def test_a_changed_engine_argument_is_another_version_of_its_own_pool_alone() -> None:
    was, now = everyone(apart()), everyone(apart(max_num_seqs=7))
    assert {slot_id for slot_id in was if was[slot_id] != now[slot_id]} == {"m-decode-0", "m-decode-1"}


def test_a_gateways_version_is_of_its_own_settings_and_not_of_models_which_it_takes_as_they_come() -> None:
    spec = apart()
    more = replace(spec, gateway=replace(spec.gateway, max_body_bytes=7))
    was, now = everyone(spec)["gateway-0"], everyone(more)["gateway-0"]
    assert was != now
    assert was == everyone(apart(max_num_seqs=7))["gateway-0"]
