"""The ways in which a request may change an object."""

from __future__ import annotations

import copy
from typing import Any

from tests.kube.emulator.kinds import Schema, Schemas

Path = tuple[Any, ...]
JSON_PATCH = "application/json-patch+json"


class PatchError(Exception):
    """It can't be applied to this object."""


def patched(live: Any, operations: list[dict[str, Any]]) -> Any:
    """JSON patch (RFC 6902): add, remove, replace and test. Raises PatchError."""
    result = copy.deepcopy(live)
    for each in operations:
        *above, last = [part.replace("~1", "/").replace("~0", "~") for part in each["path"].split("/")[1:]]
        try:
            place = result
            for part in above:
                place = place[int(part)] if isinstance(place, list) else place[part]
            _operate(place, last, each)
        except (KeyError, IndexError, ValueError, TypeError):
            raise PatchError(each["path"]) from None
    return result


def _operate(place: Any, last: str, operation: dict[str, Any]) -> None:
    what = operation["op"]
    key: Any = int(last) if isinstance(place, list) and last != "-" else last
    if what == "add":
        if isinstance(place, list):
            place.insert(len(place) if key == "-" else key, operation["value"])
        else:
            place[key] = operation["value"]
        return
    found = place[key]
    if what == "test" and found != operation["value"]:
        raise PatchError(operation["path"])
    if what == "replace":
        place[key] = operation["value"]
    elif what == "remove":
        del place[key]
    elif what != "test":
        raise PatchError(what)


def merged(live: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def strategic(live: Any, patch: Any, schema: Schema, schemas: Schemas) -> Any:
    """Kubernetes' own: lists whose schema says so are merged by key; directives begin with ``$``."""
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    result = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if key == "$retainKeys":
            result = {name: kept for name, kept in result.items() if name in value}
        elif key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            result[name] = [each for each in result.get(name, []) if each not in value]
        elif not key.startswith("$"):
            part = schemas.below(schema, key)
            if value is None:
                result.pop(key, None)
            elif isinstance(value, list) and "merge" in part.get("x-kubernetes-patch-strategy", ""):
                result[key] = _merged_list(result.get(key) or [], value, part, schemas)
            else:
                result[key] = strategic(result.get(key), value, part, schemas)
    return result


def _merged_list(live: list[Any], patch: list[Any], schema: Schema, schemas: Schemas) -> list[Any]:
    key, result = schema.get("x-kubernetes-patch-merge-key"), list(live)
    for each in patch:
        if not isinstance(each, dict):
            result += [each] if each not in result else []
            continue
        place = next((index for index, old in enumerate(result) if old.get(key) == each.get(key)), None)
        if each.get("$patch") == "delete":
            result = [old for index, old in enumerate(result) if index != place]
        elif place is None:
            result.append(each)
        else:
            result[place] = strategic(result[place], each, schemas.item(schema), schemas)
    return result


def leaves(thing: Any, schema: Schema, schemas: Schemas, path: Path = ()) -> dict[Path, Any]:
    """Every field that somebody can own, with its value. An element of a keyed list is named by its keys."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if isinstance(thing, dict) and schema.get("x-kubernetes-map-type") != "atomic" and (thing or not path):
        result: dict[Path, Any] = {}
        for name, value in thing.items():
            result |= leaves(value, schemas.below(schema, name), schemas, (*path, name))
        return result
    if isinstance(thing, list) and keys:
        item = schemas.item(schema)
        result = {}
        for each in thing:
            result |= leaves(each, item, schemas, (*path, _identity(each, keys, item, schemas)))
        return result
    return {path: thing}


def _identity(each: dict[str, Any], keys: list[str], item: Schema, schemas: Schemas) -> Path:
    return tuple((key, each.get(key, schemas.below(item, key).get("default"))) for key in keys)


def put(thing: Any, path: Path, value: Any, schema: Schema, schemas: Schemas) -> None:
    """Sets a leaf, making what is above it."""
    head, *rest = path
    if isinstance(thing, list):
        item = schemas.item(schema)
        keys = [key for key, _ in head]
        found = next((each for each in thing if _identity(each, keys, item, schemas) == head), None)
        if found is None:
            found = {key: value for key, value in head if value is not None}
            thing.append(found)
        if rest:
            put(found, tuple(rest), value, item, schemas)
        return
    below = schemas.below(schema, head)
    if not rest:
        thing[head] = copy.deepcopy(value)
        return
    thing.setdefault(head, [] if below.get("x-kubernetes-list-map-keys") else {})
    put(thing[head], tuple(rest), value, below, schemas)


def drop(thing: Any, path: Path, schema: Schema, schemas: Schemas) -> None:
    """Removes a leaf, and what is empty above it then."""
    head, *rest = path
    if isinstance(thing, list):
        item = schemas.item(schema)
        keys = [key for key, _ in head]
        for each in [each for each in thing if _identity(each, keys, item, schemas) == head]:
            if rest:
                drop(each, tuple(rest), item, schemas)
            if not each:
                thing.remove(each)
        return
    if head not in thing:
        return
    if rest:
        drop(thing[head], tuple(rest), schemas.below(schema, head), schemas)
    if not rest or thing[head] in ({}, []):
        del thing[head]
