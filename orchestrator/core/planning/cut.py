"""How a model is cut over devices, what each then has of a matrix, and which cuts can't be made.

The rules are those of vLLM: heads and widths have to divide by the tensor-parallel size; KV heads are repeated where
there are fewer; the vocabulary is filled up to a multiple of 64; layers that are left over go to the later stages but
the last, as the first and last have the embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from orchestrator.core.planning.matrices import Matrix, Split, layer_matrices
from orchestrator.core.planning.quantization import Quantization, Scheme
from orchestrator.core.planning.shape import Attention, Layer, ModelShape, State, StateKind

VOCABULARY_STEP = 64
GROUPED = {StateKind.MAMBA2: "groups", StateKind.GATED_DELTA: "key heads"}


@dataclass(frozen=True, slots=True)
class Cut:
    """Sizes of the parallel groups. ``expert``: each device has whole experts, some of them, instead of a share of all.

    ``data`` is the number of replicas that share routed experts, as vLLM's data parallelism does; plain replicas are
    no part of a cut.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False

    @property
    def devices(self) -> int:
        """Of one data-parallel rank."""
        return self.tensor * self.pipeline

    @property
    def sizes(self) -> tuple[int, int]:
        """Tensor and pipeline parallel."""
        return self.tensor, self.pipeline

    def __str__(self) -> str:
        parts = [f"TP={self.tensor}", f"PP={self.pipeline}"]
        parts += [f"DP={self.data}"] * (self.data > 1) + ["EP"] * self.expert
        return ", ".join(parts)


class Obstacle(StrEnum):
    """Why something doesn't fit."""

    HEADS = "heads"
    KV_HEADS = "kv_heads"
    WIDTH = "width"
    VOCABULARY = "vocabulary"
    GROUPS = "groups"
    LAYERS = "layers"
    SHARE = "share"
    WEIGHTS = "weights"
    CONTEXT = "context"
    RESERVE = "reserve"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something doesn't fit, for programs and in words."""

    obstacle: Obstacle
    text: str

    def __str__(self) -> str:
        return self.text


def stage_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each pipeline stage, as vLLM's ``get_pp_indices`` gives them out."""
    counts = [layers // stages] * stages
    for late in range(2, layers % stages + 2):
        counts[-late] += 1
    return tuple(counts)


def part(matrix: Matrix, cut: Cut, scheme: Scheme | None = None) -> tuple[int, int, int]:
    """Inputs, outputs and experts of a matrix that one device has."""
    ways, experts = cut.tensor, max(1, matrix.experts)
    if matrix.experts:
        ways *= cut.data
        if cut.expert:
            return matrix.inputs, matrix.outputs, -(-experts // ways)
    unit = scheme.group if scheme and scheme.mends and scheme.group else 1
    match matrix.split:
        case Split.OUT:
            return matrix.inputs, _share(matrix.outputs, ways, unit), experts
        case Split.IN:
            return _share(matrix.inputs, ways, unit), matrix.outputs, experts
        case Split.KV:
            return matrix.inputs, matrix.outputs // matrix.heads * max(1, -(-matrix.heads // ways)), experts
        case Split.VOCABULARY:
            return matrix.inputs, _share(padded_vocabulary(matrix.outputs), ways, 1), experts
        case _:
            return matrix.inputs, matrix.outputs, experts


def _share(size: int, ways: int, unit: int) -> int:
    return size if ways == 1 else -(-size // (ways * unit)) * unit


def padded_vocabulary(size: int) -> int:
    return -(-size // VOCABULARY_STEP) * VOCABULARY_STEP


@lru_cache(maxsize=4096)
def cut_reasons(shape: ModelShape, cut: Cut, quantization: Quantization | None) -> tuple[Reason, ...]:
    """Everything that keeps this model from being cut so; empty if nothing does."""
    found: list[Reason] = []
    if cut.pipeline > len(shape.layers):
        text = f"{cut.pipeline} pipeline stages are more than the model's {len(shape.layers)} layers"
        found.append(Reason(Obstacle.LAYERS, text))
    for layer in dict.fromkeys(shape.layers):
        found += _layer_reasons(layer, shape.hidden, cut, quantization)
    rows = padded_vocabulary(shape.vocabulary)
    if rows % cut.tensor:
        text = f"the vocabulary of {shape.vocabulary}, filled up to {rows}, can't be divided by TP={cut.tensor}"
        found.append(Reason(Obstacle.VOCABULARY, text))
    return tuple(dict.fromkeys(found))


def _layer_reasons(layer: Layer, hidden: int, cut: Cut, quantization: Quantization | None) -> Iterator[Reason]:
    yield from _mixer_reasons(layer, cut)
    ways = cut.tensor
    for matrix in layer_matrices(layer, hidden):
        routed = bool(matrix.experts)
        scheme = quantization.of(f"model.layers.0.{matrix.name}", expert=routed) if quantization else None
        own = 1 if routed and cut.expert else ways * (cut.data if routed else 1)
        if matrix.name.endswith("down_proj") and matrix.inputs % own and not (scheme and scheme.mends):
            kind = "experts" if routed else "feed-forward layers"
            how = f"TP={cut.tensor} x DP={cut.data}" if routed and cut.data > 1 else f"TP={ways}"
            yield Reason(Obstacle.WIDTH, f"the width {matrix.inputs} of the {kind} can't be divided by {how}")
        elif scheme and matrix.linear and own > 1 and not scheme.mends:
            yield from _group_reasons(matrix, own, scheme)


def _mixer_reasons(layer: Layer, cut: Cut) -> Iterator[Reason]:
    mixer, ways = layer.mixer, cut.tensor
    if mixer is None:
        return
    what = "heads of states" if isinstance(mixer, State) else "attention heads"
    if mixer.heads % ways:
        yield Reason(Obstacle.HEADS, f"{mixer.heads} {what} can't be divided by TP={ways}")
    elif isinstance(mixer, State) and mixer.kind in GROUPED and mixer.groups % ways:
        if mixer.kind is StateKind.GATED_DELTA or mixer.groups > 1:  # one group alone is repeated
            yield Reason(
                Obstacle.HEADS, f"{mixer.groups} {GROUPED[mixer.kind]} of states can't be divided by TP={ways}"
            )
    elif isinstance(mixer, Attention) and mixer.kv_heads % ways and ways % mixer.kv_heads:
        text = f"{mixer.kv_heads} KV heads can be neither divided nor repeated over TP={ways}"
        yield Reason(Obstacle.KV_HEADS, text)


def _group_reasons(matrix: Matrix, ways: int, scheme: Scheme) -> Iterator[Reason]:
    name = matrix.name.rsplit(".", 1)[-1]
    size = scheme.group if scheme.group else scheme.block[1] if scheme.block else 1
    if matrix.split is Split.IN and matrix.inputs % ways == 0 and matrix.inputs // ways % size:
        share = matrix.inputs // ways
        yield Reason(Obstacle.GROUPS, f"{name}'s {share} inputs a device are no whole number of groups of {size}")
    size = scheme.block[0] if scheme.block else 1
    if matrix.split is Split.OUT and matrix.outputs % ways == 0 and matrix.outputs // ways % size:
        share = matrix.outputs // ways
        yield Reason(Obstacle.GROUPS, f"{name}'s {share} outputs a device are no whole number of blocks of {size}")
