"""What an engine gets in the end, and that a spec survives the way to it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import dumps, effective_engine_args, loads
from orchestrator.core.spec import (
    AUTO,
    AdmissionSpec,
    Backend,
    Bind,
    ClusterSpec,
    ControllerSpec,
    Device,
    Endpoint,
    GatewaySpec,
    LoadSpec,
    ModelSpec,
    PoolSpec,
    PrefillPlace,
    Role,
    RoutingSpec,
    SloSpec,
    TelemetrySpec,
    TenantSpec,
)


def merged(pool: PoolSpec, **engine: object) -> dict[str, object]:
    return effective_engine_args(ModelSpec("m", "org/m", {pool.role: pool}, engine), pool)


def test_the_nearer_setting_wins():
    pool = PoolSpec(Role.SERVE, engine={"max_num_seqs": 3})
    args = merged(pool, max_num_seqs=2, block_size=64, seed=1)
    assert (args["max_num_seqs"], args["block_size"], args["seed"]) == (3, 64, 1)


def test_a_cpu_engine_starts_fast_and_small():
    assert merged(PoolSpec(Role.SERVE)) == {
        "enforce_eager": True,
        "block_size": 32,
        "kv_cache_memory_bytes": 268435456,
        "max_num_seqs": 16,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
    }


def test_a_gpu_engine_keeps_vllms_own_defaults():
    pool = PoolSpec(Role.SERVE, device=Device.GPU, tensor_parallel=4, pipeline_parallel=2)
    assert merged(pool) == {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}


def test_a_mock_gets_what_was_written_for_it_and_no_more():
    pool = PoolSpec(Role.SERVE, backend=Backend.MOCK, tensor_parallel=2, engine={"kv_blocks": 7})
    assert merged(pool, step_seconds=0.1) == {"step_seconds": 0.1, "kv_blocks": 7}


names = st.text(min_size=1)
counts = st.integers(1, 10**6)
seconds = st.floats(0, 1e9)
endpoints = st.builds(Endpoint, names, st.integers(0, 65535))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(names, values, max_size=3)


targets = st.builds(SloSpec, st.none() | seconds, st.none() | seconds)
traffic = st.builds(LoadSpec, seconds, counts, counts, st.floats(0, 1))


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    roles = draw(st.sampled_from([(Role.SERVE,), (Role.PREFILL, Role.DECODE)]))
    sizes = counts | st.just(AUTO)
    kinds = st.sampled_from(Device), sizes, sizes, st.sampled_from(Backend), arguments
    hardware = st.lists(names, max_size=3).map(tuple), st.floats(0.0001, 1)
    pools = {role: draw(st.builds(PoolSpec, st.just(role), sizes, *kinds, *hardware)) for role in roles}
    routing = st.builds(RoutingSpec, names, st.dictionaries(names, seconds, max_size=3), st.sampled_from(PrefillPlace))
    plain = [draw(each) for each in (names, names)]
    rest = [draw(each) for each in (arguments, arguments, routing, st.none() | targets, st.none() | traffic)]
    return ModelSpec(*plain, pools, *rest)


tenants = st.builds(TenantSpec, seconds, st.none() | counts, st.none() | counts)
admissions = st.builds(
    AdmissionSpec, counts, counts, tenants, st.dictionaries(names, tenants, max_size=2), st.booleans()
)
specs = st.builds(
    ClusterSpec,
    names,
    st.lists(models(), min_size=1, max_size=3).map(tuple),
    st.sampled_from(Bind),
    st.builds(GatewaySpec, endpoints, endpoints, counts, counts, seconds, seconds, admissions),
    st.builds(ControllerSpec, endpoints, seconds, seconds, seconds, seconds),
    st.builds(TelemetrySpec, st.none() | names, names),
)


@given(specs)
def test_a_spec_comes_back_as_it_was(spec: ClusterSpec):
    back = loads(dumps(spec))
    assert back == spec
    assert dumps(back) == dumps(spec)  # equality does not tell 1 from 1.0 or from true
    assert "\n" not in dumps(spec)
