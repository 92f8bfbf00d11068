"""Weights in bytes: in every format, whole and cut, and beside what a checkpoint itself says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.distributed.utils import get_pp_indices
from vllm.model_executor import parameter
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig, AutoAWQLinearMethod
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig, AutoGPTQLinearMethod
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.cut import Cut, Obstacle, cut_reasons, stage_layers
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.fields import Fields
from orchestrator.core.planning.matrices import layer_matrices
from orchestrator.core.planning.quantization import NAMED, Quantization, matches
from orchestrator.core.planning.quantization_config import quantization_of
from orchestrator.core.planning.shape import ModelShape
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.weights import (
    Kept,
    checkpoint_bytes,
    compared,
    device_bytes,
    index_total,
    kept_as_stored,
    parameters,
    stage_weights,
    stored_total,
)
from tests.planning import models
from tests.planning.models import FAMILIES, HELD, PARAMETERS, Config

BF16 = Kept(Precision.BF16)
INPUTS, OUTPUTS = 4096, 14336
UP = "model.layers.0.mlp.up_proj"
SHAPES = {name: shape_of(config) for name, (config, _) in PARAMETERS.items()}
SHAPES["Gemma 3 4B"], SHAPES["Qwen3 Next"] = shape_of(models.GEMMA_3_4B), shape_of(models.QWEN3_NEXT_80B)


def quantization(config: Config) -> Quantization:
    found = quantization_of(Fields(config, "config.json: quantization_config"))
    assert found is not None
    return found


def compressed(weights: Config, **more: Any) -> Config:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    form = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    return {**form, "ignore": ["lm_head"], "config_groups": {"group_0": group}, **more}


def bytes_of(config: Config, name: str = UP, inputs: int = INPUTS, outputs: int = OUTPUTS) -> int:
    scheme = quantization(config).of(name)
    assert scheme is not None
    return scheme.bytes(inputs, outputs)


class TestFormats:
    @pytest.mark.parametrize("name", ["awq", "gptq", "int4 symmetric", "int4 asymmetric"])
    def test_a_matrix_is_as_large_as_vllm_makes_it(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
        monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
        group = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
        config, beside = {
            "awq": (models.AWQ, 0),
            "gptq": (models.GPTQ, 4 * INPUTS),  # g_idx, which vLLM drops where activations have no order
            "int4 symmetric": (compressed(group | {"symmetric": True}), -16),  # the matrix's own sizes, as numbers
            "int4 asymmetric": (compressed(group | {"symmetric": False}), -16),
        }[name]
        assert bytes_of(config) == made_by_vllm(name, config) + beside

    @pytest.mark.parametrize(
        ("config", "numbers", "scales"),
        [
            ({"quant_method": "fp8", "activation_scheme": "dynamic"}, 1.0, 4),
            ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 1.0, 32 * 112 * 4),
            (compressed({"num_bits": 8, "type": "int", "strategy": "channel"}), 1.0, OUTPUTS * 2),
            (compressed({"num_bits": 8, "type": "float", "strategy": "tensor"}), 1.0, 2),
            ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0, OUTPUTS * 4),
            ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5, INPUTS * OUTPUTS // 64 * 4),
            ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 0.5, INPUTS * OUTPUTS // 16),
            (models.GPTQ | {"bits": 8, "group_size": -1}, 1.0, OUTPUTS * 3 + 4 * INPUTS),
        ],
    )
    def test_numbers_and_what_is_kept_beside_them(self, config: Config, numbers: float, scales: int) -> None:
        assert bytes_of(config) == int(INPUTS * OUTPUTS * numbers) + scales

    def test_double_quantization_saves_three_eighths_of_a_bit(self) -> None:
        once = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        saved = bytes_of(once) - bytes_of(once | {"bnb_4bit_use_double_quant": True})
        assert saved * 8 / (INPUTS * OUTPUTS) == pytest.approx(0.373, abs=0.001)  # QLoRA, 2023, section 3

    @pytest.mark.parametrize(
        ("pattern", "name", "meant"),
        [
            ("lm_head", "lm_head", True),
            ("gate", "model.layers.3.mlp.gate", True),
            ("gate", "model.layers.3.mlp.gate_proj", False),
            ("model.layers.1", "model.layers.11.mlp.up_proj", False),
            ("model.layers.*.self_attn", "model.layers.11.self_attn.q_proj", True),
            ("re:.*down_proj", "model.layers.1.mlp.down_proj", True),
            ("re:model.layers.[0-3].*", "model.layers.4.mlp.down_proj", False),
        ],
    )
    def test_ignore_lists(self, pattern: str, name: str, meant: bool) -> None:
        assert matches(pattern, name) is meant

    def test_what_is_listed_stays_as_it_is(self) -> None:
        left = quantization(models.AWQ | {"modules_to_not_convert": ["model.layers.0."]})
        assert left.of(UP) is None
        assert left.of(UP.replace("0", "1")) is not None
        shape = shape_of(models.LLAMA_3_8B)
        more, less = (
            stage_weights(shape, Cut(), Kept(Precision.FP16, each))[0] for each in (left, quantization(models.AWQ))
        )
        layer = 4096 * (4096 * 2 + 1024 * 2 + 14336 * 3)
        assert more - less == layer * 2 - layer // 2 - layer // 128 * 2 - layer // 256

    def test_one_rule_of_gptq_for_some_layers(self) -> None:
        dynamic = {"-:.*layers\\.0\\..*": {}, "+:.*down_proj": {"bits": 8, "group_size": 32}}
        mixed = quantization(models.GPTQ | {"dynamic": dynamic})
        assert mixed.of(UP) is None
        assert mixed.of("model.layers.1.mlp.up_proj").bits == 4
        assert mixed.of("model.layers.1.mlp.down_proj").bits == 8

    @pytest.mark.parametrize(
        "config",
        [
            models.GPTQ | {"bits": 5},
            {"quant_method": "compressed-tensors"},
            compressed({"num_bits": 4, "strategy": "spiral"}),
            {"quant_method": "modelopt", "quant_algo": "W2A2"},
        ],
    )
    def test_a_format_that_is_not_known_is_refused(self, config: Config) -> None:
        with pytest.raises(ConfigError):
            quantization(config)

    def test_a_checkpoint_may_want_its_cache_in_fp8(self) -> None:
        config = compressed({"num_bits": 8, "type": "float", "strategy": "tensor"}, kv_cache_scheme={"num_bits": 8})
        assert quantization(config).kv is Precision.FP8
        assert quantization({**config, "kv_cache_scheme": "FP8"}).kv is Precision.FP8


def made_by_vllm(name: str, config: Config) -> int:
    """Bytes of what vLLM creates for a linear layer of this format, without memory."""
    layer = torch.nn.Module()
    sizes: dict[str, Any] = {"input_size_per_partition": INPUTS, "output_partition_sizes": [OUTPUTS]}
    sizes |= {"input_size": INPUTS, "output_size": OUTPUTS, "params_dtype": torch.bfloat16}
    maker: Any
    if name == "awq":
        maker = AutoAWQLinearMethod(AutoAWQConfig.from_config(config))
    elif name == "gptq":
        maker = AutoGPTQLinearMethod(AutoGPTQConfig.from_config(config))
    else:
        maker = CompressedTensorsConfig.from_config(config).get_scheme(torch.nn.Linear(1, 1), layer_name=UP)
    with torch.device("meta"):
        maker.create_weights(layer=layer, weight_loader=lambda *_: None, **sizes)
    return sum(each.numel() * each.element_size() for each in layer.parameters())


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("config", "total"),
        [
            (models.LLAMA_3_8B, 16_060_522_496),
            (models.LLAMA_3_70B, 141_107_412_992),
            (models.SMOLLM2_135M, 269_030_016),
            (models.DEEPSEEK_V3, 688.6e9),  # its index's total, multi-token prediction included
            (models.GPT_OSS_20B, 13.76e9),
            (models.MISTRAL_7B | {"quantization_config": models.AWQ}, 4.15e9),
            (models.LLAMA_2_7B | {"quantization_config": models.GPTQ}, 3.90e9),
        ],
    )
    def test_it_is_as_large_as_published(self, config: Config, total: float) -> None:
        assert checkpoint_bytes(shape_of(config)) == pytest.approx(total, rel=0.002)

    def test_its_own_total_wins_and_the_difference_is_told(self) -> None:
        shape = shape_of(models.LLAMA_3_8B)
        stored = compared(shape, 17_666_574_746)
        assert stored.factor == pytest.approx(1.1, rel=1e-6)
        assert "17.67 GB" in stored.note
        assert "+10.0%" in stored.note

    def test_small_buffers_are_no_difference(self) -> None:
        stored = compared(shape_of(models.LLAMA_3_8B), 16_060_522_496 + 4096)
        assert (stored.factor, stored.note) == (1.0, "")

    def test_another_type_on_disk_is_none_in_memory(self) -> None:
        stored = compared(shape_of(models.LLAMA_3_8B), 2 * 16_060_522_496)
        assert stored.factor == 1.0
        assert "another type" in stored.note

    def test_a_tied_embedding_that_is_stored_twice_is_held_once(self) -> None:
        stored = compared(shape_of(models.SMOLLM2_135M), 269_030_016 + 49152 * 576 * 2)
        assert stored.factor == 1.0
        assert "twice" in stored.note

    def test_headers_and_index(self) -> None:
        tensors = {"a": ("BF16", (4, 8)), "b": ("F8_E4M3", (3,)), "c": ("I32", ()), "d": ("F4", (3,))}
        assert stored_total(tensors) == 64 + 3 + 4 + 2
        assert index_total({"metadata": {"total_size": 12}}) == 12
        assert index_total({"weight_map": {}}) is None
        with pytest.raises(ConfigError, match="Q7"):
            stored_total({"a": ("Q7", (1,))})


class TestCut:
    @given(st.integers(1, 130), st.integers(1, 130))
    def test_stages_have_the_layers_that_vllm_gives_them(self, layers: int, stages: int) -> None:
        stages = min(layers, stages)
        theirs = [get_pp_indices(layers, rank, stages) for rank in range(stages)]
        assert stage_layers(layers, stages) == tuple(end - start for start, end in theirs)

    @pytest.mark.parametrize("name", SHAPES)
    @given(exponent=st.integers(0, 4), stages=st.integers(1, 6), expert=st.booleans(), narrow=st.booleans())
    def test_nothing_is_lost_and_more_devices_hold_less(
        self, name: str, exponent: int, stages: int, expert: bool, narrow: bool
    ) -> None:
        shape, ways = SHAPES[name], 2**exponent
        kept = Kept(Precision.BF16, NAMED[Precision.INT4] if narrow else None)
        whole = stage_weights(shape, Cut(), kept)[0]
        cut = Cut(ways, stages, expert=expert)
        if not possible(shape, cut):
            return
        held = stage_weights(shape, cut, kept)
        assert len(held) == stages
        assert sum(held) * ways >= whole
        # Fewer stages, or the half of the devices, never hold less each.
        if ways > 1:
            assert max(held) <= max(stage_weights(shape, Cut(ways // 2, stages, expert=expert), kept))
        assert max(held) <= whole

    @pytest.mark.parametrize("name", SHAPES)
    def test_uncut_it_is_the_parameters_and_what_fills_up_the_vocabulary(self, name: str) -> None:
        shape = SHAPES[name]
        rows = -shape.vocabulary % 64
        padding = rows * shape.embedding_width * (1 if shape.tied or not shape.has_head else 2)
        held = stage_weights(shape, Cut(), BF16)[0] - 2 * padding
        absorbed = {"DeepSeek V2 Lite": 27 * 16, "DeepSeek V3": 61 * 128}.get(name, 0) * 256 * 512
        assert held == 2 * (parameters(shape) + absorbed)

    @pytest.mark.parametrize("name", HELD)
    def test_each_device_holds_what_vllms_own_model_holds_there(self, name: str) -> None:
        shape = shape_of(FAMILIES[name] | {"model_type": name, "torch_dtype": "bfloat16"})
        for ways, theirs in zip((1, 2, 4), HELD[name], strict=False):
            # What is made of other weights later is none of a new model's.
            held = [each for layer in shape.layers for each in layer_matrices(layer, shape.hidden) if each.held]
            made = sum(device_bytes(each, "", BF16, Cut(ways)) for each in held)
            assert stage_weights(shape, Cut(ways), BF16)[0] - made == theirs

    def test_llama_3_70b_over_four_devices(self) -> None:
        held = stage_weights(shape_of(models.LLAMA_3_70B), Cut(4), BF16)
        assert held == (141_107_412_992 // 4 + (2 * 80 + 1) * 8192 * 2 * 3 // 4,)  # norms are on each of them

    def test_kv_heads_are_repeated_where_there_are_fewer_than_devices(self) -> None:
        shape = shape_of(models.QWEN25_7B | {"num_key_value_heads": 1})
        one, two = (stage_weights(shape, Cut(ways), BF16)[0] for ways in (1, 2))
        keys_and_values, norms = 28 * 2 * (3584 + 1) * 128 * 2, (28 * 2 + 1) * 3584 * 2
        assert 2 * two - one == keys_and_values + norms

    def test_tied_embeddings_are_on_the_first_and_the_last_stage(self) -> None:
        shape = shape_of(models.SMOLLM2_135M)
        embedding = 49152 * 576 * 2
        assert sum(stage_weights(shape, Cut(1, 2), BF16)) == stage_weights(shape, Cut(), BF16)[0] + embedding
        untied = shape_of(models.SMOLLM2_135M | {"tie_word_embeddings": False})
        assert sum(stage_weights(untied, Cut(1, 2), BF16)) == stage_weights(untied, Cut(), BF16)[0]

    def test_experts_are_whole_or_shared_out_over_data_parallel_replicas(self) -> None:
        shape = shape_of(models.QWEN3_30B_A3B)
        one = stage_weights(shape, Cut(2), BF16)[0]
        assert stage_weights(shape, Cut(2, expert=True), BF16)[0] == one
        experts = 48 * 128 * 3 * 2048 * 768 * 2
        assert one - stage_weights(shape, Cut(2, data=4), BF16)[0] == experts // 2 - experts // 8

    @pytest.mark.parametrize(
        ("config", "cut", "obstacle", "words"),
        [
            (models.LLAMA_3_70B, Cut(7), Obstacle.HEADS, "64 attention heads can't be divided by TP=7"),
            (models.LLAMA_3_70B, Cut(1, 81), Obstacle.LAYERS, "81 pipeline stages are more than the model's 80 layers"),
            (models.SMOLLM2_135M, Cut(2), Obstacle.HEADS, "9 attention heads"),
            (models.LLAMA_3_8B | {"num_key_value_heads": 4, "num_attention_heads": 24, "head_dim": 128}, Cut(6),
             Obstacle.KV_HEADS, "4 KV heads can be neither divided nor repeated over TP=6"),
            (models.LLAMA_2_7B | {"intermediate_size": 11000}, Cut(16), Obstacle.WIDTH, "11000"),
            (models.LLAMA_3_8B | {"vocab_size": 100, "num_attention_heads": 96, "num_key_value_heads": 96,
                                  "intermediate_size": 9600}, Cut(3), Obstacle.VOCABULARY, "filled up to 128"),
            (models.LLAMA_2_7B | {"quantization_config": models.AWQ}, Cut(4), Obstacle.GROUPS, "2752 inputs"),
            (models.DEEPSEEK_V3, Cut(32), Obstacle.GROUPS, "blocks of 128"),
            (models.QWEN3_NEXT_80B | {"linear_num_value_heads": 64, "num_attention_heads": 32}, Cut(32), Obstacle.HEADS,
             "16 key heads of states"),
            (models.FAMILIES["granitemoehybrid"] | {"model_type": "granitemoehybrid"}, Cut(4), Obstacle.HEADS,
             "2 groups of states"),
            (models.JAMBA, Cut(32, expert=True), None, ""),
            (models.GPT_OSS_20B, Cut(4), None, ""),
        ],
    )  # fmt: skip
    def test_what_cannot_be_divided_is_told(
        self, config: Config, cut: Cut, obstacle: Obstacle | None, words: str
    ) -> None:
        shape = shape_of(config)
        reasons = cut_reasons(shape, cut, kept_as_stored(shape).quantization)
        if obstacle is None:
            assert reasons == ()
        else:
            assert words in next(reason.text for reason in reasons if reason.obstacle is obstacle)


def possible(shape: ModelShape, cut: Cut) -> bool:
    """Heads, widths and layers divide; groups of formats may not, which doesn't matter to what is held."""
    return not cut_reasons(shape, cut, None)
