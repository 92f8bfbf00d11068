"""What holds for any model, load and devices that plans are chosen for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import inf

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from orchestrator.config.checks import hand_over
from orchestrator.config.cursor import Cursor
from orchestrator.config.document import Document
from orchestrator.core.planning.candidates import Candidates
from orchestrator.core.planning.choices import Choice, Stock
from orchestrator.core.planning.cut import Cut
from orchestrator.core.planning.devices import DeviceKind, Precision
from orchestrator.core.planning.fits import Fit, fits
from orchestrator.core.planning.serving import demand_of, least
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.weighing import Goal, Plan, Weighing, apart, transfer
from orchestrator.core.spec import AUTO, LoadSpec, ModelSpec, Role, SloSpec
from tests.planning import models
from tests.planning.plans import (
    BOTH,
    CATALOGUE,
    SERVE,
    SHORT,
    outcome,
    pool,
)

KINDS = st.builds(
    lambda number, memory, bandwidth, compute, price, network: replace(
        CATALOGUE.find("A100-80GB"),
        name=f"kind-{number}",
        aliases=(),
        memory_bytes=memory << 30,
        memory_bandwidth=bandwidth * 1e9,
        flops={Precision.BF16: compute * 1e12},
        usd_per_hour=price,
        network_bandwidth=network * 1e9,
    ),
    st.integers(0, 1000),
    st.sampled_from((24, 48, 80)),
    st.integers(300, 8000),
    st.integers(50, 2000),
    st.floats(0.5, 10),
    st.integers(1, 50),
)
OWNED = KINDS.map(lambda kind: replace(kind, usd_per_hour=0))
KIND_LISTS = st.lists(KINDS, min_size=1, max_size=3, unique_by=lambda kind: kind.name)
LOADS = st.builds(LoadSpec, st.floats(0.1, 200), st.integers(10, 4000), st.integers(1, 1000), st.floats(0, 0.95))
SLOS = st.builds(SloSpec, st.none() | st.floats(50, 3000), st.none() | st.floats(5, 100))
ROLES = st.sampled_from((SERVE, BOTH))
SIZES = st.sampled_from((AUTO, 1, 2, 4))
HALVES = st.fixed_dictionaries({"tensor_parallel": SIZES, "pipeline_parallel": SIZES})
MORE = st.floats(1, 3)
NODES = st.lists(st.integers(1, 8), min_size=1, max_size=4)
SLOWLY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def met(roles: Sequence[Role], load: LoadSpec, slo: SloSpec, there: Sequence[Stock]) -> Choice | None:
    found = outcome(models.LLAMA_3_8B, roles, load, slo, there)
    return found if isinstance(found, Choice) and not found.misses else None


def never_cheaper(hard: Choice | None, *, than: Choice | None) -> None:
    """Where the harder can be had at all."""
    assume(hard is not None)
    assert hard is not None
    assert than is not None
    assert than.usd_per_hour <= hard.usd_per_hour * (1 + 1e-9)


class TestAlways:
    @SLOWLY
    @given(ROLES, LOADS, SLOS, KIND_LISTS, MORE, MORE)
    def test_a_tighter_goal_is_never_cheaper(
        self, roles: Sequence[Role], load: LoadSpec, slo: SloSpec, kinds: list[DeviceKind], first: float, other: float
    ) -> None:
        tighter = SloSpec(slo.ttft_ms and slo.ttft_ms / first, slo.itl_ms and slo.itl_ms / other)
        there = [Stock(kind) for kind in kinds]
        never_cheaper(met(roles, load, tighter, there), than=met(roles, load, slo, there))

    @SLOWLY
    @given(ROLES, LOADS, SLOS, KIND_LISTS, MORE, MORE, MORE, MORE)
    def test_more_load_is_never_cheaper(
        self,
        roles: Sequence[Role],
        load: LoadSpec,
        slo: SloSpec,
        kinds: list[DeviceKind],
        rate: float,
        prompt: float,
        output: float,
        hit: float,
    ) -> None:
        more = LoadSpec(
            load.requests_per_second * rate,
            min(4000, int(load.prompt_tokens * prompt)),
            int(load.output_tokens * output),
            load.prefix_hit / hit,
        )
        there = [Stock(kind) for kind in kinds]
        never_cheaper(met(roles, more, slo, there), than=met(roles, load, slo, there))

    @SLOWLY
    @given(ROLES, LOADS, SLOS, KIND_LISTS, KINDS)
    def test_another_kind_never_makes_it_dearer(
        self, roles: Sequence[Role], load: LoadSpec, slo: SloSpec, kinds: list[DeviceKind], another: DeviceKind
    ) -> None:
        assume(another.name not in {kind.name for kind in kinds})
        few, more = [Stock(kind) for kind in kinds], [Stock(kind) for kind in (*kinds, another)]
        never_cheaper(met(roles, load, slo, few), than=met(roles, load, slo, more))

    @SLOWLY
    @given(ROLES, LOADS, SLOS, KIND_LISTS, NODES)
    def test_what_is_chosen_fits_and_is_there_and_is_the_same_again(
        self, roles: Sequence[Role], load: LoadSpec, slo: SloSpec, kinds: list[DeviceKind], nodes: list[int]
    ) -> None:
        there = [Stock(kind, tuple(nodes)) for kind in kinds]
        found = outcome(models.LLAMA_3_8B, roles, load, slo, there)
        assert found == outcome(models.LLAMA_3_8B, roles, load, slo, there)
        assert found == outcome(models.LLAMA_3_8B, roles, load, slo, there[::-1]) or len(kinds) > 1
        used: dict[str, int] = {}
        for each in found.pools if isinstance(found, Choice) else ():
            cut = Cut(each.tensor_parallel, each.pipeline_parallel)
            assert isinstance(fits(shape_of(models.LLAMA_3_8B), cut, each.device, SHORT), Fit)
            used[each.device.name] = used.get(each.device.name, 0) + each.replicas * cut.devices
            assert each.tensor_parallel <= max(nodes)
        assert all(count <= sum(nodes) for count in used.values())

    @SLOWLY
    @given(LOADS, SLOS, KIND_LISTS, NODES, HALVES, HALVES)
    def test_halves_that_are_chosen_are_no_wrong_configuration(
        self,
        load: LoadSpec,
        slo: SloSpec,
        kinds: list[DeviceKind],
        nodes: list[int],
        prefill: dict[str, int],
        decode: dict[str, int],
    ) -> None:
        halves = [pool(Role.PREFILL, **prefill), pool(Role.DECODE, **decode)]
        found = outcome(models.LLAMA_3_8B, halves, load, slo, [Stock(kind, tuple(nodes)) for kind in kinds])
        assume(isinstance(found, Choice))
        assert isinstance(found, Choice)
        sizes = ("replicas", "tensor_parallel", "pipeline_parallel")
        filled = {each.role: pool(each.role, **{name: getattr(each, name) for name in sizes}) for each in found.pools}
        hand_over(Cursor(Document({}, "plan")), ModelSpec("m", "m", filled))
        for half, fixed in ((filled[Role.PREFILL], prefill), (filled[Role.DECODE], decode)):
            assert all(getattr(half, name) == size for name, size in fixed.items() if size != AUTO)

    @SLOWLY
    @given(ROLES, LOADS, SLOS, KIND_LISTS, NODES, NODES)
    def test_more_devices_never_make_it_dearer(
        self,
        roles: Sequence[Role],
        load: LoadSpec,
        slo: SloSpec,
        kinds: list[DeviceKind],
        nodes: list[int],
        more: list[int],
    ) -> None:
        few, many = ([Stock(kind, tuple(there)) for kind in kinds] for there in (nodes, nodes + more))
        never_cheaper(met(roles, load, slo, few), than=met(roles, load, slo, many))

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(ROLES, LOADS, SLOS, KIND_LISTS | OWNED.map(lambda kind: [kind]))
    def test_trying_everything_finds_nothing_cheaper(
        self, roles: Sequence[Role], load: LoadSpec, slo: SloSpec, kinds: list[DeviceKind]
    ) -> None:
        there, demand = [Stock(kind) for kind in kinds[:2]], demand_of(load)
        shape = shape_of(models.LLAMA_3_8B)
        pools = [Candidates(pool(role), shape, there, SHORT, Cut(), demand) for role in roles]
        goal = Goal((slo.ttft_ms or inf) / 1e3, (slo.itl_ms or inf) / 1e3, load.requests_per_second)
        weighing = Weighing(pools, goal)
        parts = [[weighing.part(each, count) for each in own.options for count in range(1, 5)] for own in pools]
        ways = (way for way in product(*parts) if not apart([each.option for each in way]))
        plans = (Plan(way, transfer(*(each.option for each in way)) if len(way) > 1 else 0.0) for way in ways)
        costs = [(plan.usd_per_hour, plan.watts) for plan in plans if plan.meets(goal)]
        assume(costs)
        found = met(roles, load, slo, there)
        assert found is not None
        usd, watts = min(costs)
        assert found.usd_per_hour <= usd * (1 + 1e-9)
        if all(each.replicas < 5 for each in found.pools):
            assert found.usd_per_hour == pytest.approx(usd)
        if usd == 0:
            assert found.watts <= watts

    @given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 300))
    def test_the_least_of_those_that_do(self, threshold: int, low: int, most: int) -> None:
        expected = next((number for number in range(low, most + 1) if number >= threshold), None)
        assert least(lambda number: number >= threshold, low, most) == expected
