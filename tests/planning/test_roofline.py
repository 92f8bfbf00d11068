"""How fast a model is on devices: operations and bytes against what papers and data sheets say, not against code."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.planning.cut import Cut, cut_reasons
from orchestrator.core.planning.devices import DeviceKind, Precision
from orchestrator.core.planning.kv import sequence_bytes
from orchestrator.core.planning.quantization import NAMED
from orchestrator.core.planning.roofline import REACHED, Roofline, attended_tokens, prompt_bytes, transfer_seconds
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape import ModelShape
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.weights import active_parameters, stage_weights
from orchestrator.core.planning.work import StageWork, stage_work
from orchestrator.core.spec import Device
from orchestrator.planning.catalogue import builtin
from tests.planning import models
from tests.planning.models import PARAMETERS, Config

CATALOGUE = builtin()
H100, A100, L4, H200 = (CATALOGUE.find(name) for name in ("H100", "A100-80GB", "L4", "H200"))
CPU = DeviceKind("cpu", "", Device.CPU, 24 << 30, 24e9, {Precision.FP32: 1e11}, 12e9, "memory", 1.25e9, 0.1, 10.0)
SHAPES = {name: shape_of(config) for name, (config, _) in PARAMETERS.items()}
GENERATIVE = [shape for shape in SHAPES.values() if shape.cached]
CUTS = st.builds(Cut, *(st.sampled_from(sizes) for sizes in ((1, 2, 4, 8), (1, 2, 4), (1, 2))), st.booleans())
# A device whose rates take no time, so that what is left is everything else.
FREE = replace(H100, memory_bandwidth=1e30, flops={Precision.BF16: 1e30}, link_bandwidth=1e30, network_bandwidth=1e30)


def work_of(config: Config, cut: Cut | None = None) -> tuple[StageWork, ...]:
    shape, wanted = shape_of(config), Settings()
    return stage_work(shape, cut or Cut(), wanted.weights_kept(shape), wanted.cache_kept(shape))


def reached(config: Config, device: DeviceKind, cut: Cut | None = None, wanted: Settings | None = None) -> Roofline:
    return Roofline(shape_of(config), cut or Cut(), device, wanted)


def operations(stage: StageWork) -> float:
    parts = (stage.dense, stage.head, *(routed.all for routed in stage.routed))
    return sum(count for part in parts for _, count in part.operations)


class TestOperations:
    @pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.has_head])
    def test_two_for_each_parameter_that_a_token_passes(self, name: str) -> None:
        shape = SHAPES[name]
        kept, cache = Settings().weights_kept(shape), Settings().cache_kept(shape)
        (stage,) = stage_work(shape, Cut(), kept, cache)
        assert operations(stage) == pytest.approx(2 * active_parameters(shape), rel=1e-3)

    def test_tensor_parallel_devices_share_them(self) -> None:
        (whole,), (half,) = work_of(models.LLAMA_3_8B), work_of(models.LLAMA_3_8B, Cut(2))
        assert operations(half) == pytest.approx(operations(whole) / 2, rel=1e-3)
        assert half.attended[0].prompt == whole.attended[0].prompt / 2

    def test_stages_share_layers_and_only_the_last_has_the_head(self) -> None:
        first, last = work_of(models.LLAMA_3_8B, Cut(1, 2))
        assert first.layers == last.layers == 16
        assert first.head.bytes == 0
        assert last.head.bytes == 128256 * 4096 * 2

    def test_attention_is_four_a_head_dimension_and_token_attended_to(self) -> None:
        (stage,) = work_of(models.LLAMA_3_8B)
        assert [(each.window, each.decoding, each.prompt) for each in stage.attended] == [
            (0, 4 * 32 * 32 * 128, 4 * 32 * 32 * 128)
        ]

    def test_latent_attention_decodes_in_the_latent_space(self) -> None:
        (stage,) = work_of(models.DEEPSEEK_V3)
        (attended,) = stage.attended
        assert attended.decoding == 61 * 2 * 128 * (512 + 64 + 512)
        assert attended.prompt == 61 * 2 * 128 * (128 + 64 + 128)

    @given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 70))
    def test_each_token_attends_to_those_before_it_in_its_window_and_itself(
        self, fresh: int, cached: int, window: int
    ) -> None:
        expected = sum(min(cached + index + 1, window or 10**9) for index in range(fresh))
        assert attended_tokens(fresh, cached, window) == pytest.approx(expected)


class TestBytes:
    @pytest.mark.parametrize("config", [models.LLAMA_3_8B, models.LLAMA_3_70B, models.MIXTRAL_8X7B, models.MISTRAL_7B])
    @pytest.mark.parametrize("cut", [Cut(), Cut(2), Cut(4, 2)], ids=str)
    def test_a_full_step_reads_all_weights_but_the_embedding(self, config: Config, cut: Cut) -> None:
        shape = shape_of(config)
        held = stage_weights(shape, cut, Settings().weights_kept(shape))
        stages = work_of(config, cut)
        read = [stage.dense.bytes + stage.head.bytes + sum(each.all.bytes for each in stage.routed) for stage in stages]
        embedding = shape.vocabulary * shape.hidden * 2 // cut.tensor
        assert read == [held[0] - embedding, *held[1:]]

    def test_experts_that_a_batch_goes_to(self) -> None:
        (stage,) = work_of(models.MIXTRAL_8X7B)
        (routed,) = stage.routed
        assert routed.touched(1) == pytest.approx(2 / 8)
        assert routed.touched(2) == pytest.approx(1 - (6 / 8) ** 2)
        assert routed.touched(64) > 0.999

    def test_a_few_sequences_cost_a_mixture_much_more_than_one(self) -> None:
        mixture, dense = reached(models.MIXTRAL_8X7B, H100, Cut(2)), reached(models.LLAMA_3_70B, H100, Cut(4))
        assert mixture.step(8, 1024) > 2 * mixture.step(1, 1024)
        assert dense.step(8, 1024) < 1.1 * dense.step(1, 1024)

    def test_what_sequences_hold_is_read(self) -> None:
        roofline = reached(models.LLAMA_3_8B, H100)
        more = roofline.step(32, 4096) - roofline.step(32, 1024)
        assert more == pytest.approx(32 * 3072 * 131_072 / (H100.memory_bandwidth * REACHED[Device.GPU].memory))

    def test_a_window_bounds_it(self) -> None:
        roofline = reached(models.MISTRAL_7B, H100)
        assert roofline.step(8, 4096) == roofline.step(8, 30_000) > roofline.step(8, 1024)

    def test_latent_attention_reads_one_of_its_two_copies(self) -> None:
        shape = shape_of(models.DEEPSEEK_V2_LITE)
        (held,) = stage_weights(shape, Cut(), Settings().weights_kept(shape))
        (stage,) = work_of(models.DEEPSEEK_V2_LITE)
        read = stage.dense.bytes + stage.head.bytes + sum(each.all.bytes for each in stage.routed)
        embedding, copy = 102400 * 2048 * 2, 512 * 16 * (128 + 128) * 2
        assert read == held - embedding - 27 * copy

    def test_states_are_read_and_written_however_long_a_sequence_is(self) -> None:
        shape = shape_of(models.JAMBA)
        (stage,) = work_of(models.JAMBA)
        assert stage.cache_bytes(0) == 2 * sequence_bytes(shape, 0, Settings().cache_kept(shape)) > 0
        assert stage.state > 0


class TestSteps:
    @pytest.mark.parametrize(
        ("config", "device", "cut", "least", "most"),
        [
            # Weights over the data sheet's bandwidth are a bound from below: 15.0 GB, 34.8 GB ...
            (models.LLAMA_3_8B, H100, Cut(), 4.5e-3, 8e-3),
            (models.LLAMA_3_8B, A100, Cut(), 7.4e-3, 13e-3),
            (models.LLAMA_3_8B, L4, Cut(), 50e-3, 80e-3),
            (models.LLAMA_3_70B, H100, Cut(4), 10.4e-3, 22e-3),
            (models.SMOLLM2_135M, CPU, Cut(), 11e-3, 40e-3),
        ],
    )
    def test_one_sequence(self, config: Config, device: DeviceKind, cut: Cut, least: float, most: float) -> None:
        assert least < reached(config, device, cut).step(1, 1024) < most

    @settings(max_examples=60)
    @given(
        st.sampled_from(GENERATIVE),
        st.builds(
            Cut, st.sampled_from((1, 2, 4, 8)), st.sampled_from((1, 2, 4)), st.sampled_from((1, 2)), st.booleans()
        ),
        st.sampled_from(list(CATALOGUE)),
        st.floats(0, 512),
        st.floats(1.01, 4),
        st.integers(0, 100_000),
    )
    def test_larger_batches_take_longer_and_make_more_tokens(
        self, shape: ModelShape, cut: Cut, device: DeviceKind, batch: float, times: float, context: int
    ) -> None:
        if cut_reasons(shape, cut, shape.quantization):
            return
        roofline = Roofline(shape, cut, device)
        small, large = roofline.step(batch, context), roofline.step(batch * times, context)
        assert large >= small * (1 - 1e-9)
        assert large <= small * times * (1 + 1e-9)

    def test_what_is_neither_bytes_nor_operations(self) -> None:
        constants = REACHED[Device.GPU]
        plain = reached(models.LLAMA_3_8B, FREE).step(1, 1024)
        assert plain == pytest.approx(constants.step + 32 * constants.layer)
        mixture = reached(models.MIXTRAL_8X7B, FREE).step(1, 1024)
        assert mixture == pytest.approx(plain + 32 * constants.routing)

    def test_an_all_reduce_is_two_passes_around_a_ring(self) -> None:
        device = replace(FREE, link_bandwidth=1e9)
        constants = REACHED[Device.GPU]
        one = reached(models.LLAMA_3_8B, device).step(16, 1024)
        four = reached(models.LLAMA_3_8B, device, Cut(4)).step(16, 1024)
        size = 16 * 4096 * 2
        ring = 2 * 3 / 4 * size / (1e9 * constants.link) + 2 * 3 * constants.bus_hop
        assert four - one == pytest.approx(2 * 32 * ring)

    def test_a_small_model_is_no_faster_on_more_devices(self) -> None:
        assert reached(models.OPT_125M, L4, Cut(4)).step(1, 512) > reached(models.OPT_125M, L4).step(1, 512)

    def test_stages_make_no_token_faster(self) -> None:
        one, two = reached(models.LLAMA_3_8B, H100), reached(models.LLAMA_3_8B, H100, Cut(1, 2))
        assert two.step(1, 1024) > one.step(1, 1024)
        # Two parts of a batch at once: each stage reads its weights for a half, but both work.
        assert two.step(256, 1024) < 1.1 * one.step(128, 1024)

    def test_eight_bits_are_read_in_half_the_time_where_weights_are_most_of_it(self) -> None:
        narrow = Settings(quantization=NAMED[Precision.FP8])
        ratio = reached(models.LLAMA_3_70B, A100, Cut(4), narrow).step(1, 128) / reached(
            models.LLAMA_3_70B, A100, Cut(4)
        ).step(1, 128)
        assert 0.5 < ratio < 0.65

    def test_half_a_device_is_half_as_fast(self) -> None:
        half = reached(models.SMOLLM2_135M, L4, wanted=Settings(share=0.5))
        assert half.network == reached(models.SMOLLM2_135M, L4).network / 2
        fixed = REACHED[Device.GPU].step + 30 * REACHED[Device.GPU].layer
        rest = reached(models.SMOLLM2_135M, L4).step(4, 512) - fixed
        assert half.step(4, 512) - fixed == pytest.approx(2 * rest)


class TestPrompts:
    def test_compute_is_what_takes_the_time(self) -> None:
        prompt = reached(models.LLAMA_3_8B, H100).prompt(2000)
        # 2 x 7.0e9 parameters of the layers x 2000, and attention; at 100% it would take 29 ms.
        assert 0.029 / 0.45 < prompt.alone < 0.075

    def test_what_a_cache_has_is_not_computed(self) -> None:
        roofline = reached(models.LLAMA_3_8B, H100)
        whole, half = roofline.prompt(2000), roofline.prompt(1000, 1000)
        assert 0.5 * whole.alone < half.alone < 0.6 * whole.alone

    def test_long_prompts_come_in_chunks_that_fill_the_stages(self) -> None:
        roofline = reached(models.LLAMA_3_8B, H100, Cut(1, 2))
        chunked, single = roofline.prompt(8 * 2048), roofline.prompt(2048)
        assert (chunked.steps, single.steps) == (8, 1)
        assert single.alone == pytest.approx(2 * single.busy, rel=0.05)
        assert chunked.alone == pytest.approx(9 / 8 * chunked.busy, rel=0.05)

    def test_short_prompts_share_the_weights_that_are_read(self) -> None:
        prompt = reached(models.LLAMA_3_8B, H100).prompt(32)
        assert prompt.together == 64
        assert prompt.busy < prompt.alone / 4

    def test_data_parallel_ranks_take_prompts_each(self) -> None:
        one, four = (reached(models.LLAMA_3_8B, H100, Cut(data=ranks)).prompt(2048) for ranks in (1, 4))
        assert four.busy == pytest.approx(one.busy / 4, rel=0.1)
        assert four.alone >= one.alone

    def test_units_for_eight_bits_count_where_there_are_some(self) -> None:
        narrow = Settings(quantization=NAMED[Precision.FP8])
        with_units = reached(models.LLAMA_3_8B, H100, wanted=narrow).prompt(2000).alone
        without = reached(models.LLAMA_3_8B, A100, wanted=narrow).prompt(2000).alone
        assert with_units < 0.65 * reached(models.LLAMA_3_8B, H100).prompt(2000).alone
        assert without == pytest.approx(reached(models.LLAMA_3_8B, A100).prompt(2000).alone, rel=0.02)

    @settings(max_examples=60)
    @given(st.sampled_from(GENERATIVE), st.integers(1, 20_000), st.integers(1, 20_000), st.floats(0, 1))
    def test_more_to_compute_takes_longer(self, shape: ModelShape, tokens: int, more: int, hit: float) -> None:
        roofline = Roofline(shape, Cut(), H200)
        fresh = max(1.0, tokens * (1 - hit))
        prompt, longer = roofline.prompt(fresh, tokens - fresh), roofline.prompt(fresh + more, tokens - fresh)
        missed = roofline.prompt(tokens, 0)
        assert longer.alone > prompt.alone
        assert longer.busy > prompt.busy
        assert missed.alone >= prompt.alone * (1 - 1e-9)
        assert missed.busy >= prompt.busy * (1 - 1e-9)


class TestTransfers:
    def test_the_slower_end_sets_the_pace(self) -> None:
        fast, slow = reached(models.LLAMA_3_8B, H100), reached(models.LLAMA_3_8B, L4)
        size = prompt_bytes(shape_of(models.LLAMA_3_8B), 2000, Settings())
        assert size == 2000 * 131_072
        constants = REACHED[Device.GPU]
        expected = size / (1.56e9 * constants.network) + constants.handover
        assert transfer_seconds(size, fast, slow) == transfer_seconds(size, slow, fast) == pytest.approx(expected)

    def test_all_devices_of_a_replica_send(self) -> None:
        one, four = reached(models.LLAMA_3_8B, H100), reached(models.LLAMA_3_8B, H100, Cut(4))
        assert four.network == 4 * one.network

    def test_a_window_bounds_what_is_sent(self) -> None:
        shape = shape_of(models.MISTRAL_7B)
        assert prompt_bytes(shape, 30_000, Settings()) == prompt_bytes(shape, 4096, Settings())
