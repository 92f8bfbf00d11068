"""A place in a document that values are taken from; a wrong one is a ConfigError that names the place."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from orchestrator.config.document import Document, join
from orchestrator.core.errors import ConfigError

Choice = TypeVar("Choice", bound=StrEnum)
LONGEST_SHOWN = 80


def shown(value: object) -> str:
    """A value as an error message shows it: on one line, short, and with its kind where that isn't plain to see."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return f"a mapping ({_short(', '.join(map(str, value)))})" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        return _short(json.dumps(value, ensure_ascii=False))
    return _short(str(value).lower() if isinstance(value, bool) else str(value))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def closest(word: object, known: Iterable[str]) -> str:
    """ "did you mean …", or nothing where no known word is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else ""


class Cursor:
    """One value of a document and where it stands."""

    def __init__(self, document: Document, path: str = "", value: Any = None) -> None:
        self._document = document
        self.path = path
        self.value = document.value if not path else value

    def place(self) -> str:
        line = self._document.lines.get(self.path)
        file = f"{self._document.origin}:{line}" if line else self._document.origin
        return f"{file}: {self.path}" if self.path else file

    def error(self, what: str, hint: str = "") -> ConfigError:
        return ConfigError(what, where=self.place(), hint=hint)

    def wrong(self, allowed: str, hint: str = "") -> ConfigError:
        """The error of a value that is not what is allowed here."""
        return self.error(f"found {shown(self.value)}, allowed: {allowed}", hint)

    def child(self, key: str | int) -> Cursor:
        return Cursor(self._document, join(self.path, key), self.value[key])

    def find(self, *keys: str) -> Cursor:
        """The place below this one that the keys lead to, or as far as the document goes."""
        cursor = self
        for key in keys:
            if not isinstance(cursor.value, Mapping) or key not in cursor.value:
                break
            cursor = cursor.child(key)
        return cursor

    def fields(self, *known: str) -> dict[str, Cursor]:
        """The keys of a mapping that has no others than these. An empty section reads as an empty mapping."""
        found = self.entries()
        for name, cursor in found.items():
            if name not in known:
                raise cursor.error(f"unknown key {name!r}, allowed: {', '.join(known)}", closest(name, known))
        return found

    def entries(self) -> dict[str, Cursor]:
        """A mapping of any keys, as long as they are words."""
        if self.value is None:
            return {}
        if not isinstance(self.value, Mapping):
            raise self.wrong("a mapping (key: value)")
        for key in self.value:
            if not isinstance(key, str):
                raise self.error(f"found the key {shown(key)}, allowed: words as keys", "put it in quotes")
        return {key: self.child(key) for key in self.value}

    def items(self) -> Iterator[Cursor]:
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return (self.child(place) for place in range(len(self.value)))

    def integer(self, least: int, most: int | None = None, also: str = "") -> int:
        """A whole number; ``also`` names what else the caller takes here, for the error."""
        span = f"a whole number from {least} to {most}" if most is not None else f"a whole number, {least} or more"
        value = self.value
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < least
            or (most is not None and value > most)
        ):
            raise self.wrong(f"{span}, or {also}" if also else span)
        return value

    def seconds(self, *, zero: bool = False) -> float:
        value = self.value
        allowed = "a number of seconds, 0 or more" if zero else "a number of seconds above 0"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(allowed)
        if value < 0 or (value == 0 and not zero):
            raise self.wrong(allowed)
        return float(value)

    def text(self, allowed: str = "text") -> str:
        if not isinstance(self.value, str):
            plain = isinstance(self.value, bool | int | float)
            raise self.wrong(allowed, "put it in quotes" if plain else "")
        if not self.value.strip():
            raise self.wrong(allowed)
        return self.value

    def choice(self, kind: type[Choice]) -> Choice:
        words = [member.value for member in kind]
        if self.value not in words:
            raise self.wrong(" or ".join(words), closest(self.value, words))
        return kind(self.value)
