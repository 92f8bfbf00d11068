"""What sequences hold: known figures, and the blocks that vLLM's own code deals out from the same memory."""

from __future__ import annotations

from math import prod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator
from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_configs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, MambaSpec, MLAAttentionSpec, SlidingWindowSpec
from vllm.v1.kv_cache_layout import KVCacheLayout

from orchestrator.core.planning.cut import Cut, stage_layers
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.kv import (
    CacheKept,
    LayerCache,
    Pool,
    PoolRules,
    layer_cache,
    pool_of,
    sequence_bytes,
    token_bytes,
)
from orchestrator.core.planning.shape import Attention, Latent, Mixer, ModelShape, State, StateKind
from orchestrator.core.planning.shape_config import shape_of
from tests.planning import models
from tests.planning.models import Config

KEPT = CacheKept(Precision.BF16, Precision.BF16, Precision.BF16)
FP8 = CacheKept(Precision.FP8, Precision.BF16, Precision.BF16)
IN_FLIGHT = 2 * 2048
GB = 10**9
ODD_WINDOWS = models.GPT_OSS_20B | {"layer_types": ["sliding_attention"] * 13 + ["full_attention"] * 11}
FEW_FULL = models.GPT_OSS_20B | {"layer_types": ["sliding_attention"] * 17 + ["full_attention"] * 7}
CACHES: dict[str, Config] = {
    "grouped queries": models.LLAMA_3_8B,
    "one window": models.MISTRAL_7B,
    "every second with a window": models.GEMMA_2_9B,
    "one in six without": models.GEMMA_3_4B,
    "a short window": models.GPT_OSS_20B,
    "13 with a window and 11 without": ODD_WINDOWS,
    "17 with a window and 7 without": FEW_FULL,
    "latent": models.DEEPSEEK_V3,
    "Mamba beside attention": models.JAMBA,
    "gated delta nets beside attention": models.QWEN3_NEXT_80B,
}
CUTS = (Cut(), Cut(2), Cut(1, 3), Cut(2, 5))


class TestTokens:
    @pytest.mark.parametrize(
        ("config", "size"),
        [
            (models.LLAMA_3_8B, 128 << 10),
            (models.LLAMA_3_70B, 320 << 10),
            (models.LLAMA_2_7B, 512 << 10),  # every head has its own keys and values
            (models.DEEPSEEK_V3, (512 + 64) * 2 * 61),
            (models.MIXTRAL_8X7B, 128 << 10),
            (models.GPT_OSS_20B, 48 << 10),
            (models.JAMBA, 16 << 10),  # 4 layers of attention
            (models.QWEN3_NEXT_80B, 24 << 10),  # 12 of them
            (models.BERT_BASE, 0),
        ],
    )
    def test_a_token_takes_what_it_is_known_for(self, config: Config, size: int) -> None:
        assert token_bytes(shape_of(config), KEPT) == size

    @pytest.mark.parametrize(("config", "share"), [(models.LLAMA_3_8B, 2), (models.DEEPSEEK_V3, 2), (models.GPT2, 2)])
    def test_fp8_halves_it(self, config: Config, share: int) -> None:
        assert token_bytes(shape_of(config), KEPT) == share * token_bytes(shape_of(config), FP8)

    def test_one_head_for_all(self) -> None:
        assert token_bytes(shape_of(models.OLD | {"model_type": "gpt_bigcode", "multi_query": True}), KEPT) == 3 * 64

    def test_heads_are_shared_out_and_repeated_but_latent_vectors_are_whole(self) -> None:
        assert [token_bytes(shape_of(models.LLAMA_3_8B), KEPT, ways) >> 10 for ways in (1, 2, 8, 16)] == [
            128,
            64,
            16,
            16,
        ]
        assert token_bytes(shape_of(models.DEEPSEEK_V3), KEPT, 8) == 70_272

    def test_an_indexer_keeps_keys_of_its_own(self) -> None:
        sparse = models.DEEPSEEK_V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128}
        assert token_bytes(shape_of(sparse), KEPT) == 70_272 + 61 * 132


