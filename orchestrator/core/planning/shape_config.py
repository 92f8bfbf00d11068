"""A ``ModelShape`` from the dict of a config.json, as Hugging Face's transformers writes it.

A family that isn't known is counted as Llama's blocks with the numbers that config.json gives, and the result says so
(``ModelShape.assumed``): engines serve new families before any planner knows them, the large matrices are told by
their sizes, and a checkpoint's own total corrects the rest. Without those sizes it is a ConfigError.
"""

from __future__ import annotations

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.fields import Fields
from orchestrator.core.planning.quantization_config import quantization_of
from orchestrator.core.planning.shape import Config, Layer, ModelShape
from orchestrator.core.planning.shape_families import FAMILIES, LLAMA, TEXT_OF, Family
from orchestrator.core.planning.shape_layers import decided, layers_of

TEXT_KEYS = ("text_config", "llm_config", "language_config")
TOWER_KEYS = ("vision_config", "audio_config")
UNSCALED_ROPE = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "mrope", "default", "dynamic_ntk_by_parts")
DTYPES = {"float32": Precision.FP32, "float": Precision.FP32, "bfloat16": Precision.BF16, "float16": Precision.FP16,
          "half": Precision.FP16, "float8_e4m3fn": Precision.FP8}  # fmt: skip
UNKNOWN_LENGTH = 2048  # what vLLM takes where config.json has no length


def shape_of(config: Config, where: str = "config.json") -> ModelShape:
    """The shape that a config.json describes; ConfigError, at ``where``, if it lacks what sizes follow from."""
    outer = Fields(config, where)
    inner = next((found for key in TEXT_KEYS if (found := outer.inner(key))), None)
    model_type = str((inner.get("model_type") if inner else None) or outer.get("model_type") or "")
    model_type = TEXT_OF.get(model_type, model_type)
    family = FAMILIES.get(model_type, LLAMA)
    values = {**inner.items()} if inner else {**config}
    fields = Fields(values, inner.where if inner else where, family.defaults)
    if fields.flag("is_encoder_decoder"):
        raise ConfigError("models of an encoder and a decoder can't be sized", where=where)
    assumed = [] if model_type in FAMILIES else [_unknown(model_type)]
    towers = _towers(outer)
    if towers:
        assumed.append(f"the towers for other inputs are taken to have {towers / 1e9:.2f} billion parameters")
    layers = layers_of(model_type, family, fields)
    return _shape(model_type, family, fields, outer, layers, towers, tuple(assumed))


def _shape(
    model_type: str,
    family: Family,
    fields: Fields,
    outer: Fields,
    layers: tuple[Layer, ...],
    towers: int,
    assumed: tuple[str, ...],
) -> ModelShape:
    hidden = fields.positive("hidden_size", "n_embd", "d_model", "dim")
    width = fields.integer("word_embed_proj_dim", "embedding_size", default=0)
    tied = fields.get("tie_word_embeddings")
    tied = outer.get("tie_word_embeddings") if tied is None else tied
    learned = family.positions is not None
    rows = fields.positive("max_position_embeddings", "n_positions") if learned else 0
    state_dtype = fields.get("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    before = fields.flag("do_layer_norm_before", default=True) and not fields.flag("_remove_final_layer_norm")
    return ModelShape(
        model_type=model_type,
        hidden=hidden,
        vocabulary=fields.positive("vocab_size", "padded_vocab_size"),
        layers=layers,
        dtype=_dtype(fields, outer),
        max_length=_length(fields),
        tied=family.tied if tied is None else bool(tied),
        embedding=width if width != hidden else 0,
        positions=rows + (family.positions or 0) if learned else 0,
        segments=fields.integer("type_vocab_size", default=0) if family.encoder else 0,
        embedding_norm=family.encoder,
        final_norm=family.final_norm and before,
        norm_bias=family.norm_bias,
        has_head=not family.encoder,
        head_bias=decided(family.head_bias, fields),
        pooler=family.encoder,
        drafts=fields.integer("num_nextn_predict_layers", "mtp_num_hidden_layers", default=0),
        state_dtype=DTYPES.get(str(state_dtype)) if state_dtype else None,
        quantization=quantization_of(_quantization(fields, outer)),
        tower_parameters=towers,
        assumed=assumed,
    )


def _unknown(model_type: str) -> str:
    name = f"the family {model_type!r} is" if model_type else "config.json names no model_type, so the family is"
    return f"{name} not known: counted as Llama's blocks of the same sizes"


def _quantization(fields: Fields, outer: Fields) -> Fields | None:
    names = ("quantization_config", "compression_config")
    return outer.inner(*names) or fields.inner(*names)


def _dtype(fields: Fields, outer: Fields) -> Precision:
    """float32 where none is named, as in vLLM and transformers."""
    name = fields.get("dtype", "torch_dtype") or outer.get("dtype", "torch_dtype") or "float32"
    precision = DTYPES.get(str(name).removeprefix("torch."))
    if precision is None:
        raise ConfigError(f"unknown dtype {name!r}, known: {', '.join(DTYPES)}", where=fields.where)
    return precision


def _length(fields: Fields) -> int:
    """The longest sequence in tokens, as vLLM derives it: the shortest of the limits, times the scaling of RoPE.

    A YaRN or Llama 3 scaling is in the limit already; a LongRoPE model gets its length before scaling.
    """
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "seq_len")
    found = [fields.positive(name) for name in names if fields.get(name) is not None]
    length = fields.integer("model_max_length", default=0) or min(found, default=UNKNOWN_LENGTH)
    scaling = fields.inner("rope_scaling") or fields.inner("rope_parameters")
    kind = str(scaling.get("rope_type", "type") or "default") if scaling else "default"
    if kind == "longrope":
        within = scaling.integer("original_max_position_embeddings", default=length) if scaling else length
        return fields.integer("original_max_position_embeddings", default=within)
    factor = scaling.get("factor") if scaling and kind not in UNSCALED_ROPE else None
    scales = isinstance(factor, int | float) and "gemma3" not in str(fields.get("model_type"))
    return int(length * factor) if scales and factor is not None else length


def _towers(outer: Fields) -> int:
    """Parameters of other modalities' encoders: transformer blocks of four attention and two feed-forward matrices."""
    total = 0
    for key in TOWER_KEYS:
        tower = outer.inner(key)
        if tower is None:
            continue
        width = tower.integer("hidden_size", "embed_dim", "d_model", default=0)
        wide = tower.integer("intermediate_size", "encoder_ffn_dim", default=4 * width)
        depth = tower.integer("num_hidden_layers", "depth", "encoder_layers", default=0)
        total += depth * (4 * width * width + 2 * width * wide)
    return total
