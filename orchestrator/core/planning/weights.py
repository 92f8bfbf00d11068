"""Parameters, and the bytes of weights that a checkpoint has and that each device holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.cut import Cut, part, stage_layers
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.matrices import (
    Matrix,
    embedding_matrices,
    head_matrices,
    layer_matrices,
    output_matrices,
)
from orchestrator.core.planning.quantization import Quantization
from orchestrator.core.planning.shape import Experts, Layer, ModelShape

BYTES = {Precision.FP32: 4, Precision.BF16: 2, Precision.FP16: 2, Precision.FP8: 1, Precision.INT8: 1}
# Bits of what safetensors headers call their types.
STORED_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "I64": 64,
    "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
CLOSE = 0.002  # below this a checkpoint's total and what config.json says are the same: norms in float32, small buffers
RETYPED = (2.0, 4.0, 0.5, 0.25)  # ratios of a checkpoint that is stored in another type than config.json names


@dataclass(frozen=True, slots=True)
class Kept:
    """What an engine keeps weights in: the type of what isn't quantized, and the quantization."""

    dtype: Precision
    quantization: Quantization | None = None


def parameters(shape: ModelShape) -> int:
    """All parameters, without those of multi-token prediction."""
    return sum(matrix.parameters for matrix in _all(shape)) + shape.tower_parameters


def active_parameters(shape: ModelShape) -> int:
    """The parameters of a token's own way: of routed experts only those that it goes to; no embeddings of tokens.

    Twice as many operations a token follow from it (Kaplan et al., 2020, section 2.1).
    """
    total = sum(matrix.parameters for part_of in (output_matrices, head_matrices) for matrix in part_of(shape))
    if shape.tied and shape.has_head:
        total += shape.vocabulary * shape.embedding_width
    for layer in shape.layers:
        chosen = layer.feed.per_token if isinstance(layer.feed, Experts) else 0
        for matrix in layer_matrices(layer, shape.hidden):
            total += matrix.parameters * chosen // matrix.experts if matrix.experts else matrix.parameters
    return total


def _all(shape: ModelShape) -> Iterator[Matrix]:
    for layer in shape.layers:
        yield from layer_matrices(layer, shape.hidden)
    for part_of in (embedding_matrices, output_matrices, head_matrices):
        yield from part_of(shape)


def kept_as_stored(shape: ModelShape) -> Kept:
    """What the checkpoint itself has."""
    dtype = Precision.BF16 if shape.dtype is Precision.FP8 else shape.dtype
    return Kept(dtype, shape.quantization)


def checkpoint_bytes(shape: ModelShape) -> int:
    """What all files of the checkpoint should have together: nothing filled up, multi-token prediction with it."""
    kept = kept_as_stored(shape)
    total = sum(_whole_bytes(layer, index, shape, kept) for index, layer in enumerate(shape.layers))
    for part_of in (embedding_matrices, output_matrices, head_matrices):
        total += sum(_plain_bytes(matrix, "", kept) for matrix in part_of(shape))
    if shape.drafts:
        copies = 2 * shape.vocabulary * shape.embedding_width + 2 * shape.hidden * shape.hidden + 3 * shape.hidden
        own = _whole_bytes(shape.layers[-1], len(shape.layers) - 1, shape, kept)
        total += shape.drafts * (own + copies * BYTES[kept.dtype])
    return total + shape.tower_parameters * BYTES[kept.dtype]


def _whole_bytes(layer: Layer, index: int, shape: ModelShape, kept: Kept) -> int:
    return sum(_plain_bytes(each, f"model.layers.{index}.", kept) for each in layer_matrices(layer, shape.hidden))


def _plain_bytes(matrix: Matrix, prefix: str, kept: Kept) -> int:
    whole = (matrix.inputs, matrix.outputs, max(1, matrix.experts))
    return 0 if matrix.held else _bytes(matrix, prefix, kept, lambda _: whole)


def _bytes(matrix: Matrix, prefix: str, kept: Kept, cut_to: Callable[..., tuple[int, int, int]]) -> int:
    name, size = prefix + matrix.name, BYTES[kept.dtype]
    quantized = kept.quantization if matrix.linear else None
    scheme = quantized.of(name, expert=bool(matrix.experts), head=name == "lm_head") if quantized else None
    inputs, outputs, experts = cut_to(scheme)
    if scheme is None:
        return (inputs + matrix.bias) * outputs * experts * size
    return experts * (scheme.bytes(inputs, outputs) + matrix.bias * outputs * size)


def device_bytes(matrix: Matrix, prefix: str, kept: Kept, cut: Cut) -> int:
    """What one device has of a matrix."""
    return _bytes(matrix, prefix, kept, lambda scheme: part(matrix, cut, scheme))


