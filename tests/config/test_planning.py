"""What a configuration leaves to the planner: how it is written, what is refused, and who takes no such spec."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator import config
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import AUTO, Backend, ClusterSpec, Device, LoadSpec, PoolSpec, Role, SloSpec

SERVE = """\
cluster: {name: local}
models:
  - name: m
    source: org/m
    pools:
      serve: {POOL}
"""
PLANNED = """\
cluster: {name: local}
models:
  - name: m
    source: org/m
    slo: {ttft_ms: 500, itl_ms: 40}
    load: {requests_per_second: 20, prompt_tokens: 2000, output_tokens: 300, prefix_hit: 0.5}
    pools:
      prefill: {replicas: auto, tensor_parallel: auto, pipeline_parallel: auto, gpu: H100-80GB}
      decode: {replicas: 2, tensor_parallel: auto, gpu: [A100-80GB, H200]}
"""


def served(pool: str) -> str:
    """One model with one pool; the pool is what stands between its braces."""
    return SERVE.replace("POOL", pool)


def planned(old: str, new: str) -> str:
    assert PLANNED.count(old) == 1, f"{old!r} has to be there once"
    return PLANNED.replace(old, new)


def test_what_is_left_open_and_what_it_is_chosen_by_reach_the_spec(load: Callable[[str], ClusterSpec]) -> None:
    spec = load(PLANNED)
    model = spec.model("m")
    assert model.pools == {
        Role.PREFILL: PoolSpec(Role.PREFILL, AUTO, Device.GPU, AUTO, AUTO, gpu=("H100-80GB",)),
        Role.DECODE: PoolSpec(Role.DECODE, 2, Device.GPU, AUTO, gpu=("A100-80GB", "H200")),
    }
    assert (model.slo, model.load) == (SloSpec(500, 40), LoadSpec(20, 2000, 300, 0.5))
    assert spec.open
    assert config.loads(config.dumps(spec)) == spec


def test_one_target_is_enough_and_no_prefix_hit_is_none(load: Callable[[str], ClusterSpec]) -> None:
    model = load(planned("ttft_ms: 500, ", "").replace(", prefix_hit: 0.5", "")).model("m")
    assert (model.slo, model.load) == (SloSpec(None, 40), LoadSpec(20, 2000, 300, 0))


def test_a_cut_is_chosen_without_a_load(load: Callable[[str], ClusterSpec]) -> None:
    pool = load(served("tensor_parallel: auto, pipeline_parallel: auto")).model("m").pools[Role.SERVE]
    assert pool == PoolSpec(Role.SERVE, 1, Device.CPU, AUTO, AUTO)


@pytest.mark.parametrize("share", [0.0001, 0.25, 1])
def test_a_share_of_one_gpu(load: Callable[[str], ClusterSpec], share: float) -> None:
    pool = load(served(f"device: gpu, share: {share}")).model("m").pools[Role.SERVE]
    assert pool == PoolSpec(Role.SERVE, device=Device.GPU, share=share)


def test_a_mock_may_book_a_share_of_a_gpu(load: Callable[[str], ClusterSpec]) -> None:
    pool = load(served("backend: mock, device: gpu, share: 0.5")).model("m").pools[Role.SERVE]
    assert pool == PoolSpec(Role.SERVE, device=Device.GPU, backend=Backend.MOCK, share=0.5)


# Each: what stands in the pool, and what the refusal has to say.
POOLS = {
    "auto in other words": ("replicas: automatic", 'serve.replicas: found "automatic", allowed: a whole number from 1'),
    "auto for a device": ("device: auto", 'serve.device: found "auto", allowed: cpu or gpu'),
    "replicas without a load": (
        "replicas: auto",
        'serve.replicas: found "auto", allowed: a whole number in a model without load (or give the model a load: {re',
    ),
    "a mock's replicas": (
        "backend: mock, replicas: auto",
        'serve.replicas: found "auto", allowed: a whole number with backend mock',
    ),
    "a mock's cut": (
        "tensor_parallel: auto, backend: mock",
        'tensor_parallel: found "auto", allowed: a whole number with backend mock',
    ),
    "a mock's wrong number": ("backend: mock, replicas: 0", "serve.replicas: found 0, allowed: a whole number from 1"),
    "a mock's GPU": ("backend: mock, gpu: L4", 'serve.gpu: found "L4", allowed: no gpu with backend mock'),
    "a GPU on a CPU": (
        "device: cpu, gpu: [L4, H200]",
        'serve.device: found "cpu", allowed: gpu, or no device (the pool names GPUs to run on: L4, H200)',
    ),
    "a GPU of no name": ("gpu: ' '", 'serve.gpu: found " ", allowed: the name of a kind of GPU'),
    "no GPU": ("gpu: ", "serve.gpu: found nothing, allowed: the name of a kind of GPU"),
    "a GPU as a number": ("gpu: 4090", "found 4090, allowed: the name of a kind of GPU, such as H100-80GB, or a list"),
    "an empty list of GPUs": ("gpu: []", "serve.gpu: found an empty list, allowed: the name"),
    "a nameless GPU in a list": ("gpu: [L4, '']", 'serve.gpu[1]: found "", allowed: the name of a kind of GPU'),
    "a GPU twice": ("gpu: [L4, L4]", 'serve.gpu[1]: found "L4", allowed: each kind of GPU once'),
    "no share": ("device: gpu, share: 0", "serve.share: found 0, allowed: a part of one GPU, from 0.0001 to 1"),
    "less than Ray can count": ("device: gpu, share: 0.00009", "found 9e-05, allowed: a part of one GPU, from 0.0001"),
    "more than a GPU": ("device: gpu, share: 1.01", "found 1.01, allowed: a part of one GPU, from 0.0001 to 1"),
    "a share that is no number": ("device: gpu, share: .nan", "serve.share: found nan, allowed: a part"),
    "a share in words": ("device: gpu, share: half", 'serve.share: found "half", allowed: a part'),
    "a truth as a share": ("device: gpu, share: true", "serve.share: found true, allowed: a part"),
    "a share of a CPU": ("share: 0.5", "found 0.5, allowed: 1 with device cpu (only a GPU is shared out: write device"),
    "a share of several GPUs": (
        "gpu: L4, share: 0.5, tensor_parallel: 2, pipeline_parallel: 3",
        "serve.share: found 0.5 with tensor_parallel 2 and pipeline_parallel 3, which are 6 GPUs, allowed: 1, or",
    ),
    "a share of nobody knows how many": (
        "gpu: L4, share: 0.5, tensor_parallel: auto",
        "serve.share: found 0.5 with tensor_parallel auto and pipeline_parallel 1, allowed: 1, or a part of one GPU",
    ),
}


@pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)
def test_a_pool_that_can_t_be_planned_is_refused(refusal: Callable[[str], str], case: tuple[str, str]) -> None:
    pool, told = case
    message = refusal(served(pool))
    assert message.startswith("cluster.yaml:6: models[0].pools.serve.")
    assert told in message


# Each: what is replaced in the good configuration, by what, and what the refusal has to say.
TARGETS = {
    "no time": ("ttft_ms: 500", "ttft_ms: 0", "5: models[0].slo.ttft_ms: found 0, allowed: a number of milliseconds"),
    "time that runs back": (
        "itl_ms: 40",
        "itl_ms: -1",
        "slo.itl_ms: found -1, allowed: a number of milliseconds above",
    ),
    "time in words": (
        "itl_ms: 40",
        "itl_ms: 40ms",
        'slo.itl_ms: found "40ms", allowed: a number of milliseconds above',
    ),
    "time without end": (
        "itl_ms: 40",
        "itl_ms: .inf",
        "slo.itl_ms: found inf, allowed: a number of milliseconds above",
    ),
    "no target": ("{ttft_ms: 500, itl_ms: 40}", "{}", "5: models[0].slo: found no target, allowed: ttft_ms or itl_ms"),
    "a target of another name": ("itl_ms: 40", "itl: 40", "slo.itl: unknown key 'itl', allowed: ttft_ms, itl_ms"),
    "no requests": ("second: 20", "second: 0", "6: models[0].load.requests_per_second: found 0, allowed: a number of"),
    "requests beyond numbers": ("second: 20", f"second: {10**400}", "requests_per_second: found 1000"),
    "no prompt": (
        "prompt_tokens: 2000",
        "prompt_tokens: 0",
        "load.prompt_tokens: found 0, allowed: a whole number from",
    ),
    "half a token": ("output_tokens: 300", "output_tokens: 0.5", "load.output_tokens: found 0.5, allowed: a whole"),
    "more hits than tokens": ("hit: 0.5", "hit: 1.1", "load.prefix_hit: found 1.1, allowed: a number from 0 to 1"),
    "fewer hits than none": ("hit: 0.5", "hit: -0.1", "load.prefix_hit: found -0.1, allowed: a number from 0 to 1"),
    "half a load": (
        "prompt_tokens: 2000, output_tokens: 300, ",
        "",
        "6: models[0].load: found no prompt_tokens, no output_tokens, allowed: requests_per_second, prompt_tokens, out",
    ),
}


@pytest.mark.parametrize("case", TARGETS.values(), ids=TARGETS)
def test_a_target_or_a_load_that_can_t_be_is_refused(refusal: Callable[[str], str], case: tuple[str, str, str]) -> None:
    old, new, told = case
    assert told in refusal(planned(old, new))


@pytest.mark.parametrize("name", ["tensor_parallel", "pipeline_parallel"])
def test_what_is_open_in_one_half_does_not_clash_with_the_other(load: Callable[[str], ClusterSpec], name: str) -> None:
    for prefill, decode in (("auto", "3"), ("3", "auto")):
        pools = f"prefill: {{{name}: {prefill}}}\n      decode: {{{name}: {decode}}}"
        load(SERVE.replace("serve: {POOL}", pools))


def test_a_spec_without_auto_is_taken_as_it_is(load: Callable[[str], ClusterSpec]) -> None:
    spec = load(served("gpu: L4, share: 0.5"))
    assert config.closed(spec) is spec


def test_whoever_needs_numbers_is_told_all_that_is_open_and_where(load: Callable[[str], ClusterSpec]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.closed(load(PLANNED), "cluster.yaml")
    assert str(caught.value) == (
        "cluster.yaml: models[0].pools.prefill.replicas, models[0].pools.prefill.tensor_parallel, "
        "models[0].pools.prefill.pipeline_parallel, models[0].pools.decode.tensor_parallel are still auto, "
        "and have to be numbers here (write a number for each)"
    )
    with pytest.raises(
        ConfigError, match=r"^models\[0\]\.pools\.serve\.tensor_parallel is still auto, and has to be a"
    ):
        config.closed(load(served("tensor_parallel: auto")))
