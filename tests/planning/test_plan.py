"""A whole cluster's plan: nothing twice, nothing half, nothing moved without need."""

from __future__ import annotations

import time
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.planning.places import Node
from orchestrator.core.planning.plan import Asked, ClusterPlan, Inventory, plan
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.spec import AUTO, ClusterSpec, Device, LoadSpec, ModelSpec, PoolSpec, Role
from orchestrator.planning import catalogue
from tests.planning.models import LLAMA_3_8B, LLAMA_3_70B

SHAPES = {"small": shape_of(LLAMA_3_8B), "large": shape_of(LLAMA_3_70B)}
MOST_SECONDS = 2.0  # for 1,000 nodes


def model(name: str, replicas: int, tensor_parallel: int, load: LoadSpec | None = None) -> ModelSpec:
    pool = PoolSpec(Role.SERVE, replicas, Device.GPU, tensor_parallel)
    return ModelSpec(name, f"./{name}", {Role.SERVE: pool}, load=load)


def planned(models: list[ModelSpec], nodes: list[Node], before: ClusterPlan | None = None) -> ClusterPlan:
    asked = {each.name: Asked(SHAPES[each.name], {Role.SERVE: Settings()}) for each in models}
    kept = before.placement.placed if before else ()
    return plan(ClusterSpec("c", tuple(models)), asked, Inventory(tuple(nodes), catalogue.builtin()), kept)


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


def test_a_thousand_nodes_are_planned_in_two_seconds() -> None:
    load = LoadSpec(2000.0, 1000, 200)
    models = [model("large", AUTO, AUTO, load), model("small", AUTO, AUTO, load)]
    began = time.perf_counter()
    found = planned(models, h100(1000))
    assert time.perf_counter() - began < MOST_SECONDS
    assert found.fits
    assert len(found.placement.placed) > 100
