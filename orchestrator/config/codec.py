"""A ClusterSpec as JSON and back: how it travels to actors and into the run state. Not a format for people."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from orchestrator.core.spec import ClusterSpec


def dumps(spec: ClusterSpec) -> str:
    """The whole spec on one line; ``loads`` gives an equal one back."""
    return json.dumps(dataclasses.asdict(spec), allow_nan=False)


def digest(spec: ClusterSpec) -> str:
    """A short name that only equal specs have in common."""
    return hashlib.sha256(dumps(spec).encode()).hexdigest()[:12]


def loads(text: str) -> ClusterSpec:
    """The spec that ``dumps`` wrote. Not for text that people wrote: types are checked, and nothing else.

    Raises ValueError, TypeError or KeyError for anything that is no spec.
    """
    try:
        spec: ClusterSpec = _read(ClusterSpec, json.loads(text, parse_constant=_no_number))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return spec


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _read(hint: Any, raw: Any) -> Any:
    """A value of the type ``hint`` from what JSON made of it."""
    if get_origin(hint) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(hint) if one is not type(None))
        return None if raw is None else _read(kind, raw)
    if get_origin(hint) is tuple:
        _require(raw, list)
        return tuple(_read(get_args(hint)[0], one) for one in raw)
    if get_origin(hint) is Mapping:
        key, value = get_args(hint)
        _require(raw, dict)
        return {_read(key, name): _read(value, one) for name, one in raw.items()}
    if hint is Any or not isinstance(hint, type):
        return raw
    if dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        _require(raw, dict)
        return hint(**{name: _read(hints[name], one) for name, one in raw.items()})
    if issubclass(hint, Enum):
        return hint(raw)
    _require(raw, hint)
    return raw


def _require(raw: Any, kind: type) -> None:
    """JSON's own types only: a whole number is a float too, and true is no number."""
    found = type(raw)
    if found is not kind and not (kind is float and found is int):
        raise TypeError(f"found a {found.__name__} where a {kind.__name__} belongs")


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)
