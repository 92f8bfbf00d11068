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
    """The spec that ``dumps`` wrote. Not for text that people wrote: nothing is checked."""
    spec: ClusterSpec = _read(ClusterSpec, json.loads(text))
    return spec


def _read(hint: Any, raw: Any) -> Any:
    """A value of the type ``hint`` from what JSON made of it."""
    if get_origin(hint) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(hint) if one is not type(None))
        return None if raw is None else _read(kind, raw)
    if get_origin(hint) is tuple:
        return tuple(_read(get_args(hint)[0], one) for one in raw)
    if get_origin(hint) is Mapping:
        key, value = get_args(hint)
        return {_read(key, name): _read(value, one) for name, one in raw.items()}
    if not isinstance(hint, type):
        return raw
    if dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        return hint(**{name: _read(hints[name], one) for name, one in raw.items()})
    return hint(raw) if issubclass(hint, Enum) else raw


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)
