"""Who set which field of an object: what server-side apply goes by."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from tests.kube.emulator.kinds import Schema, Schemas
from tests.kube.emulator.patches import Path, drop, leaves, put

Object = dict[str, Any]
UNOWNED = ("apiVersion", "kind", "status")


class ConflictError(Exception):
    """Says with whom, and over which fields."""


@dataclass
class Owners:
    """Of one object. ``applied`` is what each manager's last apply named, ``changed`` who changed a field otherwise."""

    applied: dict[str, set[Path]] = field(default_factory=dict)
    changed: dict[Path, str] = field(default_factory=dict)

    def update(self, manager: str, old: Object, new: Object, schema: Schema, schemas: Schemas) -> None:
        before, after = _owned(old, schema, schemas), _owned(new, schema, schemas)
        for path in after:
            if path not in before or before[path] != after[path]:
                self.changed[path] = manager
                for others in self.applied.values():
                    others.discard(path)

    def apply(
        self, manager: str, live: Object, wish: Object, schema: Schema, schemas: Schemas, *, force: bool
    ) -> Object:
        """The object with the wish in it. Raises ConflictError where others own a field that it would change."""
        now, wanted = _owned(live, schema, schemas), _owned(wish, schema, schemas)
        clashes = [
            (owner, path)
            for path, value in wanted.items()
            if path in now and now[path] != value
            for owner in self._others(path, manager)
        ]
        if clashes and not force:
            words = ", ".join(f'conflict with "{owner}": {dotted(path)}' for owner, path in clashes)
            raise ConflictError(f"Apply failed with {len(clashes)} conflict{'s'[: len(clashes) != 1]}: {words}")
        result = copy.deepcopy(live)
        for path in self.applied.get(manager, set()) - set(wanted):
            if not self._others(path, manager):
                drop(result, path, schema, schemas)
        for path, value in wanted.items():
            put(result, path, value, schema, schemas)
        for _, path in clashes:
            self.changed.pop(path, None)
            for others in self.applied.values():
                others.discard(path)
        self.applied[manager] = set(wanted)
        return result

    def _others(self, path: Path, manager: str) -> set[str]:
        owners = {other for other, paths in self.applied.items() if path in paths and other != manager}
        return owners | ({self.changed[path]} - {manager} if path in self.changed else set())


def _owned(thing: Object, schema: Schema, schemas: Schemas) -> dict[Path, Any]:
    own = {key: value for key, value in thing.items() if key not in UNOWNED}
    meta = own.pop("metadata", {})
    kept = {key: meta[key] for key in ("labels", "annotations") if meta.get(key)}
    return leaves(own | ({"metadata": kept} if kept else {}), schema, schemas)


def dotted(path: Path) -> str:
    """.spec.replicas"""
    return "".join(
        f".{part}" if isinstance(part, str) else f"[{','.join(f'{key}={value!r}' for key, value in part)}]"
        for part in path
    )