@lru_cache(maxsize=8192)
def _layer_bytes(layer: Layer, hidden: int, index: int, kept: Kept, cut: Cut) -> int:
    return sum(device_bytes(each, f"model.layers.{index}.", kept, cut) for each in layer_matrices(layer, hidden))


@lru_cache(maxsize=2048)
def stage_weights(shape: ModelShape, cut: Cut, kept: Kept) -> tuple[int, ...]:
    """Bytes of weights on each device of each pipeline stage; the devices of a stage have equally much.

    Towers for other inputs are counted whole on the first stage, as vLLM repeats most of them on every device.
    """
    counts = stage_layers(len(shape.layers), cut.pipeline)
    starts = [sum(counts[:stage]) for stage in range(cut.pipeline + 1)]
    by_layer = kept.quantization is not None and kept.quantization.by_layer
    stages = [
        sum(
            _layer_bytes(shape.layers[index], shape.hidden, index if by_layer else 0, kept, cut)
            for index in range(start, end)
        )
        for start, end in pairwise(starts)
    ]

    def held(matrices: Sequence[Matrix]) -> int:
        return sum(device_bytes(matrix, "", kept, cut) for matrix in matrices)

    embeddings = embedding_matrices(shape)
    stages[0] += held(embeddings) + shape.tower_parameters * BYTES[kept.dtype]
    stages[-1] += held(output_matrices(shape)) + held(head_matrices(shape))
    if shape.tied and shape.has_head and cut.pipeline > 1:
        stages[-1] += held(embeddings[:1])  # the last stage needs the embedding again, as its head
    return tuple(stages)


@lru_cache(maxsize=2048)
def stage_copies(shape: ModelShape, cut: Cut, kept: Kept) -> tuple[int, ...]:
    """Bytes of weights that each CPU of each stage has a second time.

    vLLM lays matrices out anew for oneDNN and drops them as they were loaded, but not the embedding and the head, nor
    does it see that a tied head is the embedding: that is copied twice.
    """
    stages = [0] * cut.pipeline
    embedding = device_bytes(embedding_matrices(shape)[0], "", kept, cut)
    stages[0] += embedding
    if not shape.has_head:
        return tuple(stages)
    if shape.tied:
        stages[-1] += embedding * (2 if cut.pipeline > 1 else 1)
    elif not (kept.quantization and kept.quantization.of("lm_head", expert=False, head=True)):
        stages[-1] += sum(device_bytes(each, "", kept, cut) for each in head_matrices(shape) if each.linear)
    return tuple(stages)


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint's own total beside what config.json says. Weights are ``factor`` times the latter, for ``note``."""

    total: int
    expected: int
    factor: float = 1.0
    note: str = ""


def stored_total(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> int:
    """Bytes of all tensors in safetensors headers: name to (type, shape). ConfigError for a type that is unknown."""
    total = 0
    for name, (kind, sizes) in tensors.items():
        if kind not in STORED_BITS:
            raise ConfigError(f"tensor {name} has the unknown type {kind!r}", hint=f"known: {', '.join(STORED_BITS)}")
        count = 1
        for size in sizes:
            count *= size
        total += -(-count * STORED_BITS[kind] // 8)
    return total


def index_total(index: Mapping[str, object]) -> int | None:
    """``metadata.total_size`` of a model.safetensors.index.json, where it has one."""
    metadata = index.get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    return int(size) if isinstance(size, int | float) and size > 0 else None


def compared(shape: ModelShape, total: int) -> Stored:
    """The checkpoint's total wins over what config.json says; the difference is told.

    Not so where it is explained by what doesn't get into memory: weights that are stored in another type, or a head
    that is stored although it is the embedding.
    """
    expected = checkpoint_bytes(shape)
    ratio = total / expected
    if abs(ratio - 1) <= CLOSE:
        return Stored(total, expected)
    if any(abs(ratio / known - 1) <= 0.01 for known in RETYPED) and shape.quantization is None:
        return Stored(total, expected, note=f"the checkpoint is stored in another type than {shape.dtype}")
    head = shape.vocabulary * shape.embedding_width * BYTES[kept_as_stored(shape).dtype]
    if shape.tied and abs((total - head) / expected - 1) <= CLOSE:
        return Stored(total, expected, note="the checkpoint has the tied embedding twice")
    note = (
        f"the checkpoint has {total / 1e9:.2f} GB, {100 * (ratio - 1):+.1f}% of what config.json says "
        f"({expected / 1e9:.2f} GB): its own total is taken"
    )
    return Stored(total, expected, ratio, note)
