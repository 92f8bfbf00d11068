"""A YAML file as plain values, together with the line that each key path stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from orchestrator.core.errors import ConfigError

MERGE_TAG = "tag:yaml.org,2002:merge"
PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """With a constructor of its own for dates: a library that vLLM imports has PyYAML's make text of them."""

    yaml_constructors = {  # noqa: RUF012
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_timestamp,
    }


@dataclass(frozen=True, slots=True)
class Document:
    """``lines`` maps a key path ("models[0].name") to its line, counted from 1; it is empty where there was no text."""

    value: Any
    origin: str
    lines: Mapping[str, int] = field(default_factory=dict)


def join(path: str, key: object) -> str:
    """The path of a key below a path; a list's index goes in brackets."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else str(key)


def read(text: str, origin: str) -> Document:
    """Parse YAML, safe tags only. A syntax error, a duplicate key or a recursive alias is a ConfigError."""
    try:
        loader = _Loader(text)
        reader = _Reader(loader, origin)
        return Document(reader.value(loader.get_single_node(), ""), origin, reader.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{origin}:{mark.line + 1}" if mark else origin
        raise ConfigError(f"not valid YAML: {_one_line(error.problem or error.context)}", where=place) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {_one_line(error)}", where=origin) from error


def _one_line(words: object) -> str:
    return " ".join(str(words).split())


class _Reader:
    """Turns nodes into values. PyYAML's own constructor forgets the lines and lets the last of two equal keys win."""

    def __init__(self, loader: yaml.SafeLoader, origin: str) -> None:
        self._loader = loader
        self._origin = origin
        self._open: list[int] = []
        self.lines: dict[str, int] = {}

    def value(self, node: yaml.Node | None, path: str) -> Any:
        if node is None:
            return None
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._loader.construct_object(node, deep=True)
        if id(node) in self._open:
            raise self._error("an alias that contains itself", node, path)
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag in PLAIN_TAGS:
                return [self.value(item, join(path, place)) for place, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag in PLAIN_TAGS:
                return self._mapping(node, path)
        finally:
            self._open.pop()
        raise self._error(f"the YAML tag {node.tag}", node, path)

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[Any, Any]:
        self._refuse_duplicates(node, path)
        if any(key.tag == MERGE_TAG for key, _ in node.value):
            self._loader.flatten_mapping(node)
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:  # after a merge an own key comes later and wins
            key = self._key(key_node, path)
            where = join(path, str(key))
            self.lines[where] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, where)
        return result

    def _key(self, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error("a key that is a list or a mapping", node, path)
        return self._loader.construct_object(node, deep=True)

    def _refuse_duplicates(self, node: yaml.MappingNode, path: str) -> None:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == MERGE_TAG:
                continue
            key, line = self._key(key_node, path), key_node.start_mark.line + 1
            if key in seen:
                what = f"the key {key!s} a second time (first in line {seen[key]})"
                raise self._error(what, key_node, join(path, str(key)))
            seen[key] = line

    def _error(self, found: str, node: yaml.Node, path: str) -> ConfigError:
        line = node.start_mark.line + 1
        place = f"{self._origin}:{line}: {path}" if path else f"{self._origin}:{line}"
        return ConfigError(
            f"found {found}, allowed: each key once, with a plain value, a list or a mapping", where=place
        )
