"""What a configuration leaves to the planner and what it plans by: ``auto``, ``gpu``, ``share``, ``slo``, ``load``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config.bounds import Bound
from orchestrator.config.cursor import Cursor
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import AUTO, Backend, ClusterSpec, Device, LoadSpec, ModelSpec, PoolSpec, SloSpec

_OPEN = "auto"
_LEAST_SHARE = 0.0001  # Ray counts GPUs in ten-thousandths
# Far above what makes sense, as is most of parse: a slip of the finger is told instead of obeyed.
_MOST_TOKENS = 100_000_000
_MILLISECONDS = Bound("a number of milliseconds above 0, at most 3600000", 5e-324, 3_600_000)
_RATE = Bound("a number of requests above 0, at most 1000000", 5e-324, 1_000_000)
_PART = Bound("a number from 0 to 1", 0, 1)
_SHARE = Bound(f"a part of one GPU, from {_LEAST_SHARE} to 1", _LEAST_SHARE, 1)


def closed(spec: ClusterSpec, where: str = "") -> ClusterSpec:
    """The spec itself, if it leaves nothing to the planner; whoever starts or simulates something takes no other.

    Raises:
        ConfigError: a count is AUTO; ``where`` is the file it came from, if there is one.
    """
    if not spec.open:
        return spec
    paths = [
        f"models[{index}].pools.{role}.{name}"
        for index, model in enumerate(spec.models)
        for role, pool in model.pools.items()
        for name in pool.open_counts
    ]
    if len(paths) == 1:
        raise ConfigError(f"{paths[0]} is still auto, and has to be a number here", where=where, hint="write a number")
    what = f"{', '.join(paths)} are still auto, and have to be numbers here"
    raise ConfigError(what, where=where, hint="write a number for each")


def count(cursor: Cursor, most: int | None, backend: Backend) -> int:
    """A whole number from 1 on, or ``auto`` where there is an engine to plan."""
    if backend is Backend.MOCK:
        if cursor.value == _OPEN:
            raise cursor.wrong("a whole number with backend mock", "auto is planned by a model's weights")
        return cursor.integer(1, most)
    return AUTO if cursor.value == _OPEN else cursor.integer(1, most, also=_OPEN)


def hardware(fields: Mapping[str, Cursor], backend: Backend) -> dict[str, Any]:
    """A pool's ``device``, ``gpu`` and ``share``, as far as they are written. ``gpu`` means ``device: gpu``."""
    values: dict[str, Any] = {}
    if "device" in fields:
        values["device"] = fields["device"].choice(Device)
    if "gpu" in fields:
        values["gpu"] = _gpus(fields["gpu"])
        if backend is Backend.MOCK:
            raise fields["gpu"].wrong("no gpu with backend mock", "a mock computes on no kind of GPU")
        if values.setdefault("device", Device.GPU) is not Device.GPU:
            named = ", ".join(values["gpu"])
            raise fields["device"].wrong("gpu, or no device", f"the pool names GPUs to run on: {named}")
    if "share" in fields:
        values["share"] = _number(fields["share"], _SHARE)
    return values


def _gpus(cursor: Cursor) -> tuple[str, ...]:
    """Names as the catalogue has them; only a planner, who has it, can tell a wrong one."""
    allowed = "the name of a kind of GPU, such as H100-80GB, or a list of such names"
    if not isinstance(cursor.value, list):
        return (cursor.text(allowed),)
    names: list[str] = []
    for item in cursor.items():
        if item.text(allowed) in names:
            raise item.wrong("each kind of GPU once")
        names.append(item.value)
    if not names:
        raise cursor.wrong(allowed)
    return tuple(names)


def one_device(cursor: Cursor, pool: PoolSpec) -> None:
    """A part of a GPU is for a replica on one GPU; ``cursor`` is the share's place."""
    if pool.share == 1:
        return
    if pool.device is not Device.GPU:
        raise cursor.wrong("1 with device cpu", "only a GPU is shared out: write device: gpu")
    sizes = {"tensor_parallel": pool.tensor_parallel, "pipeline_parallel": pool.pipeline_parallel}
    if any(size != 1 for size in sizes.values()):
        written = " and ".join(f"{name} {_OPEN if size == AUTO else size}" for name, size in sizes.items())
        devices = "" if AUTO in sizes.values() else f", which are {pool.devices_per_replica} GPUs"
        raise cursor.error(
            f"found {pool.share:g} with {written}{devices}, allowed: 1, or a part of one GPU with both 1"
        )


def slo(cursor: Cursor) -> SloSpec:
    """At least one of the two targets."""
    fields = cursor.fields("ttft_ms", "itl_ms")
    if not fields:
        raise cursor.error("found no target, allowed: ttft_ms or itl_ms or both")
    return SloSpec(**{name: _number(field, _MILLISECONDS) for name, field in fields.items()})


def load(cursor: Cursor) -> LoadSpec:
    """All that a load consists of, but for ``prefix_hit``, which is 0 where it isn't written."""
    needed = ("requests_per_second", "prompt_tokens", "output_tokens")
    fields = cursor.fields(*needed, "prefix_hit")
    missing = [name for name in needed if name not in fields]
    if missing:
        allowed = f"{', '.join(needed)}, and prefix_hit where it isn't 0"
        raise cursor.error(f"found no {', no '.join(missing)}, allowed: {allowed}")
    return LoadSpec(
        _number(fields["requests_per_second"], _RATE),
        fields["prompt_tokens"].integer(1, _MOST_TOKENS),
        fields["output_tokens"].integer(1, _MOST_TOKENS),
        _number(fields["prefix_hit"], _PART) if "prefix_hit" in fields else 0.0,
    )


def known_load(cursor: Cursor, model: ModelSpec) -> None:
    """How many replicas depends on what comes; how to cut one follows from the model. ``cursor``: the model's pools."""
    for role, pool in model.pools.items():
        if pool.replicas == AUTO and model.load is None:
            raise cursor.find(role, "replicas").wrong(
                "a whole number in a model without load",
                "or give the model a load: {requests_per_second: ..., prompt_tokens: ..., output_tokens: ...}",
            )


def _number(cursor: Cursor, bound: Bound) -> float:
    value = cursor.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not bound.holds(value):
        raise cursor.wrong(bound.allowed)
    return float(value)
