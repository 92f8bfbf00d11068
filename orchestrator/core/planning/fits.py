"""Whether a model fits on devices when it is cut in a certain way, and what is left for sequences if it does.

What vLLM does with memory is followed step by step: it takes ``gpu_memory_utilization`` of a device, less weights and
the peak of a step (of a CPU: less what its process has by then); what is left becomes KV blocks, on all stages as many
as on the one with the fewest; one of them is a placeholder; and a sequence of ``max_model_len`` has to fit into the
others, or it doesn't start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil
from typing import Any

from orchestrator.core.planning.cut import Cut, Obstacle, Reason, cut_reasons, stage_layers
from orchestrator.core.planning.devices import DeviceKind
from orchestrator.core.planning.fits_changes import Change, changes
from orchestrator.core.planning.kv import Pool, pool_of, token_bytes
from orchestrator.core.planning.overhead import stage_overhead
from orchestrator.core.planning.settings import AUTO_LENGTH, Settings, cut_of, settings_of
from orchestrator.core.planning.shape import Config, ModelShape
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.weights import Stored, compared, stage_copies, stage_weights
from orchestrator.core.spec import Device

GB = 1e9
PLACEHOLDER = 1  # a block that vLLM's pool never gives out


@dataclass(frozen=True, slots=True)
class Bytes:
    """What one device holds. ``other`` is all that is neither weights nor KV, the context of a GPU included."""

    weights: int
    kv: int
    other: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.other


@dataclass(frozen=True, slots=True)
class Fit:
    """It fits. ``stages`` is for a device of each pipeline stage, ``kv_bytes_per_token`` for the whole replica.

    ``kv_blocks`` is as vLLM counts them, the placeholder included; ``sequences`` is how many of ``context`` tokens run
    at once by memory, which ``max_num_seqs`` may bound further. ``notes`` says what was assumed.
    """

    stages: tuple[Bytes, ...]
    kv_blocks: int
    block_size: int
    kv_tokens: int
    kv_bytes_per_token: int
    max_model_len: int
    context: int
    sequences: int
    max_num_seqs: int
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> Bytes:
        """The fullest device's."""
        return max(self.stages, key=lambda each: each.total)

    @property
    def weight_bytes(self) -> int:
        """The most weights on any device."""
        return max(each.weights for each in self.stages)


