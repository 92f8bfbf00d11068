"""What is bought for a load: the cheapest that does it, no cheaper for harder goals, and told in numbers."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from orchestrator.core.planning.choices import Choice, NoChoice, Stock
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.roofline import prompt_bytes
from orchestrator.core.planning.serving import MOST_BUSY
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.spec import Device, LoadSpec, PoolSpec, Role, SloSpec
from tests.planning import models
from tests.planning.plans import (
    ANYTHING,
    BOTH,
    CATALOGUE,
    CPU,
    LOAD,
    SERVE,
    SHORT,
    chosen,
    loser,
    outcome,
    pool,
    stock,
)


class TestWhatIsBought:
    def test_70b_takes_four_of_80_gb_and_two_lose_by_numbers(self) -> None:
        choice = chosen(models.LLAMA_3_70B, SERVE, there=[stock("H100")])
        assert (choice.pools[0].tensor_parallel, choice.misses) == (4, ())
        one = chosen(models.LLAMA_3_70B, SERVE, LoadSpec(1, 2000, 300), SloSpec(1000, 30), there=[stock("H100")])
        assert one.pools[0].tensor_parallel == 4
        assert "ms between tokens over 30 ms, even without load" in loser(one, "H100-80GB", 2).why

    def test_what_does_not_fit_says_what_would(self) -> None:
        one = pool(Role.SERVE, tensor_parallel=1, pipeline_parallel=1)

        def reason(there: Stock, only: PoolSpec = one) -> str:
            found = outcome(models.LLAMA_3_70B, [only], None, None, [there])
            assert isinstance(found, NoChoice)
            return str(found)

        assert reason(stock("H100", 8)).endswith("; it would fit with tensor_parallel: 2, or with quantization: fp8")
        assert reason(stock("H100", 1)).endswith("; it would fit with quantization: fp8")
        assert reason(stock("L4", 1)).endswith("to compute with)")  # nothing would
        assert reason(stock("L4", *[2] * 8)).endswith("; it would fit with pipeline_parallel: 9")

    def test_what_does_not_fit_says_so_in_gigabytes(self) -> None:
        four = pool(Role.SERVE, tensor_parallel=4, pipeline_parallel=1)
        choice = chosen(models.LLAMA_3_70B, [four], there=[stock("H100"), stock("A10G")])
        assert loser(choice, "A10G").why.startswith("weights need 35.3 GB a device, A10G has ")

    def test_what_vllm_would_not_start_on_is_no_way(self) -> None:
        there = [stock("T4"), stock("H100")]
        choice = chosen(models.SMOLLM2_135M, SERVE, LoadSpec(1, 200, 50), None, there)
        assert choice.pools[0].device.name == "H100-80GB"
        assert "T4 has no units for bfloat16" in loser(choice, "T4").why
        half = replace(SHORT, dtype=Precision.FP16)
        assert chosen(models.SMOLLM2_135M, SERVE, LoadSpec(1, 200, 50), None, there, half).pools[0].device.name == "T4"

    def test_deepseek_v3_takes_a_node_of_h200_or_two_of_h100(self) -> None:
        long = Settings(max_model_len=16_384)
        one = chosen(models.DEEPSEEK_V3, SERVE, None, None, [stock("H200")], long).pools[0]
        two = chosen(models.DEEPSEEK_V3, SERVE, None, None, [stock("H100")], long).pools[0]
        assert (one.tensor_parallel, one.pipeline_parallel) == (8, 1)
        assert (two.tensor_parallel, two.pipeline_parallel) == (8, 2)

    def test_a_small_model_with_little_to_do_runs_on_a_small_device(self) -> None:
        choice = chosen(models.QWEN25_7B, SERVE, LoadSpec(0.2, 500, 100), None, [stock("L4"), stock("H100")])
        assert choice.pools[0].device.name == "L4"
        assert loser(choice, "H100-80GB").why == "8.55x the cost, $6.88 an hour over $0.81"

    def test_halves_run_on_what_suits_them(self) -> None:
        plain = CATALOGUE.find("A100-80GB")
        compute = replace(plain, name="compute", flops={Precision.BF16: 1e15}, memory_bandwidth=1e12, aliases=())
        memory = replace(plain, name="memory", flops={Precision.BF16: 1e14}, memory_bandwidth=6e12, aliases=())
        choice = chosen(models.LLAMA_3_8B, load=replace(LOAD, prefix_hit=0.0), there=[Stock(compute), Stock(memory)])
        assert choice.pool(Role.PREFILL).device is compute
        assert choice.pool(Role.DECODE).device is memory

    def test_halves_are_cheaper_on_two_kinds_than_on_either(self) -> None:
        there = [stock("L40S"), stock("H200")]
        both = chosen(models.LLAMA_3_8B, there=there)
        assert [each.device.name for each in both.pools] == ["L40S", "H200"]
        assert all(both.usd_per_hour < chosen(models.LLAMA_3_8B, there=[each]).usd_per_hour for each in there)

    def test_halves_have_devices_of_one_maker(self) -> None:
        choice = chosen(models.LLAMA_3_8B, there=[stock("L40S"), stock("MI300X")])
        assert len({each.device.maker for each in choice.pools}) == 1
        other = {"L40S": "MI300X", "MI300X": "L40S"}[choice.pools[0].device.name]
        assert f"with decode on {other}" in loser(choice, other, role=Role.PREFILL).why

    def test_without_a_load_one_replica_that_fits(self) -> None:
        choice = chosen(models.LLAMA_3_8B, BOTH, None, None)
        assert [each.replicas for each in choice.pools] == [1, 1]
        assert choice.assumed
        assert choice.requests_per_second == choice.most_requests_per_second > 0

    def test_without_a_load_goals_are_for_a_single_request(self) -> None:
        slow, fast = (chosen(models.LLAMA_3_8B, SERVE, None, SloSpec(itl_ms=itl)) for itl in (100, 8))
        assert (slow.pools[0].device.name, slow.itl_ms) == ("L4", pytest.approx(68.8, rel=0.1))
        assert fast.itl_ms is not None
        assert fast.itl_ms <= 8
        assert fast.usd_per_hour > slow.usd_per_hour

    def test_without_goals_what_keeps_up(self) -> None:
        choice = chosen(models.LLAMA_3_8B, BOTH, replace(LOAD, requests_per_second=100), None)
        assert all(each.busy <= MOST_BUSY for each in choice.pools)
        assert choice.most_requests_per_second >= 100

    def test_a_cpu_pool(self) -> None:
        wanted = pool(Role.SERVE, device=Device.CPU)
        choice = chosen(models.SMOLLM2_135M, [wanted], LoadSpec(0.1, 200, 50), None, [Stock(CPU), *ANYTHING])
        assert (choice.pools[0].device, choice.pools[0].replicas) == (CPU, 1)
        assert choice.itl_ms is not None
        assert 11 < choice.itl_ms < 60

    def test_a_share_costs_its_share(self) -> None:
        whole, part = (
            chosen(models.SMOLLM2_135M, [pool(Role.SERVE, share=share)], LoadSpec(1, 200, 50), None, [stock("L4")])
            for share in (1.0, 0.25)
        )
        assert part.usd_per_hour == whole.usd_per_hour / 4
        assert part.pools[0].fit.device.total < whole.pools[0].fit.device.total / 3

    def test_the_whole_catalogue_takes_less_than_a_second(self) -> None:
        start = time.process_time()
        chosen(models.DEEPSEEK_V2_LITE)
        assert time.process_time() - start < 1.0


class TestWhatIsFixed:
    def test_counts_of_the_spec_stay(self) -> None:
        pools = [pool(Role.PREFILL, replicas=3, tensor_parallel=2), pool(Role.DECODE, pipeline_parallel=2)]
        choice = chosen(models.LLAMA_3_8B, pools)
        prefill, decode = choice.pools
        assert (prefill.replicas, prefill.tensor_parallel) == (3, 2)
        assert decode.pipeline_parallel == 2

    def test_too_few_are_told_in_numbers(self) -> None:
        fixed = pool(Role.SERVE, replicas=1, tensor_parallel=1, pipeline_parallel=1, gpu=("L4",))
        choice = chosen(models.LLAMA_3_8B, [fixed])
        assert choice.misses[0].startswith("20 requests/s are 4")
        assert "times what 1 serve replica can do" in choice.misses[0]
        assert choice.ttft_ms is None
        assert choice.requests_per_second < 1

    def test_a_goal_that_nothing_meets_gives_the_nearest_and_says_by_how_much(self) -> None:
        choice = chosen(models.LLAMA_3_70B, SERVE, LOAD, SloSpec(itl_ms=2))
        assert choice.pools[0].device.name == "B200"
        assert choice.misses == (f"{choice.itl_ms:.3g} ms between tokens over 2 ms",)
        assert "even without load" in loser(choice, "L4").why

    def test_kinds_of_the_spec_by_any_of_their_names(self) -> None:
        choice = chosen(models.LLAMA_3_8B, [pool(Role.SERVE, gpu=("nvidia-a100-sxm4-80gb", "H100"))])
        assert choice.pools[0].device.name in ("A100-80GB", "H100-80GB")
        assert {each.device for each in choice.losers} <= {"A100-80GB", "H100-80GB"}

    def test_a_kind_that_is_not_there(self) -> None:
        found = outcome(models.LLAMA_3_8B, [pool(Role.SERVE, gpu=("H100",))], there=[stock("L4", 8)])
        assert isinstance(found, NoChoice)
        assert str(found) == "the serve pool needs H100, there is L4"

    def test_requests_that_are_too_long_for_the_model(self) -> None:
        found = outcome(models.LLAMA_3_8B, SERVE, LoadSpec(1, 8000, 300), there=[stock("H100")])
        assert isinstance(found, NoChoice)
        assert "requests of the load have 8300 tokens, max_model_len is 8192" in str(found)

    def test_a_cut_that_can_not_be_made(self) -> None:
        found = outcome(models.LLAMA_3_70B, [pool(Role.SERVE, tensor_parallel=7)], there=[stock("H100")])
        assert isinstance(found, NoChoice)
        assert "64 attention heads can't be divided by TP=7" in str(found)


class TestHandingOver:
    """The halves of a plan are halves that ``segue up`` takes."""

    def test_both_have_as_many_stages(self) -> None:
        there = [stock("A100-80GB", *[8] * 8)]
        choice = chosen(models.LLAMA_31_405B, BOTH, LoadSpec(2, 2000, 300), None, there)
        assert {each.pipeline_parallel for each in choice.pools} == {2}
        assert choice.misses == ()

    def test_stages_that_are_open_are_those_of_the_other_half_however_narrow(self) -> None:
        halves = [pool(Role.PREFILL, pipeline_parallel=2, tensor_parallel=1), pool(Role.DECODE)]
        for pools in (halves, [replace(halves[0], role=Role.DECODE), replace(halves[1], role=Role.PREFILL)]):
            choice = chosen(models.LLAMA_3_8B, pools, None, None, [stock("L4", 8, 8)])
            assert [(each.tensor_parallel, each.pipeline_parallel) for each in choice.pools] == [(1, 2), (1, 2)]

    def test_a_width_that_is_open_goes_with_one_that_is_no_power_of_two(self) -> None:
        sixths = {"num_attention_heads": 48, "num_key_value_heads": 6, "head_dim": 128, "intermediate_size": 27648}
        pools = [pool(Role.PREFILL, tensor_parallel=6), pool(Role.DECODE)]
        choice = chosen(models.LLAMA_3_70B | sixths, pools, None, None, [stock("A100-40GB", 8, 8)])
        assert choice.pool(Role.DECODE).tensor_parallel == 6

    @pytest.mark.parametrize(
        ("prefill", "decode", "words"),
        [
            ({"tensor_parallel": 4}, {"tensor_parallel": 6}, "tensor_parallel 4 in prefill and 6 in decode"),
            ({"pipeline_parallel": 2}, {"pipeline_parallel": 3}, "pipeline_parallel 2 in prefill and 3 in decode"),
            ({"gpu": ("H100",)}, {"gpu": ("MI300X",)}, "devices by NVIDIA in prefill and AMD in decode"),
            ({"device": Device.CPU}, {}, "device cpu in prefill and gpu in decode"),
        ],
    )
    def test_halves_that_can_not_are_told_by_what(
        self, prefill: dict[str, object], decode: dict[str, object], words: str
    ) -> None:
        pools = [pool(Role.PREFILL, **prefill), pool(Role.DECODE, **decode)]
        wanted = Settings(max_model_len=1024, dtype=Precision.FP32)
        found = outcome(models.GPT2, pools, None, None, [Stock(CPU), *ANYTHING], wanted)
        assert isinstance(found, NoChoice)
        assert str(found) == f"{words} can't hand KV over"


class TestInventories:
    def test_no_more_than_there_is(self) -> None:
        choice = chosen(models.LLAMA_3_8B, BOTH, replace(LOAD, requests_per_second=100), there=[stock("H100", 8, 8)])
        assert choice.misses == ()
        assert sum(each.replicas * each.tensor_parallel * each.pipeline_parallel for each in choice.pools) <= 16

    def test_a_load_beyond_the_inventory_is_told_in_numbers(self) -> None:
        choice = chosen(models.LLAMA_3_8B, BOTH, replace(LOAD, requests_per_second=1000), there=[stock("H100", 8)])
        assert any(miss.startswith("1000 requests/s are ") for miss in choice.misses)
        assert sum(each.replicas * each.tensor_parallel for each in choice.pools) == 8

    def test_a_load_that_is_beyond_all_measure_is_told_in_numbers_too(self) -> None:
        choice = chosen(models.LLAMA_3_8B, BOTH, replace(LOAD, requests_per_second=1e6), there=[stock("H100", 8)])
        assert any(miss.startswith("1e+06 requests/s are ") for miss in choice.misses)

    def test_parts_are_told_as_parts(self) -> None:
        quarter = pool(Role.SERVE, share=0.3, replicas=4)
        found = outcome(models.SMOLLM2_135M, [quarter], None, None, [stock("L4", 1)], Settings())
        assert str(found) == "the serve pool takes at least 4 x 0.3 L4; free are 1 L4"
        shared = Stock(CATALOGUE.find("L4"), (1,), (2000, 4000))
        found = outcome(models.SMOLLM2_135M, [replace(quarter, replicas=5)], None, None, [shared], Settings())
        assert str(found) == "the serve pool takes at least 5 x 0.3 L4; free are 1 L4, and 0.4 at most of 2 more"

    def test_parts_of_two_sizes_fill_devices_together(self) -> None:
        pools = [pool(Role.PREFILL, share=0.4, replicas=2), pool(Role.DECODE, share=0.3, replicas=4)]
        assert isinstance(outcome(models.SMOLLM2_135M, pools, None, None, [stock("L4", 2)], Settings()), Choice)
        assert isinstance(outcome(models.SMOLLM2_135M, pools, None, None, [stock("L4", 1)], Settings()), NoChoice)

    def test_a_stage_stays_in_one_node(self) -> None:
        there = [stock("H100", 4, 4, 4, 4)]
        choice = chosen(models.DEEPSEEK_V3, SERVE, None, None, there, Settings(max_model_len=8192)).pools[0]
        assert (choice.tensor_parallel, choice.pipeline_parallel) == (4, 3)

    def test_as_many_stages_as_it_takes(self) -> None:
        only = chosen(models.LLAMA_3_70B, SERVE, None, None, [stock("L4", *[1] * 12)]).pools[0]
        assert (only.tensor_parallel, only.pipeline_parallel) == (1, 9)
        short = outcome(models.LLAMA_31_405B, SERVE, None, None, [stock("L4", *[1] * 12)])
        assert isinstance(short, NoChoice)
        assert "PP=12: weights need" in str(short)

    def test_too_few_devices_for_one_replica(self) -> None:
        found = outcome(models.LLAMA_3_70B, [pool(Role.SERVE, tensor_parallel=4)], there=[stock("H100", 2, 2)])
        assert isinstance(found, NoChoice)
        assert "4 devices of one node are needed, no node has more than 2 H100-80GB free" in str(found)

    def test_both_pools_share_what_there_is(self) -> None:
        pools = [pool(role, replicas=2, tensor_parallel=4, pipeline_parallel=1) for role in BOTH]
        enough = outcome(models.LLAMA_3_8B, pools, there=[stock("H100", 8, 8)])
        short = outcome(models.LLAMA_3_8B, pools, there=[stock("H100", 8, 4, 2, 2)])
        assert isinstance(enough, Choice)
        assert isinstance(short, NoChoice)
        assert str(short) == (
            "the prefill pool takes at least 2 x 4 H100-80GB, the decode pool takes at least 2 x 4 H100-80GB; "
            "free are 16 H100-80GB (8 + 4 + 2 x 2)"
        )

    def test_none_is_free(self) -> None:
        found = outcome(models.LLAMA_3_8B, SERVE, there=[Stock(CATALOGUE.find("H100"), (0, 0))])
        assert isinstance(found, NoChoice)
        assert "no H100-80GB is free" in str(found)


class TestNumbers:
    def test_money_and_energy_of_a_million_tokens(self) -> None:
        choice = chosen(models.LLAMA_3_8B)
        millions = 20 * (2000 + 300) * 3600 / 1e6
        assert choice.usd_per_hour == sum(
            each.replicas * each.tensor_parallel * each.pipeline_parallel * each.device.usd_per_hour
            for each in choice.pools
        )
        assert choice.usd_per_million_tokens == pytest.approx(choice.usd_per_hour / millions)
        assert choice.wh_per_million_tokens == pytest.approx(choice.watts / millions)

    def test_the_first_token_waits_for_prompt_transfer_and_step(self) -> None:
        choice = chosen(models.LLAMA_3_8B)
        assert choice.ttft_ms == pytest.approx(sum(each.ttft_ms or 0 for each in choice.pools))
        sent = prompt_bytes(shape_of(models.LLAMA_3_8B), 2000, SHORT)
        decode = choice.pool(Role.DECODE)
        rate = min(each.device.network_bandwidth * each.tensor_parallel for each in choice.pools)
        assert decode.ttft_ms is not None
        assert decode.ttft_ms > 1e3 * sent / rate + (decode.itl_ms or 0)

    def test_runners_up_are_bounded_and_each_kind_has_one(self) -> None:
        choice = chosen(models.LLAMA_3_8B)
        for each in choice.pools:
            own = [other for other in choice.losers if other.role is each.role]
            assert len(own) <= 12
            assert {other.device for other in own} >= {kind.name for kind in CATALOGUE} - {each.device.name}
        dearer = [other for other in choice.losers if other.usd_per_hour is not None]
        assert dearer
        assert all((other.usd_per_hour or 0) >= choice.usd_per_hour for other in dearer)

    def test_prompts_slow_decoding_down_where_one_engine_does_both(self) -> None:
        fixed = {"replicas": 1, "tensor_parallel": 1, "pipeline_parallel": 1, "gpu": ("H100",)}
        pools = [pool(Role.SERVE, **fixed)]
        light, heavy = (
            chosen(models.LLAMA_3_8B, pools, LoadSpec(3, prompt, 200), None).itl_ms or 0 for prompt in (100, 6000)
        )
        apart = [pool(role, **fixed) for role in BOTH]
        beside, alone = (
            chosen(models.LLAMA_3_8B, apart, LoadSpec(3, prompt, 200), None).itl_ms or 0 for prompt in (100, 6000)
        )
        assert heavy > 2 * light
        assert alone < 1.3 * beside

    @pytest.mark.parametrize("ttft", range(140, 300, 10))
    def test_a_slow_network_leaves_prompts_less_time(self, ttft: int) -> None:
        slow = Stock(replace(CATALOGUE.find("H100"), network_bandwidth=10e9))
        pools = [pool(role, tensor_parallel=1, pipeline_parallel=1) for role in BOTH]
        choice = chosen(models.LLAMA_3_8B, pools, LoadSpec(20, 2000, 100), SloSpec(ttft), [slow])
        assert choice.misses == ()
        assert choice.ttft_ms is not None
        assert choice.ttft_ms <= ttft
