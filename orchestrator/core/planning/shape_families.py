"""What config.json doesn't say because every model of a family has it, by ``model_type``.

Each line is held against transformers' own model of that family by a test. A name in place of True or False is the key
of config.json that decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.core.planning.shape import QkNorm


class Pattern(StrEnum):
    """Which layers are of which kind where ``layer_types`` doesn't say."""

    NONE = "none"  # all alike, and all attend to everything
    ALL = "all"  # all have the window, if there is one
    EVEN = "even"  # every second has the window, the first one too
    NTH_FULL = "nth_full"  # the n-th of n attends to everything
    LATER = "later"  # the window from ``max_window_layers`` on, if ``use_sliding_window``
    PERIODIC = "periodic"  # attention at ``attn_layer_offset`` of each ``attn_layer_period``, states elsewhere
    NTH_ATTENTION = "nth_attention"  # the n-th of n is attention, states elsewhere
    HALVES = (
        "halves"  # a letter a layer, each of which is one half of a block: M a state, * attention, - and E the other
    )
    LISTED = "listed"  # attention where a list of layers says so, states elsewhere
    CHUNKED = "chunked"  # windows that don't slide, which engines keep whole


@dataclass(frozen=True, slots=True)
class Family:
    """A family's blocks. ``positions``: learned positions, and rows that they have above the length (None: none)."""

    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    gated: bool = True
    norms: int = 2
    norm_bias: bool = False
    final_norm: bool = True
    qk_norm: QkNorm = QkNorm.NONE
    qk_key: str = ""  # the key of config.json without which ``qk_norm`` isn't there
    gated_queries: bool = False
    sinks: bool = False
    tied: bool = False
    head_bias: bool | str = False
    positions: int | None = None
    pattern: Pattern = Pattern.NONE
    defaults: Mapping[str, Any] = field(default_factory=dict)
    router_bias: bool = False
    expert_bias: bool = False
    correction: bool = False
    encoder: bool = False


