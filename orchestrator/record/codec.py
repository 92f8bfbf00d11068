"""The core's nouns as plain JSON values and back, read off their type hints: a new field or event needs no line here.

A dataclass is an object of the fields that say something, which None and defaults do not; where a union leaves open
which dataclass it is, an object with the class's name as its one key. Block hashes are packed (base64 of little-endian
64-bit words), floats come back exactly as they were.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import sys
import types
from array import array
from collections.abc import Callable, Sequence
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from orchestrator.core import errors

Code = Callable[[Any], Any]

_REQUIRED = object()
_WRONG = (AttributeError, TypeError, ValueError, KeyError, OverflowError)
_ERROR_FIELDS = ("what", "where", "hint", "retry_after")
_ERRORS = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.SegueError)  # the tree has one class a code
}


class NotPlain(errors.SegueError):
    """A value that isn't what its type says, on either side of the codec."""

    code = "not_plain"


def encode(hint: Any, value: Any, *, whole: bool = False) -> Any:
    """``value``, of the type ``hint``, as what ``json.dumps`` takes. With ``whole``, defaults are not left out.

    Raises:
        NotPlain: the value isn't of that type.
    """
    try:
        return encoder(hint, whole)(value)
    except _WRONG as error:
        raise NotPlain(f"no {_name(hint)} can be written of a {type(value).__name__}: {error!r}") from error


def decode(hint: Any, plain: Any) -> Any:
    """The inverse of ``encode``. Raises NotPlain."""
    try:
        return decoder(hint)(plain)
    except _WRONG as error:
        raise NotPlain(f"no {_name(hint)} can be read here: {error!r}") from error


@cache
def encoder(hint: Any, whole: bool) -> Code:
    """Writes values of one type; made once a type."""
    if kinds := _union(hint):
        return _union_encoder(kinds, whole)
    if hint is float:
        return _float_out
    if hint in (int, str, bool):
        return _same
    if get_origin(hint) is Sequence:
        return _hashes_out
    if get_origin(hint) is tuple:
        item = encoder(get_args(hint)[0], whole)
        return lambda values: [item(value) for value in values]
    if issubclass(hint, Enum):
        return lambda member: hint(member).value
    if issubclass(hint, errors.SegueError):
        return _error_out
    return _object_encoder(hint, whole)


@cache
def decoder(hint: Any) -> Code:
    """Reads values of one type; made once a type."""
    if kinds := _union(hint):
        return _union_decoder(kinds)
    if hint in (float, int, str, bool):
        return hint  # type: ignore[no-any-return]
    if get_origin(hint) is Sequence:
        return _hashes_in
    if get_origin(hint) is tuple:
        item = decoder(get_args(hint)[0])
        return lambda values: tuple(item(value) for value in values)
    if issubclass(hint, Enum):
        return hint  # type: ignore[no-any-return]
    if issubclass(hint, errors.SegueError):
        return _error_in
    return _object_decoder(hint)


# ---- objects and unions


def _object_encoder(kind: Any, whole: bool) -> Code:
    hints = get_type_hints(kind)
    plan = []
    for field in dataclasses.fields(kind):
        part = encoder(hints[field.name], whole)
        plan.append((field.name, part, _REQUIRED if whole else _plain_default(field, hints, part)))

    def out(value: Any) -> dict[str, Any]:
        if type(value) is not kind:
            raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
        plain = {}
        for name, part, default in plan:
            written = part(getattr(value, name))
            if written != default:
                plain[name] = written
        return plain

    return out


def _plain_default(field: Any, hints: dict[str, Any], part: Code) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return part(field.default_factory())
    if field.default is not dataclasses.MISSING:
        return part(field.default)
    return None if type(None) in _union(hints[field.name]) else _REQUIRED


def _object_decoder(kind: Any) -> Code:
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    parts = {field.name: decoder(hints[field.name]) for field in fields}
    nothing = {
        field.name: None
        for field in fields
        if field.default is dataclasses.MISSING and type(None) in _union(hints[field.name])
    }
    return lambda plain: kind(**nothing | {name: parts[name](value) for name, value in plain.items()})


def _union(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()


def _union_encoder(kinds: tuple[Any, ...], whole: bool) -> Code:
    rest = [kind for kind in kinds if kind is not type(None)]
    if len(rest) == 1:
        one = encoder(rest[0], whole)
        return lambda value: None if value is None else one(value)
    parts = {kind: (kind.__name__, encoder(kind, whole)) for kind in rest}

    def out(value: Any) -> dict[str, Any]:
        name, part = parts[type(value)]
        return {name: part(value)}

    return out


def _union_decoder(kinds: tuple[Any, ...]) -> Code:
    rest = [kind for kind in kinds if kind is not type(None)]
    if len(rest) == 1:
        one = decoder(rest[0])
        return lambda plain: None if plain is None else one(plain)
    parts = {kind.__name__: decoder(kind) for kind in rest}

    def into(plain: Any) -> Any:
        ((name, fields),) = plain.items()
        return parts[name](fields)

    return into


def _name(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint))


# ---- leaves


def _same(value: Any) -> Any:
    return value


def _float_out(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)  # an int that was put there comes back as a float: it has to leave as one, too
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"  # JSON has no numbers for them


def _hashes_out(values: Sequence[int]) -> str:
    words = array("Q", values)
    if sys.byteorder == "big":
        words.byteswap()
    return base64.b64encode(words.tobytes()).decode("ascii")


def _hashes_in(packed: str) -> tuple[int, ...]:
    words = array("Q", base64.b64decode(packed, validate=True))
    if sys.byteorder == "big":
        words.byteswap()
    return tuple(words)


def _error_out(error: errors.SegueError) -> dict[str, Any]:
    if _ERRORS.get(error.code) is not type(error):
        raise TypeError(f"{type(error).__name__} is none of the errors of orchestrator.core.errors")
    given = {name: getattr(error, name) for name in _ERROR_FIELDS}
    if given["retry_after"] is not None:
        given["retry_after"] = _float_out(given["retry_after"])
    return {"code": error.code, **{name: value for name, value in given.items() if value not in ("", None)}}


def _error_in(plain: dict[str, Any]) -> errors.SegueError:
    words = {name: value for name, value in plain.items() if name not in ("code", "what")}
    if "retry_after" in words:
        words["retry_after"] = float(words["retry_after"])
    return _ERRORS[plain["code"]](plain.get("what", ""), **words)
