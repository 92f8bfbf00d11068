"""Values out of a config.json, by any of the names that families give them, with errors that say which one is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

from orchestrator.core.errors import ConfigError


class Fields:
    """One object of a config.json; ``defaults`` are its family's own, for what config.json leaves out."""

    __slots__ = ("_defaults", "_values", "where")

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self._values = values
        self._defaults = defaults or {}
        self.where = where

    def get(self, *names: str) -> Any:
        """The first of these that is there and not null, else None; the family's default if none is even named."""
        place = self._values if any(name in self._values for name in names) else self._defaults
        return next((place[name] for name in names if place.get(name) is not None), None)

    @overload
    def integer(self, *names: str) -> int: ...
    @overload
    def integer(self, *names: str, default: int) -> int: ...
    def integer(self, *names: str, default: int | None = None) -> int:
        """A whole number of 0 or more; ConfigError if it is something else, or missing without a default."""
        value = self.get(*names)
        if value is None and default is not None:
            return default
        if value is None:
            raise ConfigError(
                f"no {' or '.join(names)}",
                where=self.where,
                hint="without it nobody can say how large the model is",
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{names[0]} has to be a whole number of 0 or more, not {value!r}", where=self.where)
        return value

    def positive(self, *names: str) -> int:
        """A whole number of 1 or more."""
        value = self.integer(*names)
        if value < 1:
            raise ConfigError(f"{names[0]} has to be 1 or more, not {value}", where=self.where)
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        value = self.get(*names)
        return default if value is None else bool(value)

    def words(self, *names: str) -> tuple[str, ...]:
        """A list of strings, empty if there is none; ConfigError if it is anything else."""
        value = self.get(*names)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise ConfigError(f"{names[0]} has to be a list of strings, not {value!r}", where=self.where)
        return tuple(value)

    def inner(self, *names: str) -> Fields | None:
        """The object below that key, or None; ConfigError if it is no object."""
        value = self.get(*names)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ConfigError(f"{names[0]} has to be an object, not {value!r}", where=self.where)
        return Fields(value, f"{self.where}: {names[0]}")

    def items(self) -> Mapping[str, Any]:
        return self._values
