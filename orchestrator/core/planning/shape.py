"""A model's shape: all that its memory and its arithmetic follow from. ``shape_config`` reads it from a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.quantization import Quantization


class QkNorm(StrEnum):
    """Which norms queries and keys pass: none, one over a head, or one over all heads together."""

    NONE = "none"
    HEAD = "head"
    WIDTH = "width"


@dataclass(frozen=True, slots=True)
class Attention:
    """Multi-head, grouped-query or multi-query attention; which one is in the number of ``kv_heads``.

    ``window``: how many of the last tokens are attended to; 0 is all. ``gated``: queries carry a gate of their own
    width. ``cached`` is False in encoders, which keep no KV.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    gated: bool = False
    sinks: bool = False
    cached: bool = True


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1): one compressed vector a token for all heads.

    ``query_rank`` is 0 where queries aren't compressed; ``index_heads`` and ``index_dim`` are the sparse attention's
    indexer (DeepSeek-V3.2), 0 without one.
    """

    heads: int
    query_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    bias: bool = False
    index_heads: int = 0
    index_dim: int = 0


class StateKind(StrEnum):
    """What keeps a state of one size for each sequence, however long that is."""

    MAMBA1 = "mamba1"
    MAMBA2 = "mamba2"
    GATED_DELTA = "gated_delta"
    SHORT_CONV = "short_conv"


@dataclass(frozen=True, slots=True)
class State:
    """A mixer with a state a sequence instead of KV a token.

    ``heads * head_dim`` is the inner width; ``groups`` and ``size`` are groups of B and C and their state size
    (Mamba), or key heads and their dimension (gated delta net); ``rank`` is that of Mamba 1's time step.
    """

    kind: StateKind
    heads: int
    head_dim: int
    groups: int
    size: int
    kernel: int
    rank: int = 0
    conv_bias: bool = False
    bias: bool = False
    inner_norms: bool = False

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Dense:
    """A feed-forward layer; gated ones have a third matrix."""

    width: int
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed experts of ``width`` each, and ``shared_width`` of shared ones that every token passes.

    ``latent``: experts work in a space of this width instead of the hidden one; 0 without one.
    """

    count: int
    per_token: int
    width: int
    shared_width: int = 0
    shared_gate: bool = False
    shared_bias: bool = False
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    latent: int = 0
    correction: bool = False  # a bias for each expert that only steers the choice (DeepSeek-V3, 2024, section 2.1.2)


Mixer = Attention | Latent | State
FeedForward = Dense | Experts


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: what mixes tokens, what works on each (either may be missing), and its norms of the hidden width."""

    mixer: Mixer | None
    feed: FeedForward | None
    norms: int = 2
    norm_bias: bool = False


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The whole model, for language: other modalities' towers count as ``tower_parameters``.

    ``embedding`` is the tokens' own width where it isn't ``hidden``; ``positions`` and ``segments`` are rows of
    learned embeddings; ``drafts`` are layers of multi-token prediction, which checkpoints have and engines leave out
    unless asked. ``assumed`` says in words what config.json left open: with any, parameters are an estimate.
    """

    model_type: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    dtype: Precision
    max_length: int
    tied: bool = False
    embedding: int = 0
    positions: int = 0
    segments: int = 0
    embedding_norm: bool = False
    final_norm: bool = True
    norm_bias: bool = False
    has_head: bool = True
    head_bias: bool = False
    pooler: bool = False
    drafts: int = 0
    state_dtype: Precision | None = None
    quantization: Quantization | None = None
    tower_parameters: int = 0
    assumed: tuple[str, ...] = ()

    @property
    def embedding_width(self) -> int:
        return self.embedding or self.hidden

    @property
    def heads(self) -> int:
        """The most query heads of any layer; 0 without attention."""
        return max((mixer.heads for mixer in self._mixers if not isinstance(mixer, State)), default=0)

    @property
    def kv_heads(self) -> int:
        """The most KV heads of any layer; latent attention counts as one, which its cache is."""
        kinds = (mixer.kv_heads if isinstance(mixer, Attention) else 1 for mixer in self._mixers if _keeps_kv(mixer))
        return max(kinds, default=0)

    @property
    def latent(self) -> bool:
        return any(isinstance(mixer, Latent) for mixer in self._mixers)

    @property
    def experts(self) -> int:
        """The most routed experts of any layer; 0 in a dense model."""
        return max((layer.feed.count for layer in self.layers if isinstance(layer.feed, Experts)), default=0)

    @property
    def cached(self) -> bool:
        """Whether sequences hold memory while they run; not so in encoders."""
        return any(not isinstance(mixer, Attention) or mixer.cached for mixer in self._mixers)

    @property
    def _mixers(self) -> tuple[Mixer, ...]:
        return tuple(layer.mixer for layer in self.layers if layer.mixer is not None)


def _keeps_kv(mixer: Mixer) -> bool:
    return isinstance(mixer, Latent) or (isinstance(mixer, Attention) and mixer.cached)


Config = Mapping[str, Any]  # what a config.json holds
