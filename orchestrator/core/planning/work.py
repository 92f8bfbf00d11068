"""What a step has to read and to compute on one device of each pipeline stage, before any device's speed.

Operations: two for each parameter that a token passes (Kaplan et al., "Scaling laws for neural language models", 2020,
section 2.1), and for each token that it attends to two for each number of a query and of a value, in all heads. Bytes:
weights once a step, of routed experts those that are hit, and the KV of each sequence (Pope et al., "Efficiently
scaling transformer inference", 2022, section 2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

from orchestrator.core.planning.cut import Cut, part, stage_layers
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.kv import CacheKept, LayerCache, layer_cache
from orchestrator.core.planning.matrices import (
    Matrix,
    embedding_matrices,
    head_matrices,
    layer_matrices,
    output_matrices,
)
from orchestrator.core.planning.shape import Attention, Experts, Latent, Layer, Mixer, ModelShape, State
from orchestrator.core.planning.weights import Kept, device_bytes

STATE_OPERATIONS = 8  # at most, for each number of a recurrent state that takes in a token and is read
ABSORBED = "self_attn.kv_b_proj"  # while decoding, engines read their own copy of it instead


@dataclass(frozen=True, slots=True)
class Matmuls:
    """Matrices on one device: their bytes, and what a token takes to pass them, by the precision of the units used."""

    bytes: float = 0
    operations: tuple[tuple[Precision, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Routed:
    """Routed experts on one device, of all its layers that have ``count`` experts and send a token to ``per_token``.

    ``all``: bytes of all of them; the operations are for one token of any replica that shares the experts.
    """

    count: int
    per_token: int
    all: Matmuls

    def touched(self, tokens: float) -> float:
        """The share of experts that any of so many tokens goes to, if it goes to each one equally likely."""
        return 1.0 - float((1.0 - self.per_token / self.count) ** tokens)


@dataclass(frozen=True, slots=True)
class Attended:
    """Layers that attend to as many tokens; operations for one of these by one token, while decoding and in a prompt.

    They differ for latent attention, which decodes in the latent space (DeepSeek-V2, 2024, section 2.1.2).
    """

    window: int
    decoding: float
    prompt: float


@dataclass(frozen=True, slots=True)
class StageWork:
    """The work of a pipeline stage on one of its devices.

    ``routings``: layers with routed experts; ``reductions``: results that its devices add up, each of a token's hidden
    width; ``head`` is passed by the last token of a prompt only; ``caches`` are what a sequence holds, ``state``
    operations of recurrent states a token.
    """

    layers: int
    routings: int
    reductions: int
    dense: Matmuls
    head: Matmuls
    routed: tuple[Routed, ...]
    attended: tuple[Attended, ...]
    caches: tuple[LayerCache, ...]
    state: float

    def cache_bytes(self, length: float) -> float:
        """What a step reads and writes of a sequence of so many tokens: KV once, states both ways."""
        total = 0.0
        for cache in self.caches:
            total += 2.0 * cache.state + cache.token * (min(length, cache.window) if cache.window else length)
        return total


@lru_cache(maxsize=2048)
def stage_work(shape: ModelShape, cut: Cut, kept: Kept, cache: CacheKept) -> tuple[StageWork, ...]:
    """The work of each stage. Other inputs' towers are left out: requests are text."""
    ends = accumulate(stage_layers(len(shape.layers), cut.pipeline), initial=0)
    return tuple(_stage(shape, cut, kept, cache, start, end) for start, end in pairwise(ends))


def _stage(shape: ModelShape, cut: Cut, kept: Kept, cache: CacheKept, start: int, end: int) -> StageWork:
    by_layer = kept.quantization is not None and kept.quantization.by_layer
    counts = Counter((shape.layers[index], index if by_layer else 0) for index in range(start, end))
    last = end == len(shape.layers)
    dense = [(times, _layer_dense(layer, shape.hidden, index, kept, cut)) for (layer, index), times in counts.items()]
    if last:
        dense.append((1, _passed([("", matrix) for matrix in output_matrices(shape)], kept, cut)))
    mixers = [(times, layer.mixer) for (layer, _), times in counts.items()]
    return StageWork(
        layers=end - start,
        routings=sum(isinstance(layer.feed, Experts) for layer in shape.layers[start:end]),
        reductions=sum((layer.mixer is not None) + (layer.feed is not None) for layer in shape.layers[start:end]),
        dense=_summed(dense),
        head=_head(shape, kept, cut) if last else Matmuls(),
        routed=tuple(_routed(counts, shape.hidden, kept, cut)),
        attended=tuple(_attended(mixers, cut.tensor)),
        caches=tuple(_caches(mixers, cut.tensor, cache)),
        state=sum(times * _state_operations(mixer, cut.tensor) for times, mixer in mixers),
    )


