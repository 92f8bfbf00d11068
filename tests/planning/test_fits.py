"""Whether a model fits: as vLLM would find out after minutes, in numbers, and with what would."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.config.cache import CacheConfig
from vllm.config.scheduler import SchedulerConfig

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.cut import Cut, Obstacle
from orchestrator.core.planning.devices import DeviceKind, Precision
from orchestrator.core.planning.fits import Fit, NoFit, fits, predicted
from orchestrator.core.planning.overhead import Reserve
from orchestrator.core.planning.quantization import NAMED
from orchestrator.core.planning.settings import (
    AUTO_LENGTH,
    BATCHED_TOKENS,
    SEQUENCES,
    UTILIZATION,
    Settings,
    settings_of,
)
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.weights import kept_as_stored, stage_copies
from orchestrator.core.spec import Device
from tests.planning import models
from tests.planning.models import PARAMETERS, Config

GIB = 1 << 30


def gpu(name: str, gib: float) -> DeviceKind:
    flops = {Precision.BF16: 1e15}
    return DeviceKind(name, "NVIDIA", Device.GPU, int(gib * GIB), 3e12, flops, 450e9, "NVLink", 50e9, 3.0, 700.0)


L4, A100, H100, H200 = gpu("L4", 22.0), gpu("A100-40GB", 39.38), gpu("H100-80GB", 79.1), gpu("H200", 139.72)
CATALOGUE = (H200, L4, H100, A100)
CPU = replace(gpu("CPU", 32), kind=Device.CPU, maker="")
SHAPES = {name: shape_of(config) for name, (config, _) in PARAMETERS.items()}
CUTS = st.builds(Cut, st.sampled_from((1, 2, 4, 8)), st.integers(1, 4), st.just(1), st.booleans())
SETTINGS = st.builds(
    Settings,
    quantization=st.sampled_from((None, *NAMED.values())),
    kv_cache_dtype=st.sampled_from((None, Precision.FP8)),
    max_model_len=st.sampled_from((AUTO_LENGTH, 512, 2048)),
    enforce_eager=st.booleans(),
    enable_prefix_caching=st.booleans(),
    hybrid_cache=st.booleans(),
)


def it_fits(config: Config, cut: Cut, device: DeviceKind, wanted: Settings | None = None) -> Fit:
    outcome = fits(shape_of(config), cut, device, wanted)
    assert isinstance(outcome, Fit), str(outcome)
    return outcome


def it_does_not(config: Config, cut: Cut, device: DeviceKind, wanted: Settings | None = None) -> NoFit:
    outcome = fits(shape_of(config), cut, device, wanted, others=CATALOGUE)
    assert isinstance(outcome, NoFit)
    return outcome


class TestWhatFits:
    def test_llama_3_8b_on_an_h100(self) -> None:
        fit = it_fits(models.LLAMA_3_8B, Cut(), H100)
        assert fit.weight_bytes == 16_060_522_496
        assert fit.kv_bytes_per_token == 131_072
        assert fit.kv_tokens == fit.kv_blocks * 16
        assert fit.device.kv == fit.kv_tokens * 131_072
        assert fit.sequences == (fit.kv_blocks - 1) // 512

    @pytest.mark.parametrize(("ways", "gib"), [(1, 53.29), (2, 58.97)])
    def test_vllms_own_log_of_llama_3_8b_on_an_h100(self, ways: int, gib: float) -> None:
        """What it had for KV in December 2024 (its pull request 10511): weights 14.96 GiB, 1.26 for a step, others."""
        logged = Settings(gpu_memory_utilization=0.9, max_num_seqs=256)
        fit = it_fits(models.LLAMA_3_8B, Cut(ways), gpu("H100", 79.22), logged)
        assert fit.weight_bytes / GIB == pytest.approx(14.96 / ways, abs=0.01)
        assert fit.device.kv / GIB == pytest.approx(gib, rel=0.03)

    @pytest.mark.parametrize(
        ("config", "device", "least"),
        [
            (models.LLAMA_3_8B, L4, 1),
            (models.LLAMA_3_70B, H100, 2),
            (models.LLAMA_3_70B, L4, 8),
            (models.MIXTRAL_8X7B, H100, 2),
            (models.GPT_OSS_20B, L4, 1),
            (models.DEEPSEEK_V3, H200, 8),
            (models.LLAMA_31_405B | {"quantization_config": {"quant_method": "fp8"}}, H100, 8),
        ],
    )
    def test_the_smallest_number_of_devices(self, config: Config, device: DeviceKind, least: int) -> None:
        shape, wanted = shape_of(config), Settings(max_model_len=4096)
        fitting = [ways for ways in (1, 2, 4, 8) if isinstance(fits(shape, Cut(ways), device, wanted), Fit)]
        assert fitting[0] == least

    def test_more_sequences_of_a_shorter_context(self) -> None:
        long, short = (it_fits(models.LLAMA_3_8B, Cut(), L4, Settings(context=each)) for each in (8192, 1024))
        assert (long.sequences, short.sequences) == ((long.kv_blocks - 1) // 512, (long.kv_blocks - 1) // 64)

    def test_the_stage_with_the_fewest_blocks_decides(self) -> None:
        # The last of three stages has the head: as many layers, and more weights.
        fit = it_fits(models.LLAMA_3_8B | {"num_hidden_layers": 33}, Cut(1, 3), L4)
        assert len({each.kv for each in fit.stages}) == 1
        assert fit.stages[2].weights > fit.stages[1].weights
        assert fit.stages[1].weights < fit.stages[0].weights

    def test_fp8_of_the_cache_doubles_it(self) -> None:
        plain = it_fits(models.LLAMA_3_8B, Cut(), H100)
        narrow = it_fits(models.LLAMA_3_8B, Cut(), H100, Settings(kv_cache_dtype=Precision.FP8))
        assert narrow.kv_tokens == pytest.approx(2 * plain.kv_tokens, abs=32)

    def test_the_longest_context_that_fits(self) -> None:
        config = models.LLAMA_3_8B | {"max_position_embeddings": 131072}
        found = it_fits(config, Cut(), L4, Settings(max_model_len=AUTO_LENGTH))
        assert 0 < found.max_model_len < 131072
        it_fits(config, Cut(), L4, Settings(max_model_len=found.max_model_len))
        it_does_not(config, Cut(), L4, Settings(max_model_len=found.max_model_len + 1))

    def test_a_part_of_a_device(self) -> None:
        whole, half = (it_fits(models.SMOLLM2_135M, Cut(), L4, Settings(share=each)) for each in (1.0, 0.5))
        assert 0.45 < half.device.total / whole.device.total < 0.55

    def test_a_checkpoint_that_is_larger_leaves_less(self) -> None:
        plain = it_fits(models.LLAMA_3_8B, Cut(), H100)
        large = it_fits(models.LLAMA_3_8B, Cut(), H100, Settings(stored_bytes=20_000_000_000))
        assert large.weight_bytes == pytest.approx(20_000_000_000, rel=1e-6)
        assert large.kv_tokens < plain.kv_tokens
        assert "its own total is taken" in large.notes[0]

    def test_an_unknown_family_fits_with_a_note(self) -> None:
        assert "not known" in it_fits(models.LLAMA_3_8B | {"model_type": "brand_new"}, Cut(), H100).notes[0]

    def test_an_encoder_needs_no_cache(self) -> None:
        fit = it_fits(models.BERT_BASE, Cut(), L4)
        assert (fit.kv_blocks, fit.kv_tokens, fit.device.kv, fit.sequences) == (0, 0, 0, SEQUENCES)

    def test_a_step_and_the_driver_are_all_else(self) -> None:
        def other(tokens: int, **reserve: int) -> int:
            wanted = Settings(max_num_batched_tokens=tokens, max_num_seqs=1, reserve=Reserve(**reserve))
            return it_fits(models.LLAMA_3_8B, Cut(), H100, wanted).device.other

        # The residual and a layer's input, and the three parts of its feed-forward layer.
        assert other(16384) - other(8192) == 8192 * (2 * 4096 + 3 * 14336) * 2
        assert other(2048, context=GIB) - other(2048, context=0) == GIB

    def test_whole_experts_are_as_wide_on_many_devices(self) -> None:
        wanted = Settings(max_num_batched_tokens=16384, max_num_seqs=1)
        shared, whole = (it_fits(models.MIXTRAL_8X7B, Cut(8, expert=each), H100, wanted) for each in (False, True))
        assert shared.weight_bytes == whole.weight_bytes
        assert whole.device.other > shared.device.other

    def test_a_cache_as_the_checkpoint_wants_it(self) -> None:
        quantized = {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
        config = models.LLAMA_3_8B | {"quantization_config": quantized}
        assert it_fits(config, Cut(), H100).kv_bytes_per_token == 65_536
        wanted = Settings(kv_cache_dtype=Precision.BF16)
        assert it_fits(config, Cut(), H100, wanted).kv_bytes_per_token == 131_072

    def test_a_cpu_has_neither_driver_nor_graphs_and_the_vocabulary_three_times(self) -> None:
        none = Reserve(0, 0, 0, 0, 0, 24, 0, 0, 0, 0)
        on_gpu, on_cpu = (
            it_fits(models.SMOLLM2_135M, Cut(), each, Settings(kv_cache_memory_bytes=GIB, block_size=16, reserve=none))
            for each in (H100, CPU)
        )
        ((gpu_stage,), (cpu_stage,)) = on_gpu.stages, on_cpu.stages
        assert on_cpu == replace(on_gpu, stages=on_cpu.stages)
        assert cpu_stage == replace(gpu_stage, other=gpu_stage.other + 2 * 49152 * 576 * 2)
        assert it_fits(models.SMOLLM2_135M, Cut(), CPU).block_size == 128

    @pytest.mark.parametrize(
        ("config", "cut", "copies"),
        [
            # Of a vocabulary of 49152 x 576 in two bytes: tied, so once for each of its two uses, where each is.
            (models.SMOLLM2_135M, Cut(), (2,)),
            (models.SMOLLM2_135M, Cut(3), (2 / 3,)),
            (models.SMOLLM2_135M, Cut(1, 3), (1, 0, 2)),
            (models.SMOLLM2_135M | {"tie_word_embeddings": False}, Cut(1, 2), (1, 1)),
            (models.SMOLLM2_135M | {"tie_word_embeddings": False}, Cut(), (2,)),
        ],
    )
    def test_what_a_cpu_has_twice(self, config: Config, cut: Cut, copies: tuple[float, ...]) -> None:
        shape = shape_of(config)
        vocabulary = 49152 * 576 * 2
        assert stage_copies(shape, cut, kept_as_stored(shape)) == tuple(vocabulary * each for each in copies)

    def test_a_cpus_step_comes_on_top_of_what_vllm_takes(self) -> None:
        """It looks at its process, not at the largest step, before it works out the room for KV."""
        few, many = (
            it_fits(models.SMOLLM2_135M, Cut(), CPU, Settings(max_num_seqs=each, gpu_memory_utilization=0.5))
            for each in (8, 128)
        )
        assert few.kv_tokens == many.kv_tokens
        assert many.device.total - few.device.total > 120 * 49152 * 30
        assert many.device.total > 0.5 * CPU.memory_bytes


class TestWhatDoesNot:
    def test_a_70b_model_on_one_small_gpu(self) -> None:
        outcome = it_does_not(models.LLAMA_3_70B, Cut(), L4)
        assert [reason.obstacle for reason in outcome.reasons] == [Obstacle.WEIGHTS]
        assert "weights need 141.1 GB a device, L4 has " in str(outcome)
        assert "tensor_parallel: 8" in [change.text for change in outcome.changes]

    def test_a_number_of_devices_that_does_not_divide(self) -> None:
        outcome = it_does_not(models.LLAMA_3_70B, Cut(7), H100)
        assert "64 attention heads can't be divided by TP=7" in str(outcome)
        assert [change.text for change in outcome.changes] == ["tensor_parallel: 4", "tensor_parallel: 8"]

    def test_more_stages_than_layers(self) -> None:
        outcome = it_does_not(models.LLAMA_3_70B, Cut(1, 81), H100)
        assert outcome.reasons[0].obstacle is Obstacle.LAYERS
        assert outcome.changes[0].cut == Cut(1, 80)

    def test_a_context_that_has_no_room(self) -> None:
        outcome = it_does_not(models.LLAMA_3_8B | {"max_position_embeddings": 131072}, Cut(), L4)
        assert "one sequence of 131072 tokens needs 17.2 GB of KV a device" in str(outcome)
        texts = [change.text for change in outcome.changes]
        assert texts[0].startswith("max_model_len: ")
        assert "tensor_parallel: 2" in texts
        assert any("instead of L4" in text for text in texts)

    def test_fp8_of_the_cache_where_it_is_enough(self) -> None:
        config = models.LLAMA_3_8B | {"max_position_embeddings": 32768}
        outcome = it_does_not(config, Cut(), replace(L4, memory_bytes=22 * GIB - GIB))
        assert "kv_cache_dtype: fp8" in [change.text for change in outcome.changes]

    def test_fewer_bits_where_no_more_devices_help(self) -> None:
        outcome = it_does_not(models.LLAMA_31_405B | {"max_position_embeddings": 8192}, Cut(8), H100)
        texts = [change.text for change in outcome.changes]
        assert texts == ["quantization: fp8", "H200 instead of H100-80GB", "pipeline_parallel: 2"]

    def test_a_part_of_a_device_for_a_gang(self) -> None:
        outcome = it_does_not(models.SMOLLM2_135M, Cut(3), L4, Settings(share=0.5))
        assert outcome.reasons[0].obstacle is Obstacle.SHARE
        assert outcome.changes[0].text == "a whole device"

    def test_a_context_beyond_the_models_own(self) -> None:
        outcome = it_does_not(models.LLAMA_3_8B, Cut(), H100, Settings(max_model_len=10_000))
        assert "max_model_len 10000 is beyond the model's own 8192 tokens" in str(outcome)
        assert outcome.changes[0].settings.max_model_len == 8192

    def test_more_than_the_driver_leaves(self) -> None:
        outcome = it_does_not(models.SMOLLM2_135M, Cut(), L4, Settings(gpu_memory_utilization=0.99))
        assert outcome.reasons[0].obstacle is Obstacle.RESERVE
        assert outcome.changes[0].settings.gpu_memory_utilization < 0.99

    def test_more_than_a_step_on_a_cpu_leaves(self) -> None:
        outcome = it_does_not(models.SMOLLM2_135M, Cut(), CPU, Settings(gpu_memory_utilization=0.99))
        assert "gpu_memory_utilization 0.99 asks for 34.0 GB, CPU has 33.6 GB beside the 0.81 GB" in str(outcome)
        assert outcome.changes[0].settings.gpu_memory_utilization < 0.99

    def test_a_cache_of_a_size_that_is_too_small_or_too_large(self) -> None:
        small = it_does_not(models.LLAMA_2_7B, Cut(), CPU, Settings(kv_cache_memory_bytes=256 << 20))
        assert small.reasons[0].obstacle is Obstacle.CONTEXT
        assert small.changes[0].settings.kv_cache_memory_bytes == 4 * GIB  # 2 GiB are a sequence without a placeholder
        large = it_does_not(models.LLAMA_2_7B, Cut(), CPU, Settings(kv_cache_memory_bytes=32 * GIB))
        assert large.reasons[0].obstacle is Obstacle.WEIGHTS
        assert "of KV asked for" in str(large)
        assert large.changes[0].settings.kv_cache_memory_bytes == 16 * GIB

    def test_little_of_a_device_is_asked_for(self) -> None:
        outcome = it_does_not(models.LLAMA_3_8B, Cut(), H100, Settings(gpu_memory_utilization=0.1))
        assert outcome.changes[0].text == "gpu_memory_utilization: 0.92"


class TestAlways:
    @given(st.sampled_from(sorted(SHAPES)), CUTS, SETTINGS, st.sampled_from(CATALOGUE))
    @settings(max_examples=200, deadline=None)
    def test_what_fits_is_within_the_device_and_what_does_not_has_reasons_and_changes_that_fit(
        self, name: str, cut: Cut, wanted: Settings, device: DeviceKind
    ) -> None:
        shape = SHAPES[name]
        outcome = fits(shape, cut, device, wanted, others=CATALOGUE)
        if isinstance(outcome, NoFit):
            assert outcome.reasons
            for change in outcome.changes:
                assert fits(shape, change.cut, change.device, change.settings) == change.fit
            return
        assert len(outcome.stages) == cut.pipeline
        for held in outcome.stages:
            assert held.total <= device.memory_bytes
            assert min(held.weights, held.kv, held.other) >= 0
        assert outcome.sequences >= 1

    @given(st.sampled_from(sorted(SHAPES)), CUTS, SETTINGS)
    @settings(max_examples=100, deadline=None)
    def test_more_memory_never_makes_it_not_fit(self, name: str, cut: Cut, wanted: Settings) -> None:
        sizes = (2, 8, 22, 40, 80, 141, 192, 1000)
        outcomes = [fits(SHAPES[name], cut, gpu("a device", gib), wanted) for gib in sizes]
        for less, more in pairwise(outcomes):
            if isinstance(less, Fit):
                assert isinstance(more, Fit)
                assert more.kv_blocks >= less.kv_blocks

    @given(st.sampled_from(sorted(SHAPES)), st.integers(1, 512), st.integers(1, 512))
    @settings(max_examples=100, deadline=None)
    def test_a_longer_context_never_leaves_room_for_more(self, name: str, one: int, other: int) -> None:
        short, long = sorted((one, other))
        wanted = (Settings(quantization=NAMED[Precision.INT4], context=each) for each in (short, long))
        less, more = (fits(SHAPES[name], Cut(8, 2), H200, each) for each in wanted)
        if isinstance(less, Fit):
            assert isinstance(more, Fit)
            assert less.sequences >= more.sequences

    @given(st.sampled_from(sorted(SHAPES)), st.sampled_from(CATALOGUE), SETTINGS)
    @settings(max_examples=100, deadline=None)
    def test_twice_as_many_devices_fit_what_half_of_them_do(
        self, name: str, device: DeviceKind, wanted: Settings
    ) -> None:
        outcomes = [fits(SHAPES[name], Cut(ways), device, wanted) for ways in (1, 2, 4, 8)]
        memory = {Obstacle.WEIGHTS, Obstacle.CONTEXT}
        for fewer, more in pairwise(outcomes):
            if isinstance(fewer, Fit) and isinstance(more, NoFit):
                # Only the second device brings something along, NCCL's buffers.
                assert fewer is outcomes[0] or not {reason.obstacle for reason in more.reasons} & memory


class TestEngineArguments:
    def test_the_defaults_are_those_of_the_installed_vllm(self) -> None:
        assert CacheConfig.gpu_memory_utilization == UTILIZATION
        assert CacheConfig.DEFAULT_BLOCK_SIZE == 16
        assert SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS == BATCHED_TOKENS
        assert SchedulerConfig.DEFAULT_MAX_NUM_SEQS == SEQUENCES

    @pytest.mark.parametrize(
        ("engine", "blocks"),
        [({"dtype": "float32"}, 4096), ({"dtype": "bfloat16"}, 8192), ({}, 8192), ({"block_size": 64}, 4096)],
    )
    def test_a_cache_of_a_given_size_has_as_many_blocks_as_there_is_room_for(self, engine: Any, blocks: int) -> None:
        """A block of SmolLM2: 32 tokens of 30 layers with 3 KV heads of 64, keys and values."""
        size = 8192 * 32 * 30 * 2 * 3 * 64 * 2
        given_size = {"block_size": 32, "kv_cache_memory_bytes": size + 1000, "max_model_len": 2048}
        fit = predicted(models.SMOLLM2_135M, given_size | engine, CPU)
        assert isinstance(fit, Fit)
        assert (fit.kv_blocks, fit.kv_tokens) == (blocks, blocks * fit.block_size)
        assert fit.weight_bytes == 269_030_016 * (2 if engine.get("dtype") == "float32" else 1)

    @pytest.mark.parametrize(
        ("config", "engine", "device", "size"),
        [
            (models.LLAMA_3_8B, {}, H100, 16),
            (models.LLAMA_3_8B, {}, CPU, 128),
            (models.LLAMA_3_8B, {"block_size": 64}, H100, 64),
            (models.DEEPSEEK_V2_LITE, {}, H100, 64),
            (models.DEEPSEEK_V2_LITE, {"block_size": 128}, CPU, 16),
        ],
    )
    def test_tokens_of_a_block(self, config: Config, engine: Config, device: DeviceKind, size: int) -> None:
        rules = settings_of(engine).pool_rules(shape_of(config), Cut(), device.kind)
        assert rules.block_size == size

    @pytest.mark.parametrize(
        ("cut", "device", "batches"), [(Cut(), H100, 2), (Cut(1, 3), H100, 4), (Cut(), CPU, 2), (Cut(1, 3), CPU, 3)]
    )
    def test_batches_that_may_be_under_way_at_once(self, cut: Cut, device: DeviceKind, batches: int) -> None:
        rules = settings_of({"max_num_batched_tokens": 100}).pool_rules(shape_of(models.MISTRAL_7B), cut, device.kind)
        assert rules.in_flight == 100 * batches

    def test_without_prefix_caching_a_sequence_has_one_state(self) -> None:
        with_it, without = (
            predicted(models.JAMBA, {"enable_prefix_caching": each, "max_model_len": 4096}, H200)
            for each in (True, False)
        )
        assert isinstance(with_it, Fit)
        assert isinstance(without, Fit)
        assert without.sequences > with_it.sequences

    @pytest.mark.parametrize(("engine", "size"), [({}, 2), ({"dtype": "auto"}, 2), ({"dtype": "float32"}, 4)])
    def test_a_checkpoint_in_float32_is_loaded_in_half_of_it_unless_told(self, engine: Any, size: int) -> None:
        fit = predicted(models.GPT2, engine, H100)
        assert isinstance(fit, Fit)
        assert fit.weight_bytes == size * (124_439_808 + 47 * 768)  # the vocabulary is filled up

    def test_all_that_memory_follows_from(self) -> None:
        engine = {
            "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "max_model_len": 4096, "max_num_seqs": 7,
            "kv_cache_dtype": "fp8_e4m3", "quantization": "fp8", "gpu_memory_utilization": 0.5, "seed": 3,
        }  # fmt: skip
        fit = predicted(models.LLAMA_3_8B, engine, H100, context=1024)
        assert isinstance(fit, Fit)
        assert (len(fit.stages), fit.max_model_len, fit.context, fit.max_num_seqs) == (2, 4096, 1024, 7)
        assert fit.kv_bytes_per_token == 65_536
        assert fit.weight_bytes < 3e9
        assert fit.device.total < 0.51 * H100.memory_bytes

    @pytest.mark.parametrize(
        "engine",
        [
            {"gpu_memory_utilization": 1.5},
            {"gpu_memory_utilization": "half"},
            {"dtype": "float8"},
            {"kv_cache_dtype": "nvfp4"},
            {"max_model_len": "8k"},
            {"block_size": 0},
        ],
    )
    def test_a_value_that_cannot_be_is_refused_by_name(self, engine: Config) -> None:
        with pytest.raises(ConfigError, match=next(iter(engine))):
            settings_of(engine)
