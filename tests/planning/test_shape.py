"""A model's shape from its config.json: what every family leaves out is known, what nobody can know is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.shape import Attention, Experts, Latent, ModelShape, QkNorm, State
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.shape_families import FAMILIES as KNOWN
from orchestrator.core.planning.weights import active_parameters, parameters
from tests.planning import models
from tests.planning.models import FAMILIES, PARAMETERS, Config

# Of the families that are told from each other in config.json but built by another's class in transformers.
ELSEWHERE = {"kimi_k2", "deepseek_v32", "xlm-roberta", "ministral3", "qwen2_vl_text", "qwen2_5_vl_text"}
ELSEWHERE |= {"qwen3_vl_text", "qwen3_vl_moe_text"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """transformers warns that small models lack its families' special tokens."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def built(config: Config) -> Any:
    """The family's own model in transformers, without memory."""
    encoder = config["model_type"] in ("bert", "roberta")
    with torch.device("meta"):
        return (AutoModel if encoder else AutoModelForCausalLM).from_config(AutoConfig.for_model(**config))


def kinds(shape: ModelShape) -> list[str]:
    """What transformers would call the layers."""
    words = []
    for layer in shape.layers:
        windowed = isinstance(layer.mixer, Attention) and layer.mixer.window
        state = isinstance(layer.mixer, State)
        words.append("linear_attention" if state else "sliding_attention" if windowed else "full_attention")
    return words


class TestAgainstTransformers:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_a_family_has_as_many_parameters_as_its_own_model(self, name: str) -> None:
        config = {"model_type": name.split()[0], **FAMILIES[name]}
        model = built(config)
        shape = shape_of(config)
        corrections = [buffer for key, buffer in model.named_buffers() if key.endswith("e_score_correction_bias")]
        assert parameters(shape) == sum(each.numel() for each in [*model.parameters(), *corrections])
        assert shape.assumed == ()

    def test_no_known_family_is_left_out(self) -> None:
        assert {name.split()[0] for name in FAMILIES} == set(KNOWN) - ELSEWHERE

    @pytest.mark.parametrize("name", FAMILIES)
    def test_its_layers_are_of_the_kinds_that_they_are_there(self, name: str) -> None:
        config = {"model_type": name.split()[0], **FAMILIES[name]}
        theirs = getattr(AutoConfig.for_model(**config), "layer_types", None)
        same = {"conv": "linear_attention", "mamba": "linear_attention", "attention": "full_attention"}
        same |= {"chunked_attention": "full_attention", "mlp": "full_attention", "moe": "full_attention"}
        assert theirs is None or kinds(shape_of(config)) == [same.get(kind, kind) for kind in theirs]


class TestKnownModels:
    @pytest.mark.parametrize("name", PARAMETERS)
    def test_it_has_the_parameters_that_it_is_known_for(self, name: str) -> None:
        config, known = PARAMETERS[name]
        assert parameters(shape_of(config)) == known

    @pytest.mark.parametrize(
        ("config", "billions"),
        [(models.MIXTRAL_8X7B, 12.9), (models.DEEPSEEK_V3, 37.0), (models.QWEN3_30B_A3B, 3.3)],
    )
    def test_a_token_passes_the_experts_that_it_is_routed_to(self, config: Config, billions: float) -> None:
        shape = shape_of(config)
        embedding = shape.vocabulary * shape.hidden
        assert (active_parameters(shape) + embedding) / 1e9 == pytest.approx(billions, rel=0.03)

    def test_deepseek_v3(self) -> None:
        shape = shape_of(models.DEEPSEEK_V3)
        assert (shape.latent, shape.heads, shape.kv_heads, shape.experts, shape.drafts) == (True, 128, 1, 256, 1)
        assert [isinstance(layer.feed, Experts) for layer in shape.layers] == [False] * 3 + [True] * 58
        assert shape.layers[0].mixer == Latent(128, 1536, 512, 128, 64, 128)

    def test_layers_with_experts_may_be_marked_one_by_one(self) -> None:
        marks = [0, 1] * 30 + [1]
        shape = shape_of(models.DEEPSEEK_V3 | {"moe_layer_freq": marks})
        assert [isinstance(layer.feed, Experts) for layer in shape.layers] == [mark == 1 for mark in marks]

    def test_gemma_3_has_a_layer_in_six_that_attends_to_everything(self) -> None:
        shape = shape_of(models.GEMMA_3_4B)
        assert [index for index, kind in enumerate(kinds(shape)) if kind == "full_attention"] == [5, 11, 17, 23, 29]
        assert shape.layers[0].mixer == Attention(8, 4, 256, window=1024, qk_norm=QkNorm.HEAD)
        assert shape.max_length == 131072  # the scaling of RoPE is in it already

    def test_towers_for_other_inputs_are_an_estimate_that_says_so(self) -> None:
        shape = shape_of(models.GEMMA_3_4B)
        assert parameters(shape) == pytest.approx(4_300_079_472, rel=0.005)
        assert "towers" in shape.assumed[0]


