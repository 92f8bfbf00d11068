"""Every weight of a model as a table: its name in checkpoints, its size, and how tensor parallelism cuts it.

The cuts are those of Megatron-LM (Shoeybi et al., 2019, section 3), as vLLM makes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from orchestrator.core.planning.shape import (
    Attention,
    Dense,
    Experts,
    Latent,
    Layer,
    ModelShape,
    QkNorm,
    State,
    StateKind,
)


class Split(StrEnum):
    """What each device of a tensor-parallel group has of a matrix."""

    WHOLE = "whole"
    OUT = "out"  # a share of the outputs, and of the bias
    IN = "in"  # a share of the inputs, and all of the bias
    KV = "kv"  # a share of the KV heads, at least one
    VOCABULARY = "vocabulary"  # a share of the outputs, which are filled up to a multiple of 64 before


@dataclass(frozen=True, slots=True)
class Matrix:
    """``inputs`` by ``outputs`` numbers, ``experts`` times if it is one of routed experts.

    ``linear``: a format of quantization means it; ``heads``: KV heads that its outputs are of; ``held``: engines make
    it from another one, so that no checkpoint has it and no parameter count includes it.
    """

    name: str
    inputs: int
    outputs: int
    split: Split = Split.WHOLE
    bias: bool = False
    linear: bool = True
    experts: int = 0
    heads: int = 0
    held: bool = False

    @property
    def parameters(self) -> int:
        return 0 if self.held else (self.inputs + self.bias) * self.outputs * max(1, self.experts)


def vector(name: str, size: int, split: Split = Split.WHOLE) -> Matrix:
    """What is never quantized: a norm, a bias of its own."""
    return Matrix(name, 1, size, split, linear=False)


@lru_cache(maxsize=1024)
def layer_matrices(layer: Layer, hidden: int) -> tuple[Matrix, ...]:
    """All weights of one block."""
    found = [Matrix(f"norm_{index}", 1, hidden, bias=layer.norm_bias, linear=False) for index in range(layer.norms)]
    match layer.mixer:
        case Attention():
            found += _attention(layer.mixer, hidden)
        case Latent():
            found += _latent(layer.mixer, hidden)
        case State():
            found += _state(layer.mixer, hidden)
        case None:
            pass
    match layer.feed:
        case Dense():
            found += _feed_forward("mlp", hidden, layer.feed.width, layer.feed.gated, layer.feed.bias)
        case Experts():
            found += _experts(layer.feed, hidden)
        case None:
            pass
    return tuple(found)


def _attention(mixer: Attention, hidden: int) -> Iterator[Matrix]:
    queries, keys = mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim
    gated = 2 if mixer.gated else 1
    yield Matrix("self_attn.q_proj", hidden, queries * gated, Split.OUT, mixer.qkv_bias)
    for name in ("self_attn.k_proj", "self_attn.v_proj"):
        yield Matrix(name, hidden, keys, Split.KV, mixer.qkv_bias, heads=mixer.kv_heads)
    yield Matrix("self_attn.o_proj", queries, hidden, Split.IN, mixer.out_bias)
    if mixer.qk_norm is QkNorm.HEAD:
        yield vector("self_attn.qk_norm", 2 * mixer.head_dim)
    elif mixer.qk_norm is QkNorm.WIDTH:
        yield vector("self_attn.qk_norm", queries + keys)
    if mixer.sinks:
        yield vector("self_attn.sinks", mixer.heads, Split.OUT)


def _latent(mixer: Latent, hidden: int) -> Iterator[Matrix]:
    queries = mixer.heads * (mixer.nope_dim + mixer.rope_dim)
    if mixer.query_rank:
        yield Matrix("self_attn.q_a_proj", hidden, mixer.query_rank, bias=mixer.bias)
        yield vector("self_attn.q_a_layernorm", mixer.query_rank)
        yield Matrix("self_attn.q_b_proj", mixer.query_rank, queries, Split.OUT)
    else:
        yield Matrix("self_attn.q_proj", hidden, queries, Split.OUT)
    yield Matrix("self_attn.kv_a_proj_with_mqa", hidden, mixer.kv_rank + mixer.rope_dim, bias=mixer.bias)
    yield vector("self_attn.kv_a_layernorm", mixer.kv_rank)
    expanded = mixer.heads * (mixer.nope_dim + mixer.value_dim)
    yield Matrix("self_attn.kv_b_proj", mixer.kv_rank, expanded, Split.OUT)
    # vLLM keeps kv_b_proj a second time, unquantized and by head, for decoding in the latent space.
    yield Matrix("self_attn.absorbed", mixer.kv_rank, expanded, Split.OUT, linear=False, held=True)
    yield Matrix("self_attn.o_proj", mixer.heads * mixer.value_dim, hidden, Split.IN, mixer.bias)
    if mixer.index_heads:
        inputs = mixer.query_rank or hidden
        yield Matrix("self_attn.indexer.wq_b", inputs, mixer.index_heads * mixer.index_dim)
        yield Matrix("self_attn.indexer.wk", hidden, mixer.index_dim)
        yield Matrix("self_attn.indexer.k_norm", 1, mixer.index_dim, bias=True, linear=False)
        yield Matrix("self_attn.indexer.weights_proj", hidden, mixer.index_heads, linear=False)


def _state(mixer: State, hidden: int) -> Iterator[Matrix]:
    inner, shared = mixer.inner, 2 * mixer.groups * mixer.size
    match mixer.kind:
        case StateKind.MAMBA1:
            yield from _mamba1(mixer, hidden)
        case StateKind.MAMBA2:
            yield Matrix("mamba.in_proj", hidden, 2 * inner + shared + mixer.heads, Split.OUT, mixer.bias)
            yield _convolution("mamba.conv1d", inner + shared, mixer)
            yield vector("mamba.dt_bias_A_D", 3 * mixer.heads, Split.OUT)
            yield vector("mamba.norm", inner, Split.OUT)
            yield Matrix("mamba.out_proj", inner, hidden, Split.IN, mixer.bias)
        case StateKind.GATED_DELTA:
            yield Matrix("linear_attn.in_proj_qkvz", hidden, shared + 2 * inner, Split.OUT)
            yield Matrix("linear_attn.in_proj_ba", hidden, 2 * mixer.heads, Split.OUT)
            yield _convolution("linear_attn.conv1d", shared + inner, mixer)
            yield vector("linear_attn.dt_bias_A", 2 * mixer.heads, Split.OUT)
            yield vector("linear_attn.norm", mixer.head_dim)
            yield Matrix("linear_attn.out_proj", inner, hidden, Split.IN)
        case StateKind.SHORT_CONV:
            yield Matrix("conv.in_proj", hidden, 3 * inner, Split.OUT, mixer.bias)
            yield _convolution("conv.conv", inner, mixer)
            yield Matrix("conv.out_proj", inner, hidden, Split.IN, mixer.bias)


def _mamba1(mixer: State, hidden: int) -> Iterator[Matrix]:
    inner = mixer.inner
    yield Matrix("mamba.in_proj", hidden, 2 * inner, Split.OUT, mixer.bias)
    yield _convolution("mamba.conv1d", inner, mixer)
    yield Matrix("mamba.x_proj", inner, mixer.rank + 2 * mixer.size, Split.IN)
    yield Matrix("mamba.dt_proj", mixer.rank, inner, Split.OUT, bias=True)
    yield Matrix("mamba.A_log", mixer.size, inner, Split.OUT, linear=False)
    yield vector("mamba.D", inner, Split.OUT)
    yield Matrix("mamba.out_proj", inner, hidden, Split.IN, mixer.bias)
    if mixer.inner_norms:
        yield vector("mamba.norms", mixer.rank + 2 * mixer.size)


def _convolution(name: str, channels: int, mixer: State) -> Matrix:
    return Matrix(name, mixer.kernel, channels, Split.OUT, mixer.conv_bias, linear=False)


def _feed_forward(name: str, hidden: int, width: int, gated: bool, bias: bool, experts: int = 0) -> Iterator[Matrix]:
    for side in ("gate_proj", "up_proj") if gated else ("up_proj",):
        yield Matrix(f"{name}.{side}", hidden, width, Split.OUT, bias, experts=experts)
    yield Matrix(f"{name}.down_proj", width, hidden, Split.IN, bias, experts=experts)


def _experts(feed: Experts, hidden: int) -> Iterator[Matrix]:
    yield Matrix("mlp.gate", hidden, feed.count, bias=feed.router_bias, linear=False)
    if feed.correction:
        yield vector("mlp.gate.e_score_correction_bias", feed.count)
    if feed.latent:
        yield Matrix("mlp.fc1_latent_proj", hidden, feed.latent)
        yield Matrix("mlp.fc2_latent_proj", feed.latent, hidden)
    yield from _feed_forward("mlp.experts.0", feed.latent or hidden, feed.width, feed.gated, feed.bias, feed.count)
    if feed.shared_width:
        yield from _feed_forward("mlp.shared_experts", hidden, feed.shared_width, feed.gated, feed.shared_bias)
    if feed.shared_gate:
        yield Matrix("mlp.shared_expert_gate", hidden, 1, linear=False)


def embedding_matrices(shape: ModelShape) -> tuple[Matrix, ...]:
    """What turns tokens into vectors: on the first stage."""
    width = shape.embedding_width
    found = [Matrix("model.embed_tokens", width, shape.vocabulary, Split.VOCABULARY, linear=False)]
    for name, rows in (("model.embed_positions", shape.positions), ("model.embed_segments", shape.segments)):
        if rows:
            found.append(Matrix(name, rows, shape.hidden, linear=False))
    if shape.embedding_norm:
        found.append(Matrix("model.embed_norm", 1, shape.hidden, bias=shape.norm_bias, linear=False))
    if shape.embedding:
        found.append(Matrix("model.project_in", width, shape.hidden, linear=False))
    return tuple(found)


def output_matrices(shape: ModelShape) -> tuple[Matrix, ...]:
    """What turns vectors into scores, without the head: on the last stage."""
    found = []
    if shape.final_norm:
        found.append(Matrix("model.norm", 1, shape.hidden, bias=shape.norm_bias, linear=False))
    if shape.embedding:
        found.append(Matrix("model.project_out", shape.hidden, shape.embedding_width, linear=False))
    if shape.pooler:
        found.append(Matrix("pooler", shape.hidden, shape.hidden, bias=True))
    return tuple(found)


def head_matrices(shape: ModelShape) -> tuple[Matrix, ...]:
    """The head, if it isn't the embedding itself; its bias is there in any case."""
    if not shape.has_head:
        return ()
    found = []
    if not shape.tied:
        found.append(Matrix("lm_head", shape.embedding_width, shape.vocabulary, Split.VOCABULARY))
    if shape.head_bias:
        found.append(Matrix("lm_head.bias", 1, shape.vocabulary, Split.VOCABULARY, linear=False))
    return tuple(found)