@lru_cache(maxsize=8192)
def _layer_dense(layer: Layer, hidden: int, index: int, kept: Kept, cut: Cut) -> Matmuls:
    prefix = f"model.layers.{index}."
    matrices = layer_matrices(layer, hidden)
    return _passed([(prefix, each) for each in matrices if not each.experts], kept, cut)


@lru_cache(maxsize=8192)
def _layer_routed(layer: Layer, hidden: int, index: int, kept: Kept, cut: Cut) -> Matmuls:
    feed = layer.feed
    share = feed.per_token / feed.count if isinstance(feed, Experts) else 0.0
    prefix = f"model.layers.{index}."
    return _passed([(prefix, each) for each in layer_matrices(layer, hidden) if each.experts], kept, cut, share)


def _routed(counts: Counter[tuple[Layer, int]], hidden: int, kept: Kept, cut: Cut) -> Iterator[Routed]:
    kinds: dict[tuple[int, int], list[tuple[int, Matmuls]]] = {}
    for (layer, index), times in counts.items():
        if isinstance(layer.feed, Experts):
            key = (layer.feed.count, layer.feed.per_token)
            kinds.setdefault(key, []).append((times, _layer_routed(layer, hidden, index, kept, cut)))
    for (count, per_token), parts in kinds.items():
        yield Routed(count, per_token, _summed(parts))


def _head(shape: ModelShape, kept: Kept, cut: Cut) -> Matmuls:
    matrices = list(head_matrices(shape))
    if shape.tied and shape.has_head:
        matrices += embedding_matrices(shape)[:1]
    return _passed([("", matrix) for matrix in matrices], kept, cut)


def _passed(matrices: Iterable[tuple[str, Matrix]], kept: Kept, cut: Cut, share: float = 1.0) -> Matmuls:
    """What one device reads of these matrices, and computes for a token that passes a ``share`` of them."""
    total, operations = 0, dict[Precision, float]()
    for prefix, matrix in matrices:
        if matrix.name != ABSORBED:
            total += device_bytes(matrix, prefix, kept, cut)
        if matrix.held:
            continue
        quantized = kept.quantization if matrix.linear else None
        name = prefix + matrix.name
        scheme = quantized.of(name, expert=bool(matrix.experts), head=name == "lm_head") if quantized else None
        inputs, outputs, experts = part(matrix, cut, scheme)
        # Only fp8 is sure to be computed as it is kept: integers may be mere storage (GPTQ, AWQ), and config.json's
        # words on activations are not kept here. The units of the model's own type are the slower ones of the two.
        precision = Precision.FP8 if scheme and scheme.precision is Precision.FP8 else kept.dtype
        operations[precision] = operations.get(precision, 0.0) + 2.0 * inputs * outputs * experts * share
    return Matmuls(total, tuple(operations.items()))


def _summed(parts: Iterable[tuple[int, Matmuls]]) -> Matmuls:
    total, operations = 0.0, dict[Precision, float]()
    for times, each in parts:
        total += times * each.bytes
        for precision, count in each.operations:
            operations[precision] = operations.get(precision, 0.0) + times * count
    return Matmuls(total, tuple(operations.items()))


def _attended(mixers: Iterable[tuple[int, Mixer | None]], ways: int) -> Iterator[Attended]:
    windows: dict[int, list[float]] = {}
    for times, mixer in mixers:
        if isinstance(mixer, Attention):
            both = 4.0 * mixer.heads * mixer.head_dim / ways
            decoding, prompt, window = both, both, mixer.window
        elif isinstance(mixer, Latent):
            index = 2.0 * mixer.index_heads * mixer.index_dim
            decoding = 2.0 * mixer.heads / ways * (2 * mixer.kv_rank + mixer.rope_dim) + index
            prompt = 2.0 * mixer.heads / ways * (mixer.nope_dim + mixer.rope_dim + mixer.value_dim) + index
            window = 0
        else:
            continue
        sums = windows.setdefault(window, [0.0, 0.0])
        sums[0] += times * decoding
        sums[1] += times * prompt
    for window, (decoding, prompt) in windows.items():
        yield Attended(window, decoding, prompt)


def _caches(mixers: Iterable[tuple[int, Mixer | None]], ways: int, kept: CacheKept) -> Iterator[LayerCache]:
    windows: dict[int, list[int]] = {}
    for times, mixer in mixers:
        cache = layer_cache(mixer, ways, kept)
        if cache:
            sums = windows.setdefault(cache.window, [0, 0])
            sums[0] += times * cache.token
            sums[1] += times * cache.state
    for window, (token, state) in windows.items():
        yield LayerCache(token, window, state)


def _state_operations(mixer: Mixer | None, ways: int) -> float:
    return STATE_OPERATIONS * mixer.inner * mixer.size / ways if isinstance(mixer, State) else 0.0