class TestLength:
    @pytest.mark.parametrize(
        ("scaling", "length"),
        [
            (None, 8192),
            ({"rope_type": "linear", "factor": 2.0}, 16384),
            ({"type": "dynamic", "factor": 4.0}, 32768),
            ({"rope_type": "yarn", "factor": 4.0}, 8192),
            ({"rope_type": "llama3", "factor": 8.0}, 8192),
            ({"rope_type": "longrope", "original_max_position_embeddings": 4096}, 4096),
            ({"rope_type": "default"}, 8192),
        ],
    )
    def test_it_is_what_vllm_derives(self, scaling: Config | None, length: int) -> None:
        assert shape_of(models.LLAMA_3_8B | {"rope_scaling": scaling}).max_length == length


class TestUnknown:
    def test_an_unknown_family_is_an_estimate_that_says_so(self) -> None:
        shape = shape_of(models.LLAMA_3_8B | {"model_type": "brand_new"})
        assert parameters(shape) == 8_030_261_248
        assert "'brand_new' is not known" in shape.assumed[0]

    def test_an_unknown_family_with_latent_attention_and_experts_is_counted_as_such(self) -> None:
        shape = shape_of(models.DEEPSEEK_V2_LITE | {"model_type": "brand_new"})
        assert parameters(shape) == 15_706_484_224
        assert shape.assumed

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"hidden_size": None}, "hidden_size"),
            ({"hidden_size": "4096"}, "hidden_size"),
            ({"num_hidden_layers": 0}, "num_hidden_layers"),
            ({"num_attention_heads": -1}, "num_attention_heads"),
            ({"num_key_value_heads": 7}, "32 attention heads can't share 7 KV heads"),
            ({"vocab_size": None}, "vocab_size"),
            ({"torch_dtype": "complex64"}, "complex64"),
            ({"layer_types": ["full_attention"]}, "1 layers of 32"),
            ({"layer_types": ["mystery"] * 32}, "mystery"),
            ({"layer_types": ["linear_attention"] * 32}, "layers without attention"),
            ({"is_encoder_decoder": True}, "encoder and a decoder"),
            ({"quantization_config": {"quant_method": "quip"}}, "quip"),
            ({"quantization_config": "gptq"}, "quantization_config"),
            ({"n_routed_experts": 8, "moe_intermediate_size": 64, "moe_layer_freq": [0, 1]}, "each of the 32 layers"),
        ],
    )
    def test_what_nobody_can_size_is_refused_by_name(self, change: Config, word: str) -> None:
        with pytest.raises(ConfigError, match=word):
            shape_of(models.LLAMA_3_8B | change)

    def test_the_place_is_told(self) -> None:
        with pytest.raises(ConfigError) as caught:
            shape_of({"model_type": "llama"}, where="models/mine/config.json")
        assert caught.value.where == "models/mine/config.json"


def test_the_type_is_float32_where_none_is_named() -> None:
    assert shape_of(models.GPT2).dtype is Precision.FP32