@dataclass(frozen=True, slots=True)
class NoFit:
    """It doesn't: why, and the smallest changes with which it would, the smallest one first."""

    reasons: tuple[Reason, ...]
    changes: tuple[Change[Fit], ...] = ()

    def __str__(self) -> str:
        return "; ".join(reason.text for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class _Room:
    """What a stage's devices have and hold before any KV."""

    stage: int
    weights: int
    other: int
    later: int  # of ``other``, what vLLM doesn't count as it works out the room for KV
    free: int  # for KV; negative where not even weights fit


def fits(
    shape: ModelShape,
    cut: Cut,
    device: DeviceKind,
    settings: Settings | None = None,
    *,
    others: Sequence[DeviceKind] = (),
    most_tensor: int = 8,
) -> Fit | NoFit:
    """Whether it fits, in numbers, and what would if it doesn't.

    ``others`` are devices that could be had instead; ``most_tensor`` bounds what is suggested: devices of one node.
    """
    settings = settings or Settings()
    outcome = _judge(shape, cut, device, settings)
    if isinstance(outcome, Fit):
        return outcome

    def judge(cut: Cut, device: DeviceKind, settings: Settings) -> Fit | None:
        other = _judge(shape, cut, device, settings)
        return other if isinstance(other, Fit) else None

    return NoFit(outcome, tuple(changes(shape, cut, device, settings, outcome, others, most_tensor, judge)))


def predicted(config: Config, engine: Mapping[str, Any], device: DeviceKind, **own: Any) -> Fit | NoFit:
    """The same from a model folder's config.json and a spec's ``engine`` arguments, by vLLM's names.

    ``own`` are fields of ``Settings`` that are no engine arguments (share, context, stored_bytes, reserve).
    """
    return fits(shape_of(config), cut_of(engine), device, settings_of(engine, **own))


def _judge(shape: ModelShape, cut: Cut, device: DeviceKind, settings: Settings) -> Fit | tuple[Reason, ...]:
    kept = settings.weights_kept(shape)
    reasons = [*cut_reasons(shape, cut, kept.quantization), *_wrong(shape, cut, device, settings)]
    if reasons:
        return tuple(reasons)
    stored = compared(shape, settings.stored_bytes) if settings.stored_bytes else None
    rooms = _rooms(shape, cut, device, settings, stored)
    tight = min(rooms, key=lambda room: room.free)
    if tight.free < 0 or (settings.kv_cache_memory_bytes is None and tight.free == 0 and shape.cached):
        return (_too_heavy(tight, cut, device, settings),)
    if settings.kv_cache_memory_bytes is None and shape.cached:
        late = max(room.later for room in rooms)
        if _budget(device, settings) + late > device.memory_bytes * settings.share:
            return (_too_full(late, device, settings),)
    return _dealt(shape, cut, device, settings, rooms, stored)


def _wrong(shape: ModelShape, cut: Cut, device: DeviceKind, settings: Settings) -> list[Reason]:
    """What is refused before any memory is looked at."""
    found = []
    if not 0 < settings.share <= 1 or (settings.share < 1 and cut.devices > 1):
        text = f"{settings.share:g} of a device can be had only where a replica is on one device, not with {cut}"
        found.append(Reason(Obstacle.SHARE, text))
    length = settings.length(shape)
    if length > shape.max_length:
        text = f"max_model_len {length} is beyond the model's own {shape.max_length} tokens"
        found.append(Reason(Obstacle.LENGTH, text))
    budget, context = _budget(device, settings), settings.reserve.context
    left = device.memory_bytes - context
    if device.kind is Device.GPU and settings.kv_cache_memory_bytes is None and budget > left:
        text = (
            f"gpu_memory_utilization {settings.gpu_memory_utilization:g} asks for {_gb(budget)}, {device.name} has "
            f"{_gb(left)} beside the driver's own {_gb(context)}"
        )
        found.append(Reason(Obstacle.RESERVE, text))
    return found


def _budget(device: DeviceKind, settings: Settings) -> int:
    """What vLLM takes of a device; all but the context where KV has a size of its own, as utilization isn't heeded."""
    if settings.kv_cache_memory_bytes is None:
        return ceil(device.memory_bytes * settings.gpu_memory_utilization * settings.share)
    context = settings.reserve.context if device.kind is Device.GPU else 0
    return int(device.memory_bytes * settings.share) - context


def _rooms(
    shape: ModelShape, cut: Cut, device: DeviceKind, settings: Settings, stored: Stored | None
) -> tuple[_Room, ...]:
    factor = stored.factor if stored else 1.0
    budget, batch = _budget(device, settings), settings.batch(shape)
    asked = settings.kv_cache_memory_bytes if shape.cached else None
    rooms = []
    ends = accumulate(stage_layers(len(shape.layers), cut.pipeline), initial=0)
    kept = settings.weights_kept(shape)
    copies = stage_copies(shape, cut, kept) if device.kind is Device.CPU else (0,) * cut.pipeline
    held = zip(pairwise(ends), stage_weights(shape, cut, kept), copies, strict=True)
    for stage, ((start, end), weights, copied) in enumerate(held):
        last = stage == cut.pipeline - 1
        layers = shape.layers[start:end]
        beside = stage_overhead(shape, layers, last, cut, device.kind, batch, settings.reserve)
        weights, other = round(weights * factor), beside.total + copied
        free = budget - weights - other
        if asked is not None:
            free = asked if free >= asked else free - asked
        elif shape.cached:
            free += beside.later
        rooms.append(_Room(stage, weights, other, beside.later, free))
    return tuple(rooms)


def _too_heavy(room: _Room, cut: Cut, device: DeviceKind, settings: Settings) -> Reason:
    budget = _budget(device, settings)
    where = f" on stage {room.stage + 1} of {cut.pipeline}" if cut.pipeline > 1 else ""
    asked = settings.kv_cache_memory_bytes
    kv = f" and the {_gb(asked)} of KV asked for" if asked else ""
    text = (
        f"weights need {_gb(room.weights)} a device{where}, {device.name} has {_gb(max(0, budget - room.other))} for "
        f"them{kv} ({_gb(budget)} of {_gb(device.memory_bytes)}, less {_gb(room.other)} to compute with)"
    )
    return Reason(Obstacle.WEIGHTS, text)


def _too_full(late: int, device: DeviceKind, settings: Settings) -> Reason:
    budget, there = _budget(device, settings), device.memory_bytes * settings.share
    text = (
        f"gpu_memory_utilization {settings.gpu_memory_utilization:g} asks for {_gb(budget)}, {device.name} has "
        f"{_gb(there - late)} beside the {_gb(late)} that its largest step and other processes take"
    )
    return Reason(Obstacle.RESERVE, text)


def _dealt(
    shape: ModelShape, cut: Cut, device: DeviceKind, settings: Settings, rooms: tuple[_Room, ...], stored: Stored | None
) -> Fit | tuple[Reason, ...]:
    """The blocks dealt out; reasons where a whole sequence doesn't fit into them."""
    kept = settings.cache_kept(shape)
    pool = pool_of(shape, cut, kept, settings.pool_rules(shape, cut, device.kind))
    sizes = zip(rooms, pool.block_bytes, strict=True)
    blocks = min((room.free // size for room, size in sizes if size), default=0)
    usable, length = max(0, blocks - PLACEHOLDER), settings.length(shape)
    if pool.groups and settings.max_model_len == AUTO_LENGTH:
        length = _longest(pool, usable, length)
    if pool.groups and (length == 0 or pool.blocks(length) > usable):
        return (_too_long(pool, rooms, usable, max(1, length), device),)
    batch = settings.batch(shape)
    context = min(settings.context or length, length)
    driver = settings.reserve.context if device.kind is Device.GPU else 0
    notes = [*shape.assumed, *([stored.note] if stored and stored.note else [])]
    return Fit(
        stages=tuple(
            Bytes(room.weights, blocks * size, room.other + driver)
            for room, size in zip(rooms, pool.block_bytes, strict=True)
        ),
        kv_blocks=blocks,
        block_size=pool.block_size,
        kv_tokens=pool.tokens(blocks, length),
        kv_bytes_per_token=token_bytes(shape, kept),
        max_model_len=length,
        context=context,
        sequences=usable // pool.blocks(context) if pool.groups else batch.sequences,
        max_num_seqs=batch.sequences,
        notes=tuple(notes),
    )


def _longest(pool: Pool, usable: int, most: int) -> int:
    """The longest sequence that fits into so many blocks, in tokens; 0 if none does."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        if pool.blocks(middle) <= usable:
            least = middle
        else:
            most = middle - 1
    return least


def _too_long(pool: Pool, rooms: tuple[_Room, ...], usable: int, length: int, device: DeviceKind) -> Reason:
    size, room = max(zip(pool.block_bytes, rooms, strict=True), key=lambda each: (each[0], -each[1].free))
    text = (
        f"one sequence of {length} tokens needs {_gb(pool.blocks(length) * size)} of KV a device, {device.name} has "
        f"{_gb(usable * size)} left beside {_gb(room.weights)} of weights and {_gb(room.other)} to compute with"
    )
    return Reason(Obstacle.CONTEXT, text)


def _gb(size: float) -> str:
    """Decimal gigabytes; small amounts with another digit."""
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / GB:.2f} GB"
