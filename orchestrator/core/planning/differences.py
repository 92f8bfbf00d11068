"""What differs between the configuration that runs and another one, pool by pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.core.spec import ClusterSpec, ModelSpec, PoolSpec

NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that differs, both sides in words; ``NOTHING`` where a side has none."""

    where: str
    was: str
    now: str


def differences(old: ClusterSpec, new: ClusterSpec) -> tuple[Difference, ...]:
    """All that decides what a worker is started with; in the order of the new configuration, what went last."""
    before = {model.name: model for model in old.models}
    after = {model.name: model for model in new.models}
    names = [*after, *(name for name in before if name not in after)]
    return tuple(each for name in names for each in _model(name, before.get(name), after.get(name)))


def _model(name: str, old: ModelSpec | None, new: ModelSpec | None) -> Iterator[Difference]:
    if old is None or new is None:
        yield Difference(name, NOTHING if old is None else old.source, NOTHING if new is None else new.source)
        return
    if old.source != new.source:
        yield Difference(f"{name} source", old.source, new.source)
    yield from _mapping(f"{name} engine", old.engine, new.engine)
    for role in [*new.pools, *(role for role in old.pools if role not in new.pools)]:
        yield from _pool(f"{name} {role}", old.pools.get(role), new.pools.get(role))


def _pool(where: str, old: PoolSpec | None, new: PoolSpec | None) -> Iterator[Difference]:
    if old is None or new is None:
        yield Difference(where, NOTHING if old is None else "there", NOTHING if new is None else "there")
        return
    for field in fields(PoolSpec):
        was, now = getattr(old, field.name), getattr(new, field.name)
        if isinstance(now, Mapping):
            yield from _mapping(f"{where} {field.name}", was, now)
        elif was != now:
            yield Difference(f"{where} {field.name}", _word(was), _word(now))


def _mapping(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    for key in [*new, *(key for key in old if key not in new)]:
        was, now = _word(old[key]) if key in old else NOTHING, _word(new[key]) if key in new else NOTHING
        if was != now:
            yield Difference(f"{where}.{key}", was, now)


def _word(value: object) -> str:
    return ", ".join(map(str, value)) or NOTHING if isinstance(value, tuple) else str(value)
