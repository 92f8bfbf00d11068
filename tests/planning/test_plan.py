"""A whole cluster's plan: nothing twice, nothing half, nothing moved without need."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.places import Node
from orchestrator.core.planning.plan import Asked, ClusterPlan, Inventory, cpu_parts, plan
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.spec import AUTO, ClusterSpec, Device, LoadSpec, ModelSpec, PoolSpec, Role
from orchestrator.planning import catalogue
from tests.planning.models import LLAMA_3_8B, LLAMA_3_70B, SMOLLM2_135M
from tests.planning.plans import CPU

SHAPES = {"tiny": shape_of(SMOLLM2_135M), "small": shape_of(LLAMA_3_8B), "large": shape_of(LLAMA_3_70B)}
HALVES = (Role.PREFILL, Role.DECODE)
L4 = [Node("l0", "L4", 1)]
MOST_SECONDS = 2.0  # for 1,000 nodes


def model(
    name: str,
    replicas: int,
    tensor_parallel: int,
    load: LoadSpec | None = None,
    share: float = 1.0,
    pipeline_parallel: int = 1,
    gpu: tuple[str, ...] = (),
) -> ModelSpec:
    pool = PoolSpec(Role.SERVE, replicas, Device.GPU, tensor_parallel, pipeline_parallel, gpu=gpu, share=share)
    return ModelSpec(name, f"./{name}", {Role.SERVE: pool}, load=load)


def part(number: int, share: float, replicas: int = 1, load: LoadSpec | None = None) -> ModelSpec:
    return model(f"tiny-{number}", replicas, 1, load, share)


def planned(models: list[ModelSpec], nodes: list[Node], before: ClusterPlan | None = None) -> ClusterPlan:
    shapes = {each.name: SHAPES[each.name.partition("-")[0]] for each in models}
    asked = {
        each.name: Asked(shapes[each.name], {role: Settings(share=pool.share) for role, pool in each.pools.items()})
        for each in models
    }
    kept = before.placement.placed if before else ()
    known = catalogue.builtin().extended((CPU,))
    return plan(ClusterSpec("c", tuple(models)), asked, Inventory(tuple(nodes), known), kept)


def h100(count: int, devices: int = 8) -> list[Node]:
    return [Node(f"n{number}", "H100-80GB", devices) for number in range(count)]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from([1, 2, AUTO]),
    st.integers(1, 3),
    st.sampled_from([4, 8, AUTO]),
    st.integers(1, 5),
)
def test_no_device_has_two_and_a_plan_that_was_carried_out_changes_nothing(
    small: int, small_tp: int, large: int, large_tp: int, nodes: int
) -> None:
    models = [model("small", small, small_tp), model("large", large, large_tp)]
    found = planned(models, h100(nodes))
    used = Counter(
        (node, device) for placed in found.placement.placed for node, devices in placed.stages for device in devices
    )
    assert all(count == 1 for count in used.values())
    sizes = {gang.gang_id: gang.tensor_parallel * gang.pipeline_parallel for gang in found.gangs}
    for placed in found.placement.placed:
        assert sum(len(devices) for _, devices in placed.stages) == sizes[placed.gang_id]
    assert planned(models, h100(nodes), found).moves.empty


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 2), st.integers(1, 4), st.integers(1, 3))
def test_more_nodes_never_make_it_fit_less(small: int, large: int, nodes: int, more: int) -> None:
    models = [model("small", small, 1), model("large", large, 4)]
    if planned(models, h100(nodes)).fits:
        assert planned(models, h100(nodes + more)).fits


def test_what_one_model_takes_the_next_one_has_not() -> None:
    assert planned([model("large", 1, 4), model("small", 4, 1)], h100(1)).fits
    found = planned([model("large", 1, 4), model("small", 5, 1)], h100(1))
    assert not found.fits
    assert any("small" in reason for reason in found.reasons)


def test_a_model_that_can_go_elsewhere_leaves_another_what_only_that_can_run_on() -> None:
    nodes = [Node("l0", "L4", 1), *h100(1, 1)]
    picky = model("tiny-1", 1, 1, gpu=("L4",))
    found = planned([model("tiny-0", 1, 1), picky], nodes)
    assert found.reasons == ()
    assert [each.name for each in found.models] == ["tiny-0", "tiny-1"]
    assert [gang.devices for gang in found.gangs] == [("H100-80GB",), ("L4",)]
    again = planned([model("tiny-0", 1, 1), picky, model("small", 1, 8)], nodes)
    assert {reason.partition(":")[0] for reason in again.reasons} == {"small"}


def test_a_half_that_may_go_elsewhere_leaves_what_the_other_and_another_model_are_bound_to() -> None:
    pools = {role: PoolSpec(role, 1, Device.GPU, gpu=("A10G", "L4") * (role is Role.PREFILL)) for role in HALVES}
    nodes = [Node("l0", "L4", 1), Node("l1", "L4", 1), *h100(1, 2)]
    found = planned([model("tiny-0", 2, 1, None, 0.2, gpu=("L4",)), ModelSpec("tiny-1", "./tiny", pools)], nodes)
    assert found.reasons == ()
    assert [gang.devices for gang in found.gangs] == [("L4",), ("L4",), ("L4",), ("H100-80GB",)]


def test_a_whole_node_is_found_however_small_models_are_spread() -> None:
    found = planned([model("small", 2, 1), model("large", 1, 8)], h100(2))
    assert found.reasons == ()
    assert planned([model("small", 2, 1), model("large", 1, 8)], h100(2), found).moves.empty


def test_a_kind_of_gpu_that_nobody_knows_is_a_wrong_configuration() -> None:
    with pytest.raises(ConfigError, match=r"models\.small\.pools\.serve\.gpu.*unknown device 'H10'.*did you mean H100"):
        planned([model("small", 1, 1, gpu=("L4", "H10"))], h100(1))
    with pytest.raises(ConfigError, match=r"models\.small\.pools\.serve\.gpu: this-cpu is a cpu"):
        planned([model("small", 1, 1, gpu=("this-cpu",))], h100(1))


def test_models_with_parts_of_a_device_share_it() -> None:
    two = planned([part(0, 0.5), part(1, 0.5)], L4)
    assert two.reasons == ()
    assert {placed.stages for placed in two.placement.placed} == {(("l0", (0,)),)}
    three = planned([part(0, 0.5), part(1, 0.5), part(2, 0.5)], L4)
    assert three.reasons == ("tiny-2: serve on L4 with TP=1, PP=1: no L4 has 0.5 of it free, 0 at most",)
    uneven = planned([part(0, 0.5), part(1, 0.6)], L4)
    assert uneven.reasons == ("tiny-1: serve on L4 with TP=1, PP=1: no L4 has 0.6 of it free, 0.5 at most",)


def test_a_whole_device_is_none_that_is_shared() -> None:
    found = planned([part(0, 0.5), part(1, 1.0)], L4)
    assert found.reasons == ("tiny-1: serve on L4 with TP=1, PP=1: no L4 is free",)


def test_replicas_go_where_parts_are_left_and_no_further() -> None:
    load = LoadSpec(1000.0, 200, 50)
    found = planned([part(0, 0.7), part(1, 0.1, AUTO, load)], L4)
    (pool,) = found.spec.models[1].pools.values()
    assert pool.replicas == 3
    assert len(found.placement.placed) == 4
    assert not found.placement.unplaced


def test_both_halves_share_one_device() -> None:
    pools = {role: PoolSpec(role, 1, Device.GPU, share=0.5) for role in HALVES}
    halves = ModelSpec("tiny", "./tiny", pools)
    assert planned([halves], L4).reasons == ()
    assert not planned([halves, part(1, 0.1)], L4).fits


def test_a_split_node_has_no_more_together_than_its_nvlink_domains() -> None:
    whole, split = (Node("a0", "A100-40GB", 8, labels) for labels in ({}, {"nvlink_domain": "0-3,4-7"}))
    cuts = [planned([model("large", 1, AUTO, pipeline_parallel=AUTO)], [node]).gangs[0] for node in (whole, split)]
    assert [(gang.tensor_parallel, gang.pipeline_parallel) for gang in cuts] == [(8, 1), (4, 2)]
    found = planned([model("large", 1, 8)], [split])
    assert (
        "8 devices of one node are needed, no node has more than 4 A100-40GB free in one NVLink domain"
        in found.reasons[0]
    )


def test_a_thousand_nodes_are_planned_in_two_seconds() -> None:
    load = LoadSpec(2000.0, 1000, 200)
    models = [model("large", AUTO, AUTO, load), model("small", AUTO, AUTO, load)]
    began = time.perf_counter()
    found = planned(models, h100(1000))
    assert time.perf_counter() - began < MOST_SECONDS
    assert found.fits
    assert len(found.placement.placed) > 100


def test_a_cpu_goes_into_as_many_parts_as_pools_ask_for() -> None:
    def on(device: Device, role: Role, *counts: int) -> PoolSpec:
        replicas, tensor, pipeline = counts
        return PoolSpec(role, replicas, device, tensor, pipeline)

    both = {Role.PREFILL: on(Device.CPU, Role.PREFILL, 2, 2, 1), Role.DECODE: on(Device.CPU, Role.DECODE, AUTO, 1, 3)}
    assert cpu_parts([ModelSpec("both", "./both", both)]) == 4 + 3
    gpu = ModelSpec("gpu", "./gpu", {Role.SERVE: on(Device.GPU, Role.SERVE, 4, 1, 1)})
    assert cpu_parts([gpu]) == 0
