"""What to change where a model doesn't fit: the smallest steps in each direction, each one tried out.

The order is what costs least first: settings of the same devices, then more of them, then weights of fewer bits, which
may cost quality, then other devices, then stages, which cost latency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from orchestrator.core.planning.cut import Cut, Obstacle, Reason
from orchestrator.core.planning.devices import DeviceKind, Precision
from orchestrator.core.planning.quantization import NAMED
from orchestrator.core.planning.settings import AUTO_LENGTH, UTILIZATION, Settings
from orchestrator.core.planning.shape import ModelShape
from orchestrator.core.spec import Device

Fitting = TypeVar("Fitting", covariant=True)

USEFUL_LENGTH = 2048  # tokens; below this a shorter context is no answer, unless the model or the wish is shorter still
MOST_STAGES = 16
LESS_UTILIZATION = 0.9
DIVISION = {Obstacle.HEADS, Obstacle.KV_HEADS, Obstacle.WIDTH, Obstacle.VOCABULARY, Obstacle.GROUPS}
MEMORY = {Obstacle.WEIGHTS, Obstacle.CONTEXT}
DOUBLINGS = 16  # of a KV cache that was given a size


@dataclass(frozen=True, slots=True)
class Change(Generic[Fitting]):
    """A change in words, what is then asked for, and that it fits."""

    text: str
    cut: Cut
    device: DeviceKind
    settings: Settings
    fit: Fitting

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class _Try:
    text: str
    cut: Cut
    device: DeviceKind
    settings: Settings


def changes(
    shape: ModelShape,
    cut: Cut,
    device: DeviceKind,
    settings: Settings,
    reasons: Sequence[Reason],
    others: Sequence[DeviceKind],
    most_tensor: int,
    judge: Callable[[Cut, DeviceKind, Settings], Fitting | None],
) -> Iterator[Change[Fitting]]:
    """The first of each direction that ``judge`` lets pass."""
    at = _Try("", cut, device, settings)
    obstacles = {reason.obstacle for reason in reasons}
    for direction in _directions(shape, at, obstacles, others, most_tensor):
        for attempt in direction:
            fit = judge(attempt.cut, attempt.device, attempt.settings)
            if fit is not None:
                yield Change(attempt.text, attempt.cut, attempt.device, attempt.settings, fit)
                break


def _directions(
    shape: ModelShape, at: _Try, obstacles: set[Obstacle], others: Sequence[DeviceKind], most_tensor: int
) -> Iterator[Iterator[_Try]]:
    if Obstacle.SHARE in obstacles:
        yield iter([replace(at, text="a whole device", settings=replace(at.settings, share=1.0))])
    if Obstacle.LAYERS in obstacles:
        yield _fewer_stages(at, len(shape.layers))
    if Obstacle.LENGTH in obstacles:
        text = f"max_model_len: {shape.max_length}"
        yield iter([replace(at, text=text, settings=replace(at.settings, max_model_len=shape.max_length))])
    if Obstacle.RESERVE in obstacles:
        text = f"gpu_memory_utilization: {LESS_UTILIZATION:g}"
        yield iter([replace(at, text=text, settings=replace(at.settings, gpu_memory_utilization=LESS_UTILIZATION))])
    if obstacles & MEMORY:
        yield _more_of_it(at)
        yield _other_cache(at, Obstacle.CONTEXT in obstacles)
    if Obstacle.CONTEXT in obstacles:
        yield _shorter(shape, at)
        yield _narrower_cache(shape, at)
    if obstacles & DIVISION:
        yield _fewer_ways(at)
    yield _more_ways(at, most_tensor)
    if Obstacle.SHARE not in obstacles and at.settings.share < 1:
        yield iter([replace(at, text="a whole device", settings=replace(at.settings, share=1.0))])
    if obstacles & MEMORY:
        yield _narrower(shape, at)
        yield _larger(at, others)
        yield _more_stages(shape, at, most_tensor)


def _more_of_it(at: _Try) -> Iterator[_Try]:
    if at.settings.gpu_memory_utilization < UTILIZATION and at.settings.kv_cache_memory_bytes is None:
        settings = replace(at.settings, gpu_memory_utilization=UTILIZATION)
        yield replace(at, text=f"gpu_memory_utilization: {UTILIZATION:g}", settings=settings)


def _other_cache(at: _Try, larger: bool) -> Iterator[_Try]:
    """Another size for a KV cache that was given one."""
    asked = at.settings.kv_cache_memory_bytes
    for power in range(1, DOUBLINGS + 1 if asked else 0):
        size = (asked or 0) << power if larger else (asked or 0) >> power
        if size:
            settings = replace(at.settings, kv_cache_memory_bytes=size)
            yield replace(at, text=f"kv_cache_memory_bytes: {size}", settings=settings)


def _shorter(shape: ModelShape, at: _Try) -> Iterator[_Try]:
    """The longest context that fits, in steps that a person would write."""
    length = at.settings.length(shape)
    least = min(USEFUL_LENGTH, at.settings.context or USEFUL_LENGTH)
    step = 1 << (length.bit_length() - 1)
    step = step // 2 if step == length else step
    while step >= least and at.settings.max_model_len != AUTO_LENGTH:
        for shorter in (step * 3 // 2, step):
            if least <= shorter < length:
                settings = replace(at.settings, max_model_len=shorter)
                yield replace(at, text=f"max_model_len: {shorter}", settings=settings)
        step //= 2


def _narrower_cache(shape: ModelShape, at: _Try) -> Iterator[_Try]:
    if at.device.kind is Device.GPU and at.settings.cache_kept(shape).kv is not Precision.FP8:
        yield replace(at, text="kv_cache_dtype: fp8", settings=replace(at.settings, kv_cache_dtype=Precision.FP8))


def _fewer_ways(at: _Try) -> Iterator[_Try]:
    for ways in range(at.cut.tensor - 1, 0, -1):
        yield replace(at, text=f"tensor_parallel: {ways}", cut=replace(at.cut, tensor=ways))


def _more_ways(at: _Try, most: int) -> Iterator[_Try]:
    whole = replace(at.settings, share=1.0)
    for ways in range(at.cut.tensor + 1, most + 1):
        yield replace(at, text=f"tensor_parallel: {ways}", cut=replace(at.cut, tensor=ways), settings=whole)


def _fewer_stages(at: _Try, layers: int) -> Iterator[_Try]:
    for stages in range(min(at.cut.pipeline - 1, layers), 0, -1):
        yield replace(at, text=f"pipeline_parallel: {stages}", cut=replace(at.cut, pipeline=stages))


def _more_stages(shape: ModelShape, at: _Try, most_tensor: int) -> Iterator[_Try]:
    """More stages of what there is, then of whole nodes."""
    whole = replace(at.settings, share=1.0)
    for ways in dict.fromkeys((at.cut.tensor, most_tensor)):
        for stages in range(at.cut.pipeline + 1, min(MOST_STAGES, len(shape.layers)) + 1):
            cut = replace(at.cut, pipeline=stages, tensor=ways)
            text = f"pipeline_parallel: {stages}" + (f" and tensor_parallel: {ways}" if ways != at.cut.tensor else "")
            yield replace(at, text=text, cut=cut, settings=whole)


def _narrower(shape: ModelShape, at: _Try) -> Iterator[_Try]:
    kept = at.settings.weights_kept(shape)
    if kept.quantization is not None:
        return
    words = {
        Precision.FP8: "quantization: fp8",
        Precision.INT8: "a checkpoint in int8 (compressed-tensors)",
        Precision.INT4: "a checkpoint in int4 (AWQ or GPTQ, groups of 128)",
    }
    # A CPU has no fp8.
    for precision in (Precision.FP8 if at.device.kind is Device.GPU else Precision.INT8, Precision.INT4):
        settings = replace(at.settings, quantization=NAMED[precision], stored_bytes=None)
        yield replace(at, text=words[precision], settings=settings)


def _larger(at: _Try, others: Sequence[DeviceKind]) -> Iterator[_Try]:
    larger = [each for each in others if each.memory_bytes > at.device.memory_bytes and each.kind is at.device.kind]
    for each in sorted(larger, key=lambda each: (each.memory_bytes, each.usd_per_hour, each.name)):
        yield replace(at, text=f"{each.name} instead of {at.device.name}", device=each)