GATED_DELTA = Family(
    "attention_bias", "attention_bias", qk_norm=QkNorm.HEAD, gated_queries=True, pattern=Pattern.NTH_ATTENTION,
    defaults={"head_dim": 256, "full_attention_interval": 4},
)  # fmt: skip
LLAMA = Family("attention_bias", "attention_bias", "mlp_bias")
MISTRAL = Family(pattern=Pattern.ALL, defaults={"sliding_window": 4096})
QWEN2 = Family(qkv_bias=True, pattern=Pattern.LATER)
QWEN3 = Family("attention_bias", "attention_bias", qk_norm=QkNorm.HEAD, pattern=Pattern.LATER)
GEMMA = Family("attention_bias", "attention_bias", tied=True, defaults={"head_dim": 256})
GEMMA2 = Family(
    "attention_bias", "attention_bias", norms=4, tied=True, pattern=Pattern.EVEN,
    defaults={"head_dim": 256, "sliding_window": 4096},
)  # fmt: skip
GEMMA3 = Family(
    "attention_bias", "attention_bias", norms=4, tied=True, qk_norm=QkNorm.HEAD, pattern=Pattern.NTH_FULL,
    defaults={
        "head_dim": 256, "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4,
        "sliding_window_pattern": 6, "max_position_embeddings": 131072, "sliding_window": 4096,
    },
)  # fmt: skip
DEEPSEEK2 = Family("attention_bias", "attention_bias")
DEEPSEEK3 = Family("attention_bias", "attention_bias", correction=True)
COHERE = Family(
    "attention_bias", "attention_bias", norms=1, tied=True, qk_norm=QkNorm.WIDTH, qk_key="use_qk_norm",
)  # fmt: skip
BERT = Family(
    True, True, True, gated=False, norm_bias=True, final_norm=False, tied=True, positions=0, encoder=True,
    defaults={"type_vocab_size": 2},
)  # fmt: skip
GRANITE_HYBRID = Family("attention_bias", "attention_bias", pattern=Pattern.LISTED)

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "ministral": MISTRAL,
    "ministral3": Family(pattern=Pattern.ALL),
    "mixtral": Family(pattern=Pattern.ALL),
    "qwen2": QWEN2,
    "qwen2_moe": QWEN2,
    "qwen2_vl_text": QWEN2,
    "qwen2_5_vl_text": QWEN2,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3,
    "qwen3_vl_text": QWEN3,
    "qwen3_vl_moe_text": QWEN3,
    "qwen3_next": GATED_DELTA,
    "qwen3_5_text": GATED_DELTA,
    "qwen3_5_moe_text": GATED_DELTA,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "phi3": Family(pattern=Pattern.ALL),
    "phi": Family(True, True, True, gated=False, norms=1, norm_bias=True, head_bias=True),
    "deepseek_v2": DEEPSEEK2,
    "deepseek_v3": DEEPSEEK3,
    "deepseek_v32": DEEPSEEK3,
    "kimi_k2": DEEPSEEK3,
    "gpt_oss": Family(
        True, True, sinks=True, router_bias=True, expert_bias=True, pattern=Pattern.EVEN,
        defaults={"attention_bias": True, "sliding_window": 128},
    ),
    "opt": Family(
        "enable_bias", "enable_bias", "enable_bias", gated=False, norm_bias=True, tied=True, positions=2,
        defaults={"enable_bias": True},
    ),
    "gpt2": Family(True, True, True, gated=False, norm_bias=True, tied=True, positions=0),
    "gpt_bigcode": Family(True, True, True, gated=False, norm_bias=True, tied=True, positions=0),
    "gpt_neox": Family(
        "attention_bias", "attention_bias", True, gated=False, norm_bias=True, defaults={"attention_bias": True},
    ),
    "gptj": Family(mlp_bias=True, gated=False, norms=1, norm_bias=True, head_bias=True),
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "starcoder2": Family(
        "use_bias", "use_bias", "use_bias", gated=False, norm_bias=True, tied=True, pattern=Pattern.ALL,
        defaults={"use_bias": True},
    ),
    "stablelm": Family("use_qkv_bias", norm_bias=True),
    "cohere": COHERE,
    "cohere2": Family(
        "attention_bias", "attention_bias", norms=1, tied=True, pattern=Pattern.NTH_FULL,
        defaults={"sliding_window_pattern": 4, "sliding_window": 4096},
    ),
    "olmo": Family("attention_bias", "attention_bias", norms=0, final_norm=False),
    "olmo2": Family("attention_bias", "attention_bias", qk_norm=QkNorm.WIDTH),
    "olmo3": Family(
        "attention_bias", "attention_bias", qk_norm=QkNorm.WIDTH, pattern=Pattern.NTH_FULL,
        defaults={"sliding_window_pattern": 4, "sliding_window": 4096},
    ),
    "olmoe": Family("attention_bias", "attention_bias", qk_norm=QkNorm.WIDTH, defaults={"num_experts": 64}),
    "granite": LLAMA,
    "granitemoe": Family("attention_bias", "attention_bias"),
    "granitemoehybrid": GRANITE_HYBRID,
    "smollm3": Family("attention_bias", "attention_bias", "mlp_bias", tied=True),
    "seed_oss": Family(
        "attention_bias", "attention_out_bias", "mlp_bias", defaults={"attention_bias": True, "head_dim": 128},
    ),
    "glm4": Family("attention_bias", norms=4, defaults={"attention_bias": True, "head_dim": 128}),
    "exaone4": Family(
        qk_norm=QkNorm.HEAD, pattern=Pattern.NTH_FULL, defaults={"sliding_window_pattern": 4, "sliding_window": 4096},
    ),
    "arcee": Family("attention_bias", "attention_bias", "mlp_bias", gated=False),
    "glm4_moe": Family(
        "attention_bias", qk_norm=QkNorm.HEAD, qk_key="use_qk_norm", correction=True, defaults={"head_dim": 128},
    ),
    "minimax_m2": Family(qk_norm=QkNorm.WIDTH, correction=True, defaults={"head_dim": 128}),
    "ernie4_5": Family("use_bias", "use_bias", "use_bias", tied=True, head_bias="use_bias", defaults={"head_dim": 128}),
    "ernie4_5_moe": Family("use_bias", "use_bias", "use_bias", tied=True, head_bias="use_bias", correction=True),
    "hunyuan_v1_dense": Family("attention_bias", "attention_bias", qk_norm=QkNorm.HEAD),
    "dots1": Family("attention_bias", "attention_bias", qk_norm=QkNorm.HEAD, correction=True),
    "nemotron_h": Family(
        mlp_bias="mlp_bias", gated=False, norms=1, correction=True, pattern=Pattern.HALVES,
        defaults={"use_conv_bias": True, "mamba_ssm_cache_dtype": "float32"},
    ),
    "jamba": Family(
        pattern=Pattern.PERIODIC,
        defaults={
            "attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2, "expert_layer_offset": 1,
            "num_experts": 16, "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2,
            "mamba_conv_bias": True,
        },
    ),
    "bamba": Family("attention_bias", "attention_bias", "mlp_bias", pattern=Pattern.LISTED),
    "lfm2": Family(tied=True, qk_norm=QkNorm.HEAD, pattern=Pattern.LISTED),
    "llama4_text": Family(
        "attention_bias", "attention_bias", pattern=Pattern.CHUNKED,
        defaults={"head_dim": 128, "interleave_moe_layer_step": 1},
    ),
}  # fmt: skip

# Multimodal models whose text_config has no model_type of its own.
TEXT_OF = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
}
