"""A model's layers from its config.json: which kind each is, and its sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.fields import Fields
from orchestrator.core.planning.shape import Attention, Dense, Experts, FeedForward, Latent, Layer, Mixer, QkNorm
from orchestrator.core.planning.shape_families import Family, Pattern
from orchestrator.core.planning.shape_states import state_of

FULL, SLIDING, STATE, MLP, MOE = "full", "sliding", "state", "mlp", "moe"
LETTERS = {"M": STATE, "*": FULL, "-": MLP, "E": MOE}
# What transformers and models' own code call the kinds of layers.
KINDS = {
    "full_attention": FULL, "attention": FULL, "global": FULL, "chunked_attention": FULL, "full": FULL,
    "sliding_attention": SLIDING, "local": SLIDING, "sliding": SLIDING,
    "linear_attention": STATE, "mamba": STATE, "mamba2": STATE, "conv": STATE, "recurrent": STATE,
    "mlp": MLP, "moe": MOE,
}  # fmt: skip
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
KV_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num")
WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size")
EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")


def decided(choice: bool | str, fields: Fields) -> bool:
    """True or False, or what the key of that name says."""
    return fields.flag(choice) if isinstance(choice, str) else choice


def layers_of(model_type: str, family: Family, fields: Fields) -> tuple[Layer, ...]:
    """All layers, in order."""
    kinds = _kinds(family, fields)
    mixers: dict[str, Mixer] = {}
    for kind in set(kinds) - {MLP, MOE}:
        mixers[kind] = state_of(model_type, fields) if kind == STATE else _attention(family, fields, kind == SLIDING)
    dense, experts = _dense(model_type, family, fields), _experts(model_type, family, fields)
    if family.pattern is Pattern.HALVES:
        feeds = {MLP: dense, MOE: experts}
        return tuple(Layer(mixers.get(kind), feeds.get(kind), family.norms) for kind in kinds)
    routed = _routed(model_type, fields) if experts else ()
    return tuple(
        Layer(mixers[kind], experts if index in routed else dense, family.norms, family.norm_bias)
        for index, kind in enumerate(kinds)
    )


def _kinds(family: Family, fields: Fields) -> list[str]:
    listed = fields.words("layer_types", "layers_block_type")
    halves = family.pattern is Pattern.HALVES
    if halves and not listed:
        return _lettered(fields)
    count = len(listed) if halves else fields.positive(*LAYERS)
    if listed:
        if len(listed) < count:
            raise ConfigError(f"layer_types names {len(listed)} layers of {count}", where=fields.where)
        unknown = sorted({each for each in listed if each not in KINDS})
        if unknown:
            raise ConfigError(
                f"unknown kinds of layers {', '.join(unknown)}, known: {', '.join(KINDS)}", where=fields.where
            )
        return [KINDS[each] for each in listed[:count]]
    return [_kind(index, family.pattern, fields) for index in range(count)]


def _lettered(fields: Fields) -> list[str]:
    word = fields.get("hybrid_override_pattern")
    if not isinstance(word, str) or not word or set(word) - set(LETTERS):
        raise ConfigError(
            f"hybrid_override_pattern has to be a word of {' '.join(LETTERS)}, not {word!r}", where=fields.where
        )
    return [LETTERS[letter] for letter in word]


def _kind(index: int, pattern: Pattern, fields: Fields) -> str:
    windowed = bool(fields.get("sliding_window"))
    match pattern:
        case Pattern.ALL:
            return SLIDING if windowed else FULL
        case Pattern.EVEN:
            return SLIDING if windowed and index % 2 == 0 else FULL
        case Pattern.NTH_FULL:
            every = fields.get("sliding_window_pattern")
            if isinstance(every, str):  # EXAONE writes LLLG
                return SLIDING if windowed and every[index % len(every)] == "L" else FULL
            return SLIDING if windowed and (index + 1) % fields.positive("sliding_window_pattern") else FULL
        case Pattern.LATER:
            late = index >= fields.integer("max_window_layers", default=0)
            return SLIDING if windowed and fields.flag("use_sliding_window") and late else FULL
        case Pattern.PERIODIC:
            here = index % fields.positive("attn_layer_period") == fields.integer("attn_layer_offset")
            return FULL if here else STATE
        case Pattern.NTH_ATTENTION:
            return STATE if (index + 1) % fields.positive("full_attention_interval") else FULL
        case Pattern.LISTED:
            return FULL if index in _indices(fields, "attn_layer_indices", "full_attn_idxs") else STATE
        case _:
            return FULL


def _indices(fields: Fields, *names: str) -> Iterable[int]:
    value = fields.get(*names)
    return value if isinstance(value, list | tuple) else ()


def _attention(family: Family, fields: Fields, sliding: bool) -> Attention | Latent:
    if fields.get("kv_lora_rank") is not None:
        return _latent(family, fields)
    heads = fields.positive(*HEADS)
    kv_heads = 1 if fields.flag("multi_query") else fields.integer(*KV_HEADS, default=heads)
    hidden = fields.positive("hidden_size", "n_embd", "d_model", "dim")
    if heads % max(1, kv_heads):
        raise ConfigError(f"{heads} attention heads can't share {kv_heads} KV heads", where=fields.where)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", "hidden_size_per_head", default=0) or hidden // heads,
        window=fields.positive("sliding_window") if sliding else 0,
        qkv_bias=decided(family.qkv_bias, fields),
        out_bias=decided(family.out_bias, fields),
        qk_norm=family.qk_norm if not family.qk_key or fields.flag(family.qk_key) else QkNorm.NONE,
        gated=family.gated_queries,
        sinks=family.sinks,
        cached=not family.encoder,
    )


def _latent(family: Family, fields: Fields) -> Latent:
    return Latent(
        heads=fields.positive(*HEADS),
        query_rank=fields.integer("q_lora_rank", default=0),
        kv_rank=fields.positive("kv_lora_rank"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.positive("v_head_dim"),
        bias=decided(family.qkv_bias, fields),
        index_heads=fields.integer("index_n_heads", default=0),
        index_dim=fields.integer("index_head_dim", default=0),
    )


def _dense(model_type: str, family: Family, fields: Fields) -> FeedForward:
    bias = decided(family.mlp_bias, fields)
    hidden = fields.positive("hidden_size", "n_embd", "d_model", "dim")
    if model_type == "granitemoehybrid":
        return Dense(fields.positive("shared_intermediate_size"), family.gated, bias)
    if model_type == "llama4_text":
        return Dense(fields.positive("intermediate_size_mlp", "intermediate_size"), family.gated, bias)
    width = fields.integer(*WIDTHS, default=0 if family.gated else 4 * hidden)
    if model_type == "lfm2" and fields.flag("block_auto_adjust_ff_dim", default=True):
        width = int((fields.get("block_ffn_dim_multiplier") or 1.0) * int(2 * width / 3))
        unit = fields.integer("block_multiple_of", default=256)
        width = -(-width // unit) * unit
    return Dense(width or fields.positive(*WIDTHS), family.gated, bias)


def _experts(model_type: str, family: Family, fields: Fields) -> Experts | None:
    count = fields.integer(*EXPERTS, default=0)
    if count == 0:
        return None
    width = fields.positive("moe_intermediate_size", "intermediate_size", "ffn_dim")
    names = ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size")
    shared = fields.integer(*names, default=0)
    shared = shared or fields.integer("n_shared_experts", "moe_num_shared_experts", default=0) * width
    if model_type == "llama4_text":
        shared = width
    return Experts(
        count=count,
        per_token=fields.integer("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", default=1),
        width=width,
        shared_width=shared,
        shared_gate=fields.get("shared_expert_intermediate_size") is not None and shared > 0,
        shared_bias=decided(family.mlp_bias, fields),
        gated=family.gated,
        bias=family.expert_bias,
        router_bias=family.router_bias,
        latent=fields.integer("moe_latent_size", default=0),
        correction=family.correction,
    )


def _marked(marks: Sequence[object], count: int, where: str) -> frozenset[int]:
    """Layers that a list marks with 1."""
    if len(marks) != count or not all(mark in (0, 1) for mark in marks):
        raise ConfigError(f"moe_layer_freq has to be a number, or 0 or 1 for each of the {count} layers", where=where)
    return frozenset(index for index, mark in enumerate(marks) if mark)


def _routed(model_type: str, fields: Fields) -> frozenset[int]:
    """Layers that have experts."""
    count = fields.positive(*LAYERS)
    listed = _indices(fields, "moe_layers")
    if listed:
        return frozenset(listed)
    if isinstance(fields.get("moe_layer_freq"), list):
        return _marked(fields.get("moe_layer_freq"), count, fields.where)
    first = fields.integer("first_k_dense_replace", "moe_layer_start_index", default=0)
    steps = ("moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval")
    step = fields.integer(*steps, default=1) or 1
    dense = frozenset(_indices(fields, "mlp_only_layers"))
    if model_type == "jamba":
        period, offset = fields.positive("expert_layer_period"), fields.integer("expert_layer_offset")
        return frozenset(index for index in range(count) if index % period == offset)
    if model_type.startswith("deepseek"):
        return frozenset(index for index in range(first, count) if index % step == 0)
    return frozenset(index for index in range(first, count) if (index + 1) % step == 0 and index not in dense)
