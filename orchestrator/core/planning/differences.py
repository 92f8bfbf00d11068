"""What differs between the configuration that runs and another one, value by value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from orchestrator.core.spec import ClusterSpec, Endpoint, ModelSpec, PoolSpec

NOTHING = "-"
# What nothing is started with: names, what is planned for, and what a command adds.
_PASSED_OVER = frozenset(("name", "models", "pools", "slo", "load", "record"))


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that differs, both sides in words; ``NOTHING`` where a side has none."""

    where: str
    was: str
    now: str


def differences(old: ClusterSpec, new: ClusterSpec) -> tuple[Difference, ...]:
    """All that a cluster is started with; in the order of the new configuration, what went last."""
    before = {model.name: model for model in old.models}
    after = {model.name: model for model in new.models}
    names = [*after, *(name for name in before if name not in after)]
    of_models = (each for name in names for each in _model(name, before.get(name), after.get(name)))
    return (*_fields("", old, new), *of_models)


def _model(name: str, old: ModelSpec | None, new: ModelSpec | None) -> Iterator[Difference]:
    if old is None or new is None:
        yield Difference(name, NOTHING if old is None else old.source, NOTHING if new is None else new.source)
        return
    yield from _fields(f"{name} ", old, new)
    for role in [*new.pools, *(role for role in old.pools if role not in new.pools)]:
        yield from _pool(f"{name} {role}", old.pools.get(role), new.pools.get(role))


def _pool(where: str, old: PoolSpec | None, new: PoolSpec | None) -> Iterator[Difference]:
    if old is None or new is None:
        yield Difference(where, NOTHING if old is None else "there", NOTHING if new is None else "there")
        return
    yield from _fields(f"{where} ", old, new)


def _fields(before: str, old: Any, new: Any) -> Iterator[Difference]:
    """Those of two dataclasses of one kind; ``before`` goes before their names."""
    for field in fields(new):
        if field.name not in _PASSED_OVER:
            yield from _value(before + field.name, getattr(old, field.name), getattr(new, field.name))


def _value(where: str, was: Any, now: Any) -> Iterator[Difference]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        yield from _mapping(where, was, now)
    elif is_dataclass(was) and is_dataclass(now) and not isinstance(now, Endpoint):
        yield from _fields(f"{where}.", was, now)
    elif (old := _word(was)) != (new := _word(now)):
        yield Difference(where, old, new)


def _mapping(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    for key in [*new, *(key for key in old if key not in new)]:
        yield from _value(f"{where}.{key}", old.get(key), new.get(key))


def _word(value: object) -> str:
    if value is None:
        return NOTHING
    return (", ".join(map(str, value)) if isinstance(value, tuple) else str(value)) or NOTHING
