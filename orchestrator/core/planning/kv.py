"""What sequences hold while they run: KV of tokens, states, and the blocks that vLLM deals both out in.

vLLM (0.32) gives all layers of a kind one block table. With several kinds it makes groups of equally many layers, each
with a table of its own, over one pool of blocks that are as large as a group's layers need; ``pool_of`` does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise

from orchestrator.core.planning.cut import Cut, stage_layers
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.shape import Attention, Latent, Mixer, ModelShape, State, StateKind
from orchestrator.core.planning.weights import BYTES

INDEX_GROUP = 128  # numbers of an indexer's key that share a 32-bit scale (DeepSeek-V3.2)
EVEN_GROUPS = 1.5  # kinds whose numbers of layers are closer than this are filled up to the larger one, as in vLLM
LATENT_STEP = 128  # tokens that blocks of latent attention are a multiple of beside states


@dataclass(frozen=True, slots=True)
class CacheKept:
    """What KV and states are kept in; ``state`` is the recurrent part's own type, which some models want wider."""

    kv: Precision
    dtype: Precision
    state: Precision


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one layer keeps on one device: bytes a token, of the last ``window`` tokens if there is one, or a state."""

    token: int = 0
    window: int = 0
    state: int = 0

    def bytes(self, length: int) -> int:
        """Of a sequence of ``length`` tokens."""
        return self.state + self.token * (min(length, self.window) if self.window else length)


def layer_cache(mixer: Mixer | None, ways: int, kept: CacheKept) -> LayerCache | None:
    """What a layer keeps on each device of ``ways`` tensor-parallel ones; None if nothing.

    KV heads are repeated where there are fewer than devices, and so is the one vector of latent attention.
    """
    match mixer:
        case Attention() if mixer.cached:
            heads = max(1, -(-mixer.kv_heads // ways))
            return LayerCache(2 * heads * mixer.head_dim * BYTES[kept.kv], mixer.window)
        case Latent():
            index = mixer.index_dim + 4 * -(-mixer.index_dim // INDEX_GROUP) if mixer.index_heads else 0
            return LayerCache((mixer.kv_rank + mixer.rope_dim) * BYTES[kept.kv] + index)
        case State():
            return LayerCache(state=_state_bytes(mixer, ways, kept))
        case _:
            return None


def _state_bytes(mixer: State, ways: int, kept: CacheKept) -> int:
    """The last inputs of the convolution, and the recurrent state of each head (Gu and Dao, "Mamba", 2023)."""
    groups = mixer.groups
    if mixer.kind is StateKind.MAMBA2 and groups % ways:
        groups = ways  # each device needs the groups of its heads
    shared = 2 * groups * mixer.size if mixer.kind in (StateKind.MAMBA2, StateKind.GATED_DELTA) else 0
    channels = -(-(mixer.inner + shared) // ways)
    heads = -(-mixer.heads // ways)
    recurrent = heads * mixer.head_dim * mixer.size
    return channels * (mixer.kernel - 1) * BYTES[kept.dtype] + recurrent * BYTES[kept.state]


def sequence_bytes(shape: ModelShape, length: int, kept: CacheKept, ways: int = 1) -> int:
    """What a sequence of ``length`` tokens holds in all layers, on one of ``ways`` tensor-parallel devices.

    Without what blocks round up; ``length`` 0 gives what it holds however short it is.
    """
    caches = (layer_cache(layer.mixer, ways, kept) for layer in shape.layers)
    return sum(cache.bytes(length) for cache in caches if cache)


def token_bytes(shape: ModelShape, kept: CacheKept, ways: int = 1) -> int:
    """What each token adds to that, up to the smallest window."""
    return sequence_bytes(shape, 1, kept, ways) - sequence_bytes(shape, 0, kept, ways)


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a block table. A block of it has ``block_size`` tokens, or one state."""

    cache: LayerCache
    block_size: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """The blocks of a replica: ``block_bytes`` on a device of each stage, and the tables that draw from them.

    ``in_flight``: tokens that may be under way when those that left a window are freed; ``states``: blocks of a
    sequence for each of its states.
    """

    block_size: int
    block_bytes: tuple[int, ...]
    groups: tuple[Group, ...]
    in_flight: int = 0
    states: int = 1

    def blocks(self, length: int) -> int:
        """Blocks that a sequence of ``length`` tokens needs at most, over all tables."""
        return sum(self._of(group, length) for group in self.groups)

    def _of(self, group: Group, length: int) -> int:
        if group.cache.state:
            return self.states
        if group.cache.window:
            # One more, as the window may begin inside a block.
            return -(-min(group.cache.window - 1 + self.in_flight, length) // group.block_size) + 1
        return -(-length // group.block_size)

    def tokens(self, blocks: int, length: int) -> int:
        """Tokens in so many blocks: all of them where every layer keeps every token, else those of sequences of
        ``length``, which is what vLLM states as its KV cache's size."""
        if len(self.groups) == 1 and not self.groups[0].cache.window and not self.groups[0].cache.state:
            return blocks * self.block_size
        needed = self.blocks(length)
        return blocks * length // needed if needed else 0


@dataclass(frozen=True, slots=True)
class PoolRules:
    """How blocks are made: tokens of a block, the smallest that the kernels take, and which caches stay apart.

    Without ``hybrid`` layers with a window keep all tokens if others do. ``prefix_caching`` keeps a second state a
    sequence, that of its last full block.
    """

    block_size: int
    kernel_step: int = 16
    hybrid: bool = True
    prefix_caching: bool = True
    in_flight: int = 0


@lru_cache(maxsize=2048)
def pool_of(shape: ModelShape, cut: Cut, kept: CacheKept, rules: PoolRules) -> Pool:
    """The blocks of a model that is cut so; ``groups`` is empty if it keeps nothing."""
    caches = _caches(shape, cut, kept, rules)
    groups, block_size, pages = _groups(caches, shape.latent, rules)
    ends = tuple(accumulate(stage_layers(len(shape.layers), cut.pipeline), initial=0))
    sizes = tuple(_stage_block(groups, pages, range(start, end)) for start, end in pairwise(ends))
    return Pool(block_size, sizes, groups, rules.in_flight, 2 if rules.prefix_caching else 1)


def _caches(shape: ModelShape, cut: Cut, kept: CacheKept, rules: PoolRules) -> dict[int, LayerCache]:
    caches: dict[int, LayerCache] = {}
    for index, layer in enumerate(shape.layers):
        cache = layer_cache(layer.mixer, cut.tensor, kept)
        if cache:
            caches[index] = cache
    if not rules.hybrid and any(cache.token and not cache.window for cache in caches.values()):
        return {index: replace(cache, window=0) for index, cache in caches.items()}
    return caches


def _groups(
    caches: dict[int, LayerCache], latent: bool, rules: PoolRules
) -> tuple[tuple[Group, ...], int, dict[int, int]]:
    """Tables, tokens of a block, and what a block takes in each layer."""
    kinds: dict[LayerCache, list[int]] = {}
    for index, cache in caches.items():
        kinds.setdefault(cache, []).append(index)
    if len({(cache.window, bool(cache.state)) for cache in kinds}) <= 1:
        size = rules.block_size
        pages = {index: cache.token * size + cache.state for index, cache in caches.items()}
        first = next(iter(kinds), LayerCache())
        return ((Group(first, size, tuple(caches)),) if caches else ()), size, pages
    size = _aligned(kinds, latent, rules)
    page = max(size * cache.token for cache in kinds)
    each = _layers_each([len(layers) for layers in kinds.values()])
    groups = []
    for cache, layers in kinds.items():
        own = size * cache.token
        tokens = size * (page // own) if own and page % own == 0 else size
        tables = -(-len(layers) // each)
        groups += [Group(cache, tokens, tuple(layers[start::tables])) for start in range(tables)]
    return tuple(groups), size, dict.fromkeys(caches, page)


def _aligned(kinds: dict[LayerCache, list[int]], latent: bool, rules: PoolRules) -> int:
    """Tokens of a block such that the KV of one is no smaller than a state, which has a block to itself."""
    state = max(cache.state for cache in kinds)
    token = max(cache.token for cache in kinds)
    if not state or not token:
        return rules.block_size
    step = max(rules.kernel_step, rules.block_size, LATENT_STEP if latent else 0)
    tokens = step * -(-state // (step * token))
    return max(rules.block_size, rules.kernel_step * -(-tokens // rules.kernel_step))


def _layers_each(counts: Sequence[int]) -> int:
    fewest, most = min(counts), max(counts)
    return most if most < fewest * EVEN_GROUPS else fewest


def _stage_block(groups: tuple[Group, ...], pages: dict[int, int], stage: range) -> int:
    """Bytes of a block on a device of this stage: as much as its largest group has there."""
    return max((sum(pages[index] for index in group.layers if index in stage) for group in groups), default=0)
