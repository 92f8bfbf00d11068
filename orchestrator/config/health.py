"""The section ``gateway.health``: when a worker is taken out by evidence from its own requests."""

from __future__ import annotations

from typing import Any

from orchestrator.config.cursor import Cursor
from orchestrator.core.spec import HealthSpec

_BOUNDS = {"slow": (1.5, 100.0), "failing": (0.01, 1.0), "most_out": (0.0, 0.9)}
_BACKOFFS = ("backoff_initial", "backoff_max")


def health(cursor: Cursor) -> HealthSpec:
    """The section; what is not written has the default."""
    fields = cursor.fields("enabled", *_BOUNDS, *_BACKOFFS)
    values: dict[str, Any] = {name: _within(fields[name], *_BOUNDS[name]) for name in _BOUNDS if name in fields}
    values |= {name: fields[name].seconds() for name in _BACKOFFS if name in fields}
    if "enabled" in fields:
        if not isinstance(fields["enabled"].value, bool):
            raise fields["enabled"].wrong("true or false")
        values["enabled"] = fields["enabled"].value
    spec = HealthSpec(**values)
    if spec.backoff_max < spec.backoff_initial:
        place = fields.get("backoff_max") or fields["backoff_initial"]
        what = f"they are {spec.backoff_initial:g} and {spec.backoff_max:g} seconds"
        raise place.wrong("backoff_initial <= backoff_max", what)
    return spec


def _within(cursor: Cursor, least: float, most: float) -> float:
    value = cursor.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise cursor.wrong(f"a number from {least:g} to {most:g}")
    return float(value)
