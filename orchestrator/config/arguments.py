"""Engine and front-end arguments, checked against vLLM's own lists (``vllm_fields.json``) without importing vLLM."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from orchestrator.config import bounds
from orchestrator.config.cursor import Cursor, closest
from orchestrator.config.owned import ENGINE_INSTEAD, FRONTEND_ALLOWED, FRONTEND_INSTEAD, MOCK_FIELDS

DATA = Path(__file__).with_name("vllm_fields.json")
Type = list[Any]
LISTED_CHOICES = 12
SCALAR_TYPES = {"bool": bool, "int": int, "float": float, "str": str}
SCALAR_WORDS = {
    "null": "null",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "any": "any value",
}


@functools.cache
def known(section: str) -> Mapping[str, Type]:
    """vLLM's fields of a section, "engine" or "frontend", with their types; "chat_templates" it ships, all null."""
    return cast("dict[str, dict[str, Type]]", json.loads(DATA.read_text(encoding="utf-8")))[section]


def engine(cursor: Cursor) -> dict[str, Any]:
    """Arguments of vLLM's ``AsyncEngineArgs``, less those that Segue sets itself."""
    allowed = {name: kind for name, kind in known("engine").items() if name not in ENGINE_INSTEAD}
    values = _checked(cursor, allowed, ENGINE_INSTEAD, "a vLLM engine argument (AsyncEngineArgs)")
    bounds.check(cursor, bounds.ENGINE)
    return values


def mock(cursor: Cursor) -> dict[str, Any]:
    """Arguments of the mock engine."""
    values = _checked(cursor, MOCK_FIELDS, {}, f"{', '.join(MOCK_FIELDS)} (backend mock)")
    bounds.check(cursor, bounds.MOCK)
    return values


def frontend(cursor: Cursor) -> dict[str, Any]:
    """Options of vLLM's API server that make sense for one model of several behind one gateway."""
    allowed = {name: known("frontend")[name] for name in FRONTEND_ALLOWED}
    values = _checked(cursor, allowed, FRONTEND_INSTEAD, ", ".join(FRONTEND_ALLOWED))
    bounds.check(cursor, bounds.FRONTEND)
    return values


def _checked(cursor: Cursor, allowed: Mapping[str, Type], instead: Mapping[str, str], listed: str) -> dict[str, Any]:
    values = {}
    for name, entry in cursor.entries().items():
        if name in instead:
            raise entry.error(f"{name} is Segue's to set, allowed: {listed}", instead[name])
        if name not in allowed:
            raise entry.error(f"unknown key {name!r}, allowed: {listed}", closest(name, allowed))
        values[name] = checked(entry, allowed[name])
    return values


def checked(cursor: Cursor, kind: Type) -> Any:
    """The value, if it is of this type; ConfigError at the innermost place that is wrong."""
    for option in kind:
        if isinstance(option, str) and _is_scalar(cursor, option):
            return cursor.value
    for option in kind:
        if isinstance(option, str):
            continue
        if "choices" in option and _is_choice(cursor.value, option["choices"]):
            return cursor.value
        if "list" in option and isinstance(cursor.value, list):
            return [checked(item, option["list"]) for item in cursor.items()]
        if "map" in option and isinstance(cursor.value, Mapping):
            return {name: checked(entry, option["map"]) for name, entry in cursor.entries().items()}
        if "object" in option and isinstance(cursor.value, Mapping):
            return _checked(cursor, option["object"], {}, ", ".join(option["object"]))
    choices = [str(choice) for option in kind if isinstance(option, dict) for choice in option.get("choices", ())]
    raise cursor.wrong(words(kind), closest(cursor.value, choices))


def _is_choice(value: object, choices: list[Any]) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _is_scalar(cursor: Cursor, option: str) -> bool:
    value = cursor.value
    match option:
        case "null":
            return value is None
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "str":
            return isinstance(value, str)
    _require_plain(cursor)
    return True


def _require_plain(cursor: Cursor) -> None:
    """ "any" still has to be something that JSON can carry to a worker."""
    if isinstance(cursor.value, Mapping):
        for entry in cursor.entries().values():
            _require_plain(entry)
    elif isinstance(cursor.value, list):
        for item in cursor.items():
            _require_plain(item)
    elif not any(_is_scalar(cursor, kind) for kind in ("null", "bool", "float", "str")):
        raise cursor.wrong("text, a finite number, true, false, null, a list or a mapping", "put it in quotes")


def words(kind: Type) -> str:
    """A type in words: "text or null"."""
    return " or ".join(_option_words(option) for option in kind)


def _option_words(option: Any) -> str:
    if isinstance(option, str):
        return SCALAR_WORDS[option]
    if "choices" in option:
        choices = [str(choice) or '""' for choice in option["choices"]]
        more = len(choices) - LISTED_CHOICES
        return ", ".join(choices[:LISTED_CHOICES]) + (f" ... ({more} more)" if more > 0 else "")
    if "list" in option:
        return f"a list ({words(option['list'])})"
    if "map" in option:
        return f"a mapping ({words(option['map'])})"
    return f"a mapping with {', '.join(option['object'])}"
