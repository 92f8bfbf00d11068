"""config.json of public models, as far as sizes follow from it, and small ones of every family."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

LLAMA_3_8B: Config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "attention_bias": False, "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA_3_70B: Config = LLAMA_3_8B | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
}  # fmt: skip
LLAMA_31_405B: Config = LLAMA_3_8B | {
    "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
    "max_position_embeddings": 131072,
    "rope_scaling": {"factor": 8.0, "rope_type": "llama3", "original_max_position_embeddings": 8192},
}  # fmt: skip
LLAMA_2_7B: Config = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    "torch_dtype": "float16", "tie_word_embeddings": False,
}  # fmt: skip
SMOLLM2_135M: Config = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip
MISTRAL_7B: Config = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTRAL_8X7B: Config = MISTRAL_7B | {
    "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip
QWEN25_7B: Config = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072,
    "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_8B: Config = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": False, "attention_bias": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_30B_A3B: Config = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "vocab_size": 151936, "max_position_embeddings": 40960, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN15_MOE_A27B: Config = {
    "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "decoder_sparse_step": 1,
    "vocab_size": 151936, "max_position_embeddings": 8192, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21,
}  # fmt: skip
GEMMA_2_9B: Config = {
    "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
    "max_position_embeddings": 8192, "sliding_window": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA_3_4B: Config = {
    "model_type": "gemma3", "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
        "model_type": "siglip_vision_model",
    },
}  # fmt: skip
PHI_3_MINI: Config = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
    "sliding_window": 2047, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK_V2_LITE: Config = {
    "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
    "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64,
    "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 102400, "max_position_embeddings": 163840, "tie_word_embeddings": False, "attention_bias": False,
    "torch_dtype": "bfloat16",
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
}  # fmt: skip
DEEPSEEK_V3: Config = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 129280, "max_position_embeddings": 163840, "tie_word_embeddings": False, "attention_bias": False,
    "num_nextn_predict_layers": 1, "torch_dtype": "bfloat16",
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    },
}  # fmt: skip
GPT_OSS_20B: Config = {
    "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32,
    "num_experts_per_tok": 4, "vocab_size": 201088, "max_position_embeddings": 131072, "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "attention_bias": True, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
        ],
    },
}  # fmt: skip
JAMBA: Config = {
    "model_type": "jamba", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_experts": 16, "num_experts_per_tok": 2,
    "attn_layer_offset": 4, "attn_layer_period": 8, "expert_layer_offset": 1, "expert_layer_period": 2,
    "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_dt_rank": 256, "mamba_expand": 2, "mamba_conv_bias": True,
    "mamba_proj_bias": False, "vocab_size": 65536, "max_position_embeddings": 262144, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_NEXT_80B: Config = {
    "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "num_hidden_layers": 48, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "num_experts": 512, "num_experts_per_tok": 10,
    "decoder_sparse_step": 1, "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 262144, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
GPT2: Config = {
    "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
OPT_125M: Config = {
    "model_type": "opt", "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 768, "do_layer_norm_before": True,
    "torch_dtype": "float16",
}  # fmt: skip
PYTHIA_70M: Config = {
    "model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
    "num_attention_heads": 8, "vocab_size": 50304, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "torch_dtype": "float16",
}  # fmt: skip
BERT_BASE: Config = {
    "model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
GPTQ: Config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ: Config = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}

# Parameters as the models' own pages state them (safetensors' totals, multi-token prediction left out).
PARAMETERS = {
    "Llama 3 8B": (LLAMA_3_8B, 8_030_261_248),
    "Llama 3 70B": (LLAMA_3_70B, 70_553_706_496),
    "Llama 3.1 405B": (LLAMA_31_405B, 405_853_388_800),
    "Llama 2 7B": (LLAMA_2_7B, 6_738_415_616),
    "SmolLM2 135M": (SMOLLM2_135M, 134_515_008),
    "Mistral 7B": (MISTRAL_7B, 7_241_732_096),
    "Mixtral 8x7B": (MIXTRAL_8X7B, 46_702_792_704),
    "Qwen2.5 7B": (QWEN25_7B, 7_615_616_512),
    "Qwen3 8B": (QWEN3_8B, 8_190_735_360),
    "Qwen3 30B A3B": (QWEN3_30B_A3B, 30_532_122_624),
    "Qwen1.5 MoE A2.7B": (QWEN15_MOE_A27B, 14_315_784_192),
    "Gemma 2 9B": (GEMMA_2_9B, 9_241_705_984),
    "Phi 3 mini": (PHI_3_MINI, 3_821_079_552),
    "DeepSeek V2 Lite": (DEEPSEEK_V2_LITE, 15_706_484_224),
    "DeepSeek V3": (DEEPSEEK_V3, 671_026_419_200),
    "gpt-oss 20B": (GPT_OSS_20B, 20_914_757_184),
    "Jamba": (JAMBA, 51_570_323_328),
    "GPT-2": (GPT2, 124_439_808),
    "OPT 125M": (OPT_125M, 125_239_296),
    "Pythia 70M": (PYTHIA_70M, 70_426_624),
    "BERT base": (BERT_BASE, 109_482_240),
}

# A small model of every family, for comparison with transformers' own.
SMALL = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 128,
}  # fmt: skip
WIDE = SMALL | {"head_dim": 32}  # where heads have a width of their own
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
SHARED = {
    "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT = SHARED | {
    "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
MAMBA2 = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_d_conv": 4,
    "mamba_expand": 2,
}  # fmt: skip
NEMOTRON = {key: value for key, value in WIDE.items() if key != "num_hidden_layers"} | {
    "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8, "conv_kernel": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_shared_experts": 1,
    "moe_shared_expert_intermediate_size": 56,
}  # fmt: skip
OLD = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 320}
FAMILIES: dict[str, Config] = {
    "llama": WIDE,
    "llama with biases": WIDE | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": WIDE | {"sliding_window": 32},
    "ministral": WIDE | {"sliding_window": 32},
    "mixtral": WIDE | {"num_local_experts": 4, "sliding_window": None},
    "qwen2": SMALL,
    "qwen3": WIDE,
    "qwen2_moe": SMALL | ROUTED | {"shared_expert_intermediate_size": 96, "decoder_sparse_step": 2},
    "qwen3_moe": WIDE | ROUTED | {"mlp_only_layers": [1]},
    "qwen3_next": WIDE | ROUTED | DELTA | {"shared_expert_intermediate_size": 96},
    "qwen3_5_text": WIDE | DELTA,
    "qwen3_5_moe_text": WIDE | ROUTED | DELTA | {"shared_expert_intermediate_size": 96},
    "gemma": WIDE,
    "gemma2": WIDE,
    "gemma3_text": WIDE,
    "phi3": SMALL | {"sliding_window": 32, "pad_token_id": 0},
    "phi": SMALL,
    "deepseek_v2": WIDE | LATENT,
    "deepseek_v2 without a query rank": WIDE | LATENT | {"model_type": "deepseek_v2", "q_lora_rank": None},
    "deepseek_v3": WIDE | LATENT,
    "gpt_oss": WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "opt": {
        "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 320,
        "max_position_embeddings": 128, "word_embed_proj_dim": 32,
    },
    "gpt2": OLD,
    "gpt_bigcode": OLD | {"multi_query": True},
    "gpt_neox": SMALL | {"num_key_value_heads": 4},
    "gptj": OLD | {"rotary_dim": 8},
    "bert": SMALL | {"num_key_value_heads": 4},
    "roberta": SMALL | {"num_key_value_heads": 4},
    "starcoder2": SMALL,
    "stablelm": SMALL,
    "cohere": SMALL | {"use_qk_norm": True},
    "cohere2": SMALL | {"num_attention_heads": 8},
    "olmo": SMALL,
    "olmo2": SMALL,
    "olmo3": SMALL,
    "olmoe": SMALL | {"num_experts": 4},
    "granite": SMALL,
    "granitemoe": SMALL | {"num_local_experts": 4},
    "granitemoehybrid": SMALL | MAMBA2 | {
        "num_local_experts": 4, "shared_intermediate_size": 96,
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
    },
    "smollm3": SMALL | {"pad_token_id": 0},
    "seed_oss": WIDE,
    "glm4": WIDE | {"pad_token_id": 0},
    "exaone4": SMALL,
    "arcee": WIDE,
    "jamba": SMALL | {"num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 2},
    "bamba": SMALL | MAMBA2 | {"attn_layer_indices": [1, 3]},
    "lfm2": SMALL | {"full_attn_idxs": [1, 3], "conv_L_cache": 3},
    "glm4_moe": WIDE | SHARED | {"use_qk_norm": True, "attention_bias": True},
    "minimax_m2": WIDE | {"num_local_experts": 4},
    "ernie4_5": WIDE,
    "ernie4_5_moe": SMALL | {
        "moe_intermediate_size": 48, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1, "use_bias": True,
    },
    "hunyuan_v1_dense": WIDE,
    "dots1": WIDE | SHARED,
    "nemotron_h": NEMOTRON | {"hybrid_override_pattern": "M-ME*-"},
    "nemotron_h with a latent space": NEMOTRON | {"hybrid_override_pattern": "ME*E", "moe_latent_size": 24},
    "llama4_text": WIDE | {"intermediate_size_mlp": 160, "num_local_experts": 4, "interleave_moe_layer_step": 2},
}  # fmt: skip

# Bytes in bfloat16 that vLLM's (0.32) own models of these families hold on each of 1, 2 and 4 tensor-parallel devices.
HELD: dict[str, tuple[int, ...]] = {
    "llama": (451712, 226432, 130176),
    "mistral": (451712, 226432, 130176),
    "qwen2": (354432, 177792, 97792),
    "qwen3": (452224, 226944, 130688),
    "qwen2_moe": (490880, 246656, 132864),
    "gemma2": (411776, 206976, 120960),
    "gemma3_text": (412288, 207488, 121472),
    "phi3": (353408, 177280, 97408),
    "opt": (246400, 136896, 82144),
    "gpt2": (357504, 188224, 103584),
    "gpt_neox": (333440, 168384, 85856),
    "starcoder2": (259200, 131264, 75616),
    "cohere2": (295552, 148096, 78464),
    "olmo2": (354176, 178048, 98176),
    "granite": (353408, 177280, 97408),
    "glm4": (454784, 228480, 131968),
    "jamba": (734808, 368600, 187544),
    "mixtral": (969856, 486528, 261248),
    "qwen3_moe": (545920, 274560, 155264),
    "deepseek_v2": (576576, 306240, 171072),
    "qwen3_next": (685200, 344568),
    "llama4_text": (833664, 417920, 226432),
    "glm4_moe": (658584, 330904, 183704),
    "olmoe": (872320, 438144, 229248),
    "granitemoe": (871552, 437376, 228480),
    "granitemoehybrid": (1113808, 558504),
}