class TestSequences:
    def test_a_window_bounds_it(self) -> None:
        mistral = shape_of(models.MISTRAL_7B)
        assert sequence_bytes(mistral, 4096, KEPT) == sequence_bytes(mistral, 32768, KEPT) == 4096 * 131072
        gemma = shape_of(models.GEMMA_2_9B)
        assert sequence_bytes(gemma, 8192, KEPT) == 21 * 8192 * 8192 + 21 * 4096 * 8192

    def test_a_state_is_there_from_the_first_token_on(self) -> None:
        jamba = shape_of(models.JAMBA)
        state = 28 * (8192 * 3 + 8192 * 16) * 2
        assert sequence_bytes(jamba, 0, KEPT) == state
        assert sequence_bytes(jamba, 1000, KEPT) == state + 1000 * 16384
        wide = CacheKept(Precision.BF16, Precision.BF16, Precision.FP32)
        assert sequence_bytes(jamba, 0, wide) == state + 28 * 8192 * 16 * 2

    @pytest.mark.parametrize("ways", [1, 2, 4])
    def test_states_are_as_large_as_vllms(self, ways: int) -> None:
        calculate = MambaStateShapeCalculator
        first = State(StateKind.MAMBA1, heads=8192, head_dim=1, groups=1, size=16, kernel=4)
        second = State(StateKind.MAMBA2, heads=128, head_dim=64, groups=1, size=256, kernel=4)
        grouped = State(StateKind.MAMBA2, heads=128, head_dim=64, groups=8, size=128, kernel=4)
        delta = State(StateKind.GATED_DELTA, heads=32, head_dim=128, groups=16, size=128, kernel=4)
        shapes = {
            first: calculate.mamba1_state_shape(ways, 8192, 16, 4),
            second: calculate.mamba2_state_shape(ways, 8192, 1, 128, 64, 256, 4),
            grouped: calculate.mamba2_state_shape(ways, 8192, 8, 128, 64, 128, 4),
            delta: calculate.gated_delta_net_state_shape(ways, 16, 32, 128, 128, 4),
        }
        for state, theirs in shapes.items():
            assert layer_cache(state, ways, KEPT) == LayerCache(state=2 * sum(prod(shape) for shape in theirs))

    @pytest.mark.parametrize("name", CACHES)
    @given(lengths=st.tuples(st.integers(0, 100_000), st.integers(0, 100_000)), ways=st.sampled_from((1, 2, 4, 8)))
    def test_fewer_tokens_never_hold_more(self, name: str, lengths: tuple[int, int], ways: int) -> None:
        shape, (less, more) = shape_of(CACHES[name]), sorted(lengths)
        assert sequence_bytes(shape, less, KEPT, ways) <= sequence_bytes(shape, more, KEPT, ways)
        assert sequence_bytes(shape, more, KEPT, 2 * ways) <= sequence_bytes(shape, more, KEPT, ways)
        for hybrid in (True, False):
            pool = pool_of(shape, Cut(ways), KEPT, PoolRules(16, hybrid=hybrid, in_flight=IN_FLIGHT))
            assert pool.blocks(less) <= pool.blocks(more)
            # Blocks hold at least what a sequence holds.
            assert pool.blocks(more) * pool.block_bytes[0] >= sequence_bytes(shape, more, KEPT, ways)


