"""Mixers with a state a sequence, from config.json."""

from __future__ import annotations

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.fields import Fields
from orchestrator.core.planning.shape import State, StateKind

RANK_SHARE = 16  # Mamba 1's time step has the hidden size over this, rounded up, where config.json says "auto"


def state_of(model_type: str, fields: Fields) -> State:
    """The state of a model's mixers without attention; ConfigError where config.json has none that is known."""
    hidden = fields.positive("hidden_size", "d_model")
    if fields.get("linear_num_value_heads") is not None:
        return State(
            StateKind.GATED_DELTA,
            heads=fields.positive("linear_num_value_heads"),
            head_dim=fields.positive("linear_value_head_dim"),
            groups=fields.positive("linear_num_key_heads"),
            size=fields.positive("linear_key_head_dim"),
            kernel=fields.positive("linear_conv_kernel_dim"),
        )
    if fields.get("conv_L_cache") is not None:
        bias = fields.flag("conv_bias")
        kernel = fields.positive("conv_L_cache")
        return State(StateKind.SHORT_CONV, hidden, 1, 0, 0, kernel, conv_bias=bias, bias=bias)
    if fields.get("mamba_n_heads", "mamba_num_heads") is not None:
        return _mamba2(fields, hidden)
    if fields.get("mamba_d_state") is not None:
        return _mamba1(model_type, fields, hidden)
    raise ConfigError("layers without attention, of no kind that is known here", where=fields.where)


def _mamba1(model_type: str, fields: Fields, hidden: int) -> State:
    rank = fields.get("mamba_dt_rank")
    return State(
        StateKind.MAMBA1,
        heads=fields.positive("mamba_expand") * hidden,
        head_dim=1,
        groups=1,
        size=fields.positive("mamba_d_state"),
        kernel=fields.positive("mamba_d_conv"),
        rank=rank if isinstance(rank, int) else -(-hidden // RANK_SHARE),
        conv_bias=fields.flag("mamba_conv_bias", default=True),
        bias=fields.flag("mamba_proj_bias"),
        inner_norms=model_type == "jamba",
    )


def _mamba2(fields: Fields, hidden: int) -> State:
    heads = fields.positive("mamba_n_heads", "mamba_num_heads")
    width = fields.get("mamba_d_head", "mamba_head_dim")
    inner = int(float(fields.get("mamba_expand") or 2) * hidden)
    return State(
        StateKind.MAMBA2,
        heads=heads,
        head_dim=width if isinstance(width, int) else inner // heads,
        groups=fields.positive("mamba_n_groups", "n_groups"),
        size=fields.positive("mamba_d_state", "ssm_state_size"),
        kernel=fields.positive("mamba_d_conv", "conv_kernel"),
        conv_bias=fields.flag("mamba_conv_bias", "use_conv_bias", default=True),
        bias=fields.flag("use_bias", "mamba_proj_bias"),
    )
