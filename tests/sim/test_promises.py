"""What a run promises, over random clusters, loads and faults: ``simulate`` raises where a promise is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import ConfigError
from orchestrator.core.fleet import Fleet
from orchestrator.core.policies import POLICIES
from orchestrator.core.spec import AUTO, Device, ModelSpec, PoolSpec, Role
from orchestrator.sim.half import Half
from orchestrator.sim.promise import PromiseBroken
from orchestrator.sim.run import settings_of
from orchestrator.sim.worker import Worker
from tests.sim.support import SMALL, cluster, play, requests

ENGINES = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([4, 16]),
        "kv_blocks": st.sampled_from([300, 4000]),
        "max_num_seqs": st.sampled_from([1, 4, 32]),
        "max_model_len": st.just(600),
        "step_seconds": st.sampled_from([0.002, 0.05]),
        "lease_seconds": st.sampled_from([0.5, 30.0]),
        "transfer_bytes_per_second": st.sampled_from([1e7, 1e10]),
        "enable_prefix_caching": st.booleans(),
    }
)
SECONDS = st.sampled_from(["0.3", "2", "7.5"])
FAULTS = st.lists(
    st.one_of(
        st.builds("crash:{}@{}".format, st.integers(0, 1), SECONDS),
        st.builds("drain:{}@{}".format, st.integers(0, 1), SECONDS),
        st.builds("fail:{}@{}:{}".format, st.integers(0, 1), SECONDS, st.sampled_from([0.3, 1])),
        st.builds("flap:{}@{}+{}".format, st.integers(0, 1), SECONDS, st.sampled_from([3, 9])),
        st.builds("slow:{}@{}:x{}".format, st.integers(0, 1), SECONDS, st.sampled_from([0.5, 8])),
        st.builds("partition:0-{}@{}+{}".format, st.integers(0, 1), SECONDS, st.sampled_from([0.2, 2, 20])),
        st.builds("lose:{}".format, st.sampled_from([0.02, 0.3])),
        st.builds("reorder:{}".format, st.sampled_from([0.1, 1])),
        st.builds("leave:{}".format, st.sampled_from([0.1, 0.9])),
        st.just("random:3"),
    ),
    max_size=4,
)


# A sequence that gives its blocks up and takes them again at once is due in the same step as before.
@example(
    engine={
        "block_size": 4,
        "kv_blocks": 300,
        "max_num_seqs": 4,
        "max_model_len": 600,
        "step_seconds": 0.002,
        "lease_seconds": 0.5,
        "transfer_bytes_per_second": 1e7,
        "enable_prefix_caching": False,
    },
    roles=("prefill", "decode"),
    policy="adapter_aware",
    gateways=2,
    disturbed=[],
    trace="generate:bursts,rate=20,prompt=200,output=40,period=4,factor=8",
    queue_seconds=1.0,
    deadline=0.4,
    seed=224,
)
@settings(max_examples=80)
@given(
    engine=ENGINES,
    roles=st.sampled_from([("serve",), ("prefill", "decode")]),
    policy=st.sampled_from(sorted(POLICIES)),
    gateways=st.integers(1, 3),
    disturbed=FAULTS,
    trace=st.sampled_from(
        [
            "generate:poisson,rate=8,prompt=90,output=12,prefix=64,prefixes=5,tenants=3",
            "generate:bursts,rate=20,prompt=200,output=40,period=4,factor=8",
        ]
    ),
    queue_seconds=st.sampled_from([1.0, 30.0]),
    deadline=st.sampled_from([None, 0.4, 5.0]),
    seed=st.integers(0, 1 << 32),
)
def test_every_request_has_one_outcome_and_nothing_is_left_whatever_goes_wrong(
    engine: dict[str, Any],
    roles: tuple[str, ...],
    policy: str,
    gateways: int,
    disturbed: list[str],
    trace: str,
    queue_seconds: float,
    deadline: float | None,
    seed: int,
) -> None:
    spec = cluster(*roles, engine=engine, queue_seconds=queue_seconds)
    asked = requests(spec, trace, seed=seed, requests=60)
    result = play(
        spec, asked, policy=policy, gateways=gateways, disturbed=",".join(disturbed), deadline=deadline, seed=seed
    )
    assert sum(result.measure.outcomes.values()) == result.measure.ended == len(asked)
    assert result.measure.good <= result.measure.outcomes["finished"]


def test_nothing_fails_and_no_lease_expires_while_nothing_goes_wrong() -> None:
    spec = cluster("prefill", "decode")
    result = play(spec, requests(spec, "generate:poisson,rate=10", requests=200), gateways=2)
    assert result.measure.outcomes["finished"] == 200
    assert result.measure.apart > 0
    assert sum(worker.expired for worker in result.workers) == 0


@pytest.mark.parametrize(
    ("disturbed", "expected"),
    [
        ("crash:0@2", "retried"),
        ("crash:0@2,crash:1@2.1", "worker_lost"),
        ("leave:0.5", "cancelled"),
    ],
)
def test_faults_show(disturbed: str, expected: str) -> None:
    spec = cluster("serve", queue_seconds=3.0)  # less than a worker needs to come back
    always_busy = requests(spec, "generate:poisson,rate=25,prompt=1500,prompt_cv=0,shared=0", requests=150)
    result = play(spec, always_busy, disturbed=disturbed)
    measure = result.measure
    seen = {"retried": measure.retried, "cancelled": measure.outcomes["cancelled"], **measure.errors}
    assert seen.get(expected, 0) > 0, seen


def test_a_slow_worker_is_sent_less() -> None:
    spec = cluster("serve")
    result = play(spec, requests(spec, "generate:poisson,rate=12,output=200", requests=400), disturbed="slow:0@0:x4")
    slow, quick = result.workers
    assert slow.engine.step < 0.5 * quick.engine.step


@pytest.mark.parametrize("seed", [0, 7])
def test_same_seed_same_hash_under_any_hash_seed(seed: int) -> None:
    program = (
        "from tests.sim.support import *\n"
        "spec = cluster('prefill', 'decode')\n"
        f"asked = requests(spec, 'generate:bursts,rate=15,tenants=4', seed={seed}, requests=150)\n"
        f"result = play(spec, asked, seed={seed}, gateways=2, disturbed='random:2,lose:0.02,leave:0.1')\n"
        "print(result.trace_hash)\n"
    )
    hashes = set()
    for hash_seed in ("0", "1234"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        hashes.add(done.stdout)
    assert len(hashes) == 1


def test_a_fleet_of_nobody_knows_how_many_is_refused() -> None:
    spec = cluster()
    model = spec.models[0]
    left_open = {role: replace(pool, replicas=AUTO) for role, pool in model.pools.items()}
    spec = replace(spec, models=(replace(model, pools=left_open),))
    with pytest.raises(ConfigError, match=r"models\[0\]\.pools\.serve\.replicas is still auto"):
        play(spec, requests(cluster(), requests=1))


def test_an_engine_on_nobody_knows_how_many_devices_is_none_to_model() -> None:
    pool = PoolSpec(Role.SERVE, device=Device.GPU, tensor_parallel=AUTO)
    with pytest.raises(ConfigError, match=r"models\[0\]\.pools\.serve\.tensor_parallel is still auto"):
        settings_of(ModelSpec("m", "tiny:llama", {Role.SERVE: pool}))


def test_another_seed_another_hash() -> None:
    spec = cluster("serve")
    asked = requests(spec, requests=50)
    assert play(spec, asked, seed=1).trace_hash != play(spec, asked, seed=2).trace_hash
    assert play(spec, asked, seed=1).trace_hash == play(spec, asked, seed=1).trace_hash


# ---- the watch over promises sees when one is broken


def test_a_token_sent_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Worker._stepped_to

    def twice(self: Worker, firsts: list[Half], ended: list[Half]) -> None:
        take(self, [*firsts, *firsts], ended)

    monkeypatch.setattr(Worker, "_stepped_to", twice)
    spec = cluster("serve")
    with pytest.raises((PromiseBroken, RuntimeError), match="first token"):
        play(spec, requests(spec, requests=5), deep=False)


@pytest.mark.source
def test_a_request_without_an_outcome_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sim.run.STUCK_SECONDS", 60.0)
    monkeypatch.setattr(Worker, "_stepped_to", lambda self, firsts, ended: None)
    spec = cluster("serve")
    with pytest.raises(PromiseBroken, match="5 requests have no outcome"):
        play(spec, requests(spec, requests=5), deep=False)


@pytest.mark.source
def test_a_request_for_a_worker_that_drains_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fleet, "drain", lambda self, worker_id: None)
    spec = cluster("serve")
    with pytest.raises(PromiseBroken, match="which takes nothing of the kind"):
        play(spec, requests(spec, requests=50), deep=False, disturbed="drain:0@1,drain:1@1")


# ---- size


def test_a_thousand_replicas() -> None:
    spec = cluster("serve", engine={**SMALL, "block_size": 32})
    asked = requests(spec, replicas=1000, requests=4000)
    result = play(spec, asked, replicas={Role.SERVE: 1000}, deep=False)
    assert result.measure.outcomes["finished"] == 4000
    assert len(result.workers) == 1000
    assert result.measure.cached_tokens / result.measure.prompt_tokens > 0.5 * result.bound


@pytest.mark.parametrize("roles", [("serve",), ("prefill", "decode")])
def test_a_thousand_replicas_under_faults(roles: tuple[str, ...]) -> None:
    spec = cluster(*roles, engine={**SMALL, "block_size": 32})
    asked = requests(spec, "generate:poisson,rate=500,output=100", replicas=1000, requests=3000)
    sick = ",".join(f"fail:{7 * n}@1:0.5+3,flap:{7 * n + 1}@1+3,slow:{7 * n + 2}@1:x8+3" for n in range(20))
    wrong = f"random:100,lose:0.001,reorder:0.05,{sick}"
    result = play(spec, asked, replicas={Role(role): 1000 // len(roles) for role in roles}, deep=False, disturbed=wrong)
    measure = result.measure
    assert measure.ended == 3000
    assert measure.retried > 20
    assert measure.outcomes["finished"] > 2990