class TestBlocks:
    @pytest.mark.parametrize("hybrid", [True, False])
    @pytest.mark.parametrize("cut", CUTS, ids=str)
    @pytest.mark.parametrize("name", CACHES)
    def test_they_are_those_that_vllm_deals_out(self, name: str, cut: Cut, hybrid: bool) -> None:
        shape = shape_of(CACHES[name])
        if not hybrid and any(isinstance(layer.mixer, State) for layer in shape.layers):
            return  # vLLM itself can't have states without it
        pool = pool_of(shape, cut, KEPT, PoolRules(16, hybrid=hybrid, in_flight=IN_FLIGHT))
        for memory in (3 * GB, GB // 3):
            for length in (1024, 4000, 8192, 32768):
                blocks = min(memory // size for size in pool.block_bytes)
                theirs = dealt_by_vllm(shape, cut, pool, hybrid, memory, length)
                assert (theirs is not None) == (pool.blocks(length) <= blocks - 1)
                if theirs is not None:
                    assert theirs[0] == blocks
                    assert theirs[1] == pytest.approx(pool.tokens(blocks, length), abs=1)

    def test_blocks_are_as_long_as_a_state_is_large(self) -> None:
        pool = pool_of(shape_of(models.JAMBA), Cut(), KEPT, PoolRules(16))
        page = pool.block_size * 4096  # of one layer's keys and values
        assert page >= (8192 * 3 + 8192 * 16) * 2 > page - 16 * 4096

    def test_an_encoder_keeps_nothing(self) -> None:
        pool = pool_of(shape_of(models.BERT_BASE), Cut(1, 2), KEPT, PoolRules(16))
        assert (pool.groups, pool.block_bytes, pool.blocks(512)) == ((), (0, 0), 0)


def dealt_by_vllm(
    shape: ModelShape, cut: Cut, pool: Pool, hybrid: bool, memory: int, length: int
) -> tuple[int, int] | None:
    """Blocks and tokens by vLLM's own code, from specs such as its layers make; None where it refuses to start."""
    caches = [layer_cache(layer.mixer, cut.tensor, KEPT) for layer in shape.layers]
    page = pool.block_size * max(cache.token for cache in caches if cache)
    layers = iter(enumerate(shape.layers))
    stages = [
        {f"layers.{index}": spec_of(layer.mixer, cut.tensor, pool.block_size, page) for _ in range(count)
         for index, layer in [next(layers)]}
        for count in stage_layers(len(shape.layers), cut.pipeline)
    ]  # fmt: skip
    config: Any = SimpleNamespace(
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
            num_gpu_blocks_override=None,
            mamba_cache_mode="align",
            prefix_cache_retention_interval=0,
        ),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=not hybrid),
        attention_config=SimpleNamespace(hisparse_config=None),
        parallel_config=SimpleNamespace(tensor_parallel_size=cut.tensor, decode_context_parallel_size=1),
        model_config=SimpleNamespace(max_model_len=length, original_max_model_len=length),
        speculative_config=None,
        max_in_flight_tokens=IN_FLIGHT,
        num_prefill_lookahead_tokens=0,
    )
    try:
        dealt = get_kv_cache_configs(config, stages, [memory] * cut.pipeline)
    except ValueError:
        return None
    return dealt[0].num_blocks, get_kv_cache_capacity(config, dealt[0])[0]


def spec_of(mixer: Mixer | None, ways: int, block_size: int, page: int) -> KVCacheSpec:
    own: dict[str, Any] = {"block_size": block_size, "dtype": torch.bfloat16}
    match mixer:
        case Attention():
            own |= {"num_kv_heads": max(1, mixer.kv_heads // ways), "head_size": mixer.head_dim}
            return SlidingWindowSpec(sliding_window=mixer.window, **own) if mixer.window else FullAttentionSpec(**own)
        case Latent():
            return MLAAttentionSpec(num_kv_heads=1, head_size=mixer.kv_rank + mixer.rope_dim, **own)
        case State():
            cache = layer_cache(mixer, ways, KEPT)
            assert cache is not None
            shapes, dtypes = ((cache.state // 2,),), (torch.bfloat16,)
            return MambaSpec(block_size, shapes, dtypes, page_size_padded=page, mamba_cache_mode="align")
        case None:
            raise AssertionError("every model here has a mixer in each layer")
